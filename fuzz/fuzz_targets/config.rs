//! Any text is a config, or a list of problems that can be drawn.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mlx_manager_config::{Environment, LoadOptions, load_text};

fuzz_target!(|text: &str| {
    let environment = Environment::new("/nowhere").with("KEY", "value");
    let options = LoadOptions { environment, ..LoadOptions::default() };
    match load_text(text, Some(Path::new("/nowhere/config.toml")), &options) {
        Ok(loaded) => drop(loaded.render_warnings(true)),
        Err(problems) => drop(problems.to_string()),
    }
});
