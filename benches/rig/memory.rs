//! What a process holds.

use anyhow::Result;

use super::ps::ps;

/// The resident memory of a process, in bytes.
pub fn resident(process: u32) -> Result<u64> {
    Ok(ps(process, "rss")?.parse::<u64>()? * 1024)
}
