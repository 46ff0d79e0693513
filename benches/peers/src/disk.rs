//! What arrived: lines in files, and pipes in place of files that stand still for a while.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::peer::FILES;

/// What every event's line holds, and no other line.
const EVENT: &[u8] = b"request finished";
/// A pipe stands still this long after its first bytes.
const STANDS_STILL_AFTER: Duration = Duration::from_secs(1);

/// Counts whole lines of events in all files of a folder and those below it.
pub fn lines_below(folder: &Path) -> Result<u64> {
    let mut lines = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        lines += if entry.file_type()?.is_dir() {
            lines_below(&entry.path())?
        } else {
            lines_of(File::open(entry.path())?)?
        };
    }
    Ok(lines)
}

fn lines_of(source: impl Read) -> Result<u64> {
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    let mut lines = 0;
    while source.read_until(b'\n', &mut line)? > 0 {
        lines += u64::from(line.ends_with(b"\n") && line.windows(EVENT.len()).any(|part| part == EVENT));
        line.clear();
    }
    Ok(lines)
}

/// Named pipes under the names of the log files. While nobody reads, a write into one waits, as on a disk that hangs.
pub struct Pipes {
    /// Keep the pipes from ending while a logger closes and opens them.
    held: Vec<File>,
    readers: Vec<JoinHandle<Result<u64>>>,
}

impl Pipes {
    pub fn open(folder: &Path, stall: Duration) -> Result<Self> {
        let mut pipes = Self { held: Vec::new(), readers: Vec::new() };
        for file in FILES {
            let path: PathBuf = folder.join(format!("{file}.log"));
            let made = Command::new("mkfifo").arg(&path).status().context("mkfifo can't be started")?;
            ensure!(made.success(), "mkfifo can't make {}", path.display());
            pipes.held.push(OpenOptions::new().read(true).write(true).open(&path)?);
            let reader = File::open(&path)?;
            pipes
                .readers
                .push(thread::spawn(move || lines_of(Stalling { reader, stall, since: None, stalled: false })));
        }
        Ok(pipes)
    }

    /// Once the logger is gone: how many lines came out.
    pub fn close(self) -> Result<u64> {
        drop(self.held);
        self.readers.into_iter().map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?).sum()
    }
}

/// A reader that stands still once.
struct Stalling {
    reader: File,
    stall: Duration,
    since: Option<Instant>,
    stalled: bool,
}

impl Read for Stalling {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.stalled && self.since.is_some_and(|since| since.elapsed() >= STANDS_STILL_AFTER) {
            self.stalled = true;
            thread::sleep(self.stall);
        }
        let read = self.reader.read(buffer)?;
        self.since = self.since.or_else(|| Some(Instant::now()));
        Ok(read)
    }
}
