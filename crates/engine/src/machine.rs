//! How much memory this machine has.

use std::{fs, process::Command};

use mlx_manager_config::MemoryLimit;
use mlx_manager_signal::event::MachineMemoryUnknown;

/// Bytes, or `None` when the share of an unknown amount was asked for, which is logged.
pub(crate) fn memory_limit(limit: MemoryLimit) -> Option<u64> {
    match limit {
        MemoryLimit::Bytes(bytes) => Some(bytes),
        MemoryLimit::Share(share) => {
            let total = total_memory();
            if total.is_none() {
                MachineMemoryUnknown.emit();
            }
            total.map(|total| (total as f64 * share) as u64)
        }
    }
}

/// Memory in bytes: the machine's, or less where a container is allowed less.
fn total_memory() -> Option<u64> {
    if cfg!(target_os = "macos") {
        let answer = Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
        return String::from_utf8(answer.stdout).ok()?.trim().parse().ok();
    }
    let total = total_of(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let allowed = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(allowed.map_or(total, |allowed: u64| allowed.min(total)))
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_machine() {
        let total = memory_limit(MemoryLimit::Share(1.0)).unwrap();
        let half = memory_limit(MemoryLimit::Share(0.5)).unwrap();
        assert!(total > 1 << 28 && half.abs_diff(total / 2) <= 1, "{total} {half}");
        assert_eq!(memory_limit(MemoryLimit::Bytes(7)), Some(7));
    }

    #[test]
    fn the_total_is_read_from_meminfo() {
        assert_eq!(total_of("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 * 1024));
        assert_eq!(total_of("MemTotal: 16 pages"), None);
    }
}
