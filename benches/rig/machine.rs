//! What the machine is.

use std::{fs, thread::available_parallelism};

/// What the machine is, for whoever reads the figures.
pub fn machine() -> String {
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cores = available_parallelism().map_or(1, usize::from);
    format!(
        "{} {}, {cores} cores, {}",
        std::env::consts::OS,
        std::env::consts::ARCH,
        model.as_deref().unwrap_or("processor unknown")
    )
}
