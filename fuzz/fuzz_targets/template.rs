//! Chat templates, which are foreign code.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_manager_engine::fuzzing;

fuzz_target!(|source: &str| fuzzing::render_template(source));
