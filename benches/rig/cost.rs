//! What a process used.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::Duration,
};

use anyhow::Result;

use super::ps::ps;

/// Processor time that a process and its children used since their start.
#[derive(Debug)]
pub enum Used {
    /// Name and nanoseconds of each thread. `/proc/PID/stat` would count in steps of 10 ms.
    Threads(HashMap<u32, (String, u64)>),
    /// The sum, where the system has no account of threads.
    Sum(Duration),
}

impl Used {
    /// Of a process up to now.
    pub fn of(process: u32) -> Result<Self> {
        if fs::metadata("/proc/self/schedstat").is_err() {
            return Ok(Self::Sum(duration(&ps(process, "cputime")?)?));
        }
        let mut threads = HashMap::new();
        let mut processes = vec![process];
        while let Some(process) = processes.pop() {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let task = task?;
                // A thread may end between the listing and the look.
                let read = |file: &str| fs::read_to_string(task.path().join(file));
                let (Ok(times), Ok(name)) = (read("schedstat"), read("comm")) else { continue };
                let nanoseconds = times.split(' ').next().unwrap_or_default().parse()?;
                let id = task.file_name().to_string_lossy().parse()?;
                threads.insert(id, (name.trim_end().to_owned(), nanoseconds));
                let children = read("children").unwrap_or_default();
                processes.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
        }
        Ok(Self::Threads(threads))
    }

    /// What was used between `before` and this. A thread that ended in between is left out.
    pub fn since(&self, before: &Self) -> Duration {
        match (self, before) {
            (Self::Sum(after), Self::Sum(before)) => after.saturating_sub(*before),
            _ => self.by_thread(before).values().sum(),
        }
    }

    /// The same by the names of threads; those that differ only in a number are one. Empty without an account of threads.
    pub fn by_thread(&self, before: &Self) -> BTreeMap<String, Duration> {
        let mut names = BTreeMap::new();
        if let (Self::Threads(after), Self::Threads(before)) = (self, before) {
            for (id, (name, time)) in after {
                let earlier = before.get(id).map_or(0, |(_, time)| *time);
                let name = name.trim_end_matches(|last: char| last.is_ascii_digit() || last == '-');
                *names.entry(name.to_owned()).or_default() += Duration::from_nanos(time.saturating_sub(earlier));
            }
        }
        names
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
