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

/// Gives freed buffers back to the system.
pub(crate) fn clear_cache() -> Result<(), Exception> {
    memory::clear_cache()
}
