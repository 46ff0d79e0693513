//! What Cargo.toml can't say: where the binaries find MLX on Linux, which commit they are built from, and by what.
#![expect(clippy::disallowed_methods, reason = "a build script is told everything through the environment")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_MLX").is_some() && env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        link_mlx();
    }
    name_commit();
    name_compiler();
}

/// `tools/mlx-prefix.sh` makes the prefix and names it in `.cargo/config.toml`. Linking itself is asked for there too,
/// but only for mlx-sys; arguments for the binaries must come from the package that has the binaries.
fn link_mlx() {
    println!("cargo::rerun-if-env-changed=MLX_MANAGER_MLX_PREFIX");
    let prefix = env::var_os("MLX_MANAGER_MLX_PREFIX").map(PathBuf::from);
    let Some(prefix) = prefix.filter(|prefix| prefix.join("bindings.rs").exists()) else {
        println!(
            "cargo::error=MLX is not set up for this checkout: run `make setup` (or build without the feature `mlx`)"
        );
        return;
    };
    println!("cargo::rerun-if-changed={}", prefix.join("bindings.rs").display());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", prefix.join("mlx/lib").display());

    // libmlx brings the reference BLAS, which is 20 to 70 times slower than OpenBLAS. Both define the same symbols and
    // the loader takes the first definition: ours, since the binary's own libraries come before those of libmlx.
    // No code of ours names these symbols, so the linker would drop the library as unused.
    println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed,-lopenblas,--pop-state");
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
