//! The one macOS symbol that `mlx-rs` needs elsewhere, too.
#![cfg(not(target_vendor = "apple"))]

use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds the random state that `mlx-rs` keeps for callers without a key; ours always bring one. Apple's function gives
/// ticks since the machine started; any number that changes serves.
#[expect(unsafe_code, reason = "the linker must find it under this very name")]
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().wrapping_mul(1_000_000_000).wrapping_add(u64::from(since.subsec_nanos()))
}
