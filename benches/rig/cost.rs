//! Who may use which core, and what a process used.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    process::{Command, Stdio},
    thread::available_parallelism,
    time::Duration,
};

use anyhow::Result;

/// How the cores are shared out: the gateway alone on one, load generator and peers on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    Pinned,
    /// The system has no `taskset`, or no second core.
    Shared,
}

const GATEWAY_CORE: &str = "0";
const LOAD_CORE: &str = "1";

impl Cores {
    /// Moves this process to its core. Call it before there are threads, since a runtime has as many as it sees cores.
    pub fn share_out() -> Self {
        if available_parallelism().map_or(1, usize::from) < 2 {
            return Self::Shared;
        }
        let moved = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", LOAD_CORE, &std::process::id().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if moved.is_ok_and(|status| status.success()) { Self::Pinned } else { Self::Shared }
    }

    /// A command that runs a gateway on its core.
    pub fn gateway(self, program: &OsStr) -> Command {
        match self {
            // It replaces itself by the program, which so has the id that we know.
            Self::Pinned => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", GATEWAY_CORE]).arg(program);
                command
            }
            Self::Shared => Command::new(program),
        }
    }
}

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

/// The resident memory of a process, in bytes.
pub fn resident(process: u32) -> Result<u64> {
    Ok(ps(process, "rss")?.parse::<u64>()? * 1024)
}

fn ps(process: u32, column: &str) -> Result<String> {
    let output = Command::new("ps").args(["-o", &format!("{column}="), "-p", &process.to_string()]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// `[[hours:]minutes:]seconds`, the way `ps` writes it.
fn duration(text: &str) -> Result<Duration> {
    let mut seconds = 0.0;
    for part in text.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>()?;
    }
    Ok(Duration::try_from_secs_f64(seconds)?)
}
