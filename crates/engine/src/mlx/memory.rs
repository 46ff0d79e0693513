//! MLX's allocator: limits, figures, and the cache of freed buffers. They hold for the whole process.

use mlx_rs::{error::Exception, memory};

/// Asks MLX to stay below a limit, in bytes. It frees its cache and waits for running work to do so.
pub(crate) fn limit_memory(bytes: u64) -> Result<(), Exception> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    memory::set_memory_limit(bytes).map(drop)
}

/// Bytes in arrays that are alive; freed buffers that MLX keeps for the next arrays don't count.
pub(crate) fn active_memory() -> Result<u64, Exception> {
    Ok(memory::active_memory()? as u64)
}

/// Bytes in freed buffers that MLX keeps for the next arrays.
pub(crate) fn cache_memory() -> Result<u64, Exception> {
    Ok(memory::cache_memory()? as u64)
}

/// Asks MLX to keep at most so many bytes of freed buffers for the next arrays.
pub(crate) fn limit_cache(bytes: u64) -> Result<(), Exception> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    memory::set_cache_limit(bytes).map(drop)
}

/// Whether MLX failed for want of memory. It has no type of its own for that: its allocators say so, on a CPU (`[malloc] Unable to
/// allocate …`), on Metal (`[metal::malloc] …`, `Insufficient Memory`) and on CUDA (`out of memory`).
pub(crate) fn is_out_of_memory(error: &Exception) -> bool {
    let text = error.what().to_ascii_lowercase();
    ["malloc]", "unable to allocate", "insufficient memory", "out of memory", "outofmemory"]
        .iter()
        .any(|words| text.contains(words))
}

/// Gives freed buffers back to the system.
pub(crate) fn clear_cache() -> Result<(), Exception> {
    memory::clear_cache()?;
    trim_heap();
    Ok(())
}

/// Has the C library keep what MLX frees, until [`clear_cache`]. By its own measure it gives much of that back at once, and to
/// touch new memory takes longer than to write what it is for.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_freed() {
    #[expect(unsafe_code, reason = "a function of the C library")]
    unsafe extern "C" {
        safe fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    const TRIM_THRESHOLD: std::ffi::c_int = -1;
    const MMAP_THRESHOLD: std::ffi::c_int = -3;
    mallopt(TRIM_THRESHOLD, std::ffi::c_int::MAX);
    // It takes no larger one.
    mallopt(MMAP_THRESHOLD, 32 << 20);
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_freed() {}

/// The C library keeps for itself most of what MLX frees on a CPU: by its own measure up to hundreds of megabytes lie between
/// buffers that are alive.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim_heap() {
    #[expect(unsafe_code, reason = "a function of the C library")]
    unsafe extern "C" {
        safe fn malloc_trim(keep: usize) -> std::ffi::c_int;
    }
    malloc_trim(0);
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim_heap() {}
