//! What a process used.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::Result;

use super::ps::ps;

/// Processor time that a process used since its start.
#[derive(Debug)]
pub enum Used {
    /// Nanoseconds of each thread. `/proc/PID/stat` would count in steps of 10 ms.
    Threads(HashMap<String, u64>),
    /// The sum, where the system has no account of threads.
    Sum(Duration),
}

impl Used {
    /// Of a process up to now.
    pub fn of(process: u32) -> Result<Self> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
            return Ok(Self::Sum(duration(&ps(process, "cputime")?)?));
        };
        let mut threads = HashMap::new();
        for task in tasks {
            let task = task?;
            // A thread may end between the listing and the look.
            if let Ok(line) = fs::read_to_string(task.path().join("schedstat")) {
                let nanoseconds = line.split(' ').next().unwrap_or_default().parse()?;
                threads.insert(task.file_name().to_string_lossy().into_owned(), nanoseconds);
            }
        }
        Ok(Self::Threads(threads))
    }

    /// What was used between `before` and this. A thread that ended in between is left out.
    pub fn since(&self, before: &Self) -> Duration {
        match (self, before) {
            (Self::Threads(after), Self::Threads(before)) => Duration::from_nanos(
                after.iter().map(|(thread, time)| time - before.get(thread).copied().unwrap_or(0).min(*time)).sum(),
            ),
            (Self::Sum(after), Self::Sum(before)) => after.saturating_sub(*before),
            _ => Duration::ZERO,
        }
    }
}

/// `[[hours:]minutes:]seconds`, the way `ps` writes it.
fn duration(text: &str) -> Result<Duration> {
    let mut seconds = 0.0;
    for part in text.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>()?;
    }
    Ok(Duration::try_from_secs_f64(seconds)?)
}
