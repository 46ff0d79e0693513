//! Reasoning and tool calls in generated text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_manager_engine::fuzzing;

fuzz_target!(|input: (bool, bool, Vec<u8>, &str)| {
    let (begins_in_reasoning, tools, lengths, text) = input;
    fuzzing::read_answer(text, &lengths, begins_in_reasoning, tools);
});
