//! The daemon and its commands; [`mlx_manager::cli`] has one file for each.

use std::process::ExitCode;

/// Spans, log records and rows are made by one thread and freed by another, which the systems' own allocators are slow at:
/// telemetry costs a fifth less with this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mlx_manager::cli::main()
}
