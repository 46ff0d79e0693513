//! The daemon and its commands; [`mlx_manager::cli`] has one file for each.

use std::process::ExitCode;

fn main() -> ExitCode {
    mlx_manager::cli::main()
}
