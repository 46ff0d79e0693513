//! Stop sequences over streamed text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_manager_engine::fuzzing;

fuzz_target!(|input: (Vec<String>, Vec<u8>, &str)| {
    let (stops, lengths, text) = input;
    fuzzing::look_for_stops(text, &stops, &lengths);
});
