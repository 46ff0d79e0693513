//! Stop sequences over streamed text.

#![no_main]

use mlx_manager_engine::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<String>, Vec<u8>, &str)| {
    let (stops, lengths, text) = input;
    fuzzing::look_for_stops(text, &stops, &lengths);
});
