//! What Cargo.toml can't say: how the binaries are linked, which commit they are built from, and by what.
#![expect(clippy::disallowed_methods, reason = "a build script is told everything through the environment")]

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // What the engine says of linking it, when there is one.
    let arguments = env::var("DEP_MLX_MANAGER_ENGINE_LINK_ARGS").unwrap_or_default();
    for argument in arguments.split('\t').filter(|argument| !argument.is_empty()) {
        println!("cargo::rustc-link-arg={argument}");
    }
    name_commit();
    name_compiler();
}

/// Sets MLX_MANAGER_GIT_COMMIT for `env!`; it is empty outside a git checkout.
fn name_commit() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    println!("cargo::rustc-env=MLX_MANAGER_GIT_COMMIT={commit}");

    // git appends to this log whenever HEAD moves, be it by a commit, a checkout or a rebase. A path that doesn't exist
    // would run this script at every build.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// Sets MLX_MANAGER_RUSTC to what the compiler says of itself, `rustc 1.95.0 (59807616e 2026-04-14)`, and
/// MLX_MANAGER_RUSTC_VERSION to the second word of it.
fn name_compiler() {
    let output = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("--version").output().ok());
    let description = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    println!("cargo::rustc-env=MLX_MANAGER_RUSTC={}", description.trim());
    println!(
        "cargo::rustc-env=MLX_MANAGER_RUSTC_VERSION={}",
        description.split_whitespace().nth(1).unwrap_or_default()
    );
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
