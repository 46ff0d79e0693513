//! MLX's allocator: limits, figures, and the cache of freed buffers. They hold for the whole process.

use mlx_rs::{error::Exception, memory};

/// What MLX holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// In arrays that are alive.
    pub active: u64,
    /// Freed, but kept for the next arrays.
    pub cached: u64,
    /// The most there ever was in arrays.
    pub peak: u64,
}

/// Asks MLX to stay below a limit, in bytes. It frees its cache and waits for running work to do so.
pub(crate) fn limit_memory(bytes: u64) -> Result<(), Exception> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    memory::set_memory_limit(bytes).map(drop)
}

/// What MLX holds now.
pub(crate) fn memory() -> Result<Memory, Exception> {
    Ok(Memory {
        active: memory::active_memory()? as u64,
        cached: memory::cache_memory()? as u64,
        peak: memory::peak_memory()? as u64,
    })
}

/// Gives freed buffers back to the system.
pub(crate) fn clear_cache() -> Result<(), Exception> {
    memory::clear_cache()
}
