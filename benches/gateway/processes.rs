//! A gateway as all of its processes.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

use crate::rig::memory::resident;

/// The system counts in steps of it here.
const TICK: Duration = Duration::from_millis(10);

/// A process and whoever lives that it or its children started.
fn family(process: u32) -> Vec<u32> {
    let mut family = vec![process];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        next += 1;
        // On a system without it, the one process is all that is known; so is a process that has just ended.
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.filter_map(Result::ok) {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    family
}

/// The resident memory of all of them, in bytes.
pub fn memory(process: u32) -> Result<u64> {
    family(process).into_iter().map(resident).sum()
}

/// Processor time of all of them, with that of threads and children that have ended. `None` where the system has no such
/// account.
pub fn time(process: u32) -> Result<Option<Duration>> {
    let mut ticks = 0;
    for process in family(process) {
        let Ok(line) = fs::read_to_string(format!("/proc/{process}/stat")) else { return Ok(None) };
        // The name, in brackets, may hold anything; the times of the process and of its children that ended follow it.
        let (_, rest) = line.rsplit_once(')').context("a process without a name")?;
        for field in rest.split_whitespace().skip(11).take(4) {
            ticks += field.parse::<u32>()?;
        }
    }
    Ok(Some(TICK * ticks))
}
