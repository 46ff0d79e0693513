//! Where binaries find MLX on Linux: the tests of this crate, and those of every package that depends on it.
#![expect(clippy::disallowed_methods, reason = "a build script is told everything through the environment")]

use std::{env, path::PathBuf};

/// `tools/mlx-prefix.sh` makes the prefix and names it in `.cargo/config.toml`. Linking itself is asked for there too, but
/// only for mlx-sys. Arguments for binaries must come from the package that has them, so a package that depends on this
/// one finds them in `DEP_MLX_MANAGER_ENGINE_LINK_ARGS`, with a tab between two.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo::rerun-if-env-changed=MLX_MANAGER_MLX_PREFIX");
    let prefix = env::var_os("MLX_MANAGER_MLX_PREFIX").map(PathBuf::from);
    let Some(prefix) = prefix.filter(|prefix| prefix.join("bindings.rs").exists()) else {
        println!(
            "cargo::error=MLX is not set up for this checkout: run `make setup` (or build without the feature `mlx`)"
        );
        return;
    };
    println!("cargo::rerun-if-changed={}", prefix.join("bindings.rs").display());

    let blas = prefix.join("lib/libmlxblas.so");
    let arguments = [
        format!("-Wl,-rpath,{}", prefix.join("mlx/lib").display()),
        format!("-Wl,-rpath,{}", prefix.join("lib").display()),
        // libmlx brings the reference BLAS, which is 20 to 70 times slower than OpenBLAS. Both define the same symbols
        // and the loader takes the first definition: ours, since the binary's own libraries come before those of libmlx.
        // A binary that names none of these symbols itself needs it all the same.
        format!("-Wl,--push-state,--no-as-needed,{},--pop-state", blas.display()),
    ];
    for argument in &arguments {
        println!("cargo::rustc-link-arg={argument}");
    }
    println!("cargo::metadata=LINK_ARGS={}", arguments.join("\t"));
}
