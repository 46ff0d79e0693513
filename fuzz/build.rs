//! Passes on to the targets what the engine says of linking it, as the daemon's build script does to its binaries.
#![expect(clippy::disallowed_methods, reason = "a build script is told everything through the environment")]

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let arguments = env::var("DEP_MLX_MANAGER_ENGINE_LINK_ARGS").unwrap_or_default();
    for argument in arguments.split('\t').filter(|argument| !argument.is_empty()) {
        println!("cargo::rustc-link-arg={argument}");
    }
}
