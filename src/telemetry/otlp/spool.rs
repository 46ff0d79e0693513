//! A folder of encoded batches that wait for their endpoint: first in, first out, bounded by bytes and by age.
//!
//! One file per batch; all that is needed to send it again is in its name, so nothing secret is ever written. A file
//! appears by rename, after its bytes are on the disk: it is complete or absent, also after a power cut, which can cost
//! the newest batches and no more. It knows nothing of HTTP.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use crate::config::Signal;

/// Logfire drops what is older than this, and a collector has little use for it.
const MAX_AGE: Duration = Duration::from_hours(24);

const LOCK: &str = ".lock";

/// An encoded request body.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub signal: Signal,
    /// Whether the body is compressed.
    pub gzip: bool,
    /// Spans, records or metric batches inside.
    pub items: u64,
    pub body: Bytes,
}

/// Items that the spool let go of unsent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub signal: Signal,
    pub items: u64,
}

/// A batch on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Microseconds since the epoch, unique and growing within a folder.
    created: u64,
    signal: Signal,
    gzip: bool,
    items: u64,
    size: u64,
}

impl Entry {
    pub(super) fn lost(&self) -> Lost {
        Lost { signal: self.signal, items: self.items }
    }

    fn file_name(&self) -> String {
        let encoding = if self.gzip { "gz" } else { "pb" };
        format!("{:020}.{}.{}.{encoding}", self.created, signal_name(self.signal), self.items)
    }

    fn parse(name: &str, size: u64) -> Option<Self> {
        let mut parts = name.split('.');
        let entry = Self {
            created: parts.next()?.parse().ok()?,
            signal: [Signal::Traces, Signal::Metrics, Signal::Logs]
                .into_iter()
                .zip([parts.next()?; 3])
                .find_map(|(signal, name)| (signal_name(signal) == name).then_some(signal))?,
            items: parts.next()?.parse().ok()?,
            gzip: match parts.next()? {
                "gz" => true,
                "pb" => false,
                _ => return None,
            },
            size,
        };
        parts.next().is_none().then_some(entry)
    }
}

/// The last part of a signal's path, `/v1/…`.
pub(super) fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "traces",
        Signal::Metrics => "metrics",
        Signal::Logs => "logs",
    }
}

/// The folder of one destination.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    limit_bytes: u64,
    bytes: Arc<AtomicU64>,
    entries: Mutex<VecDeque<Entry>>,
    /// Holds the folder against a second process, which would send every batch again.
    _lock: File,
}

impl Spool {
    /// Opens a folder, creating it if need be, and takes over what an earlier run left there. An error too if another
    /// process has it.
    pub(super) fn open(dir: &Path, limit_bytes: u64) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = lock(&dir.join(LOCK))?;
        let mut entries = Vec::new();
        for file in fs::read_dir(dir)? {
            let file = file?;
            let name = file.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(".partial") {
                // A crash came between writing and renaming: its batch was never taken over.
                fs::remove_file(file.path())?;
            } else if let Some(entry) = Entry::parse(name, file.metadata()?.len()) {
                entries.push(entry);
            }
        }
        entries.sort_unstable_by_key(|entry| entry.created);
        let spool = Self {
            dir: dir.to_owned(),
            limit_bytes,
            bytes: Arc::default(),
            entries: Mutex::new(entries.into()),
            _lock: lock,
        };
        spool.measure(&spool.lock());
        Ok(spool)
    }

    /// Bytes on disk, for the gauge.
    pub(super) fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Appends a batch; the oldest ones make room for it. What is let go is added to `lost`, in case of an error too; the
    /// batch itself only if it can never fit.
    pub(super) fn push(&self, batch: &Batch, now: SystemTime, lost: &mut Vec<Lost>) -> io::Result<()> {
        let mut entries = self.lock();
        let now = u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
        // A clock that steps back must not put a new batch before an older one.
        let created = entries.back().map_or(now, |last| now.max(last.created.saturating_add(1)));
        let size = batch.body.len() as u64;
        let entry = Entry { created, signal: batch.signal, gzip: batch.gzip, items: batch.items, size };
        if size > self.limit_bytes {
            lost.push(entry.lost());
            return Ok(());
        }
        while entries.iter().map(|entry| entry.size).sum::<u64>() + size > self.limit_bytes {
            let Some(oldest) = entries.pop_front() else { break };
            lost.push(oldest.lost());
            remove_file(&self.path(&oldest))?;
        }
        let path = self.path(&entry);
        let partial = path.with_extension("partial");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| file.write_all(&batch.body).and_then(|()| file.sync_data()))
            .and_then(|()| fs::rename(&partial, &path));
        if let Err(error) = written {
            remove_file(&partial)?;
            self.measure(&entries);
            return Err(error);
        }
        entries.push_back(entry);
        self.measure(&entries);
        Ok(())
    }

    /// The batch to send next.
    pub(super) fn oldest(&self) -> Option<Entry> {
        self.lock().front().cloned()
    }

    pub(super) fn read(&self, entry: &Entry) -> io::Result<Batch> {
        let body = Bytes::from(fs::read(self.path(entry))?);
        Ok(Batch { signal: entry.signal, gzip: entry.gzip, items: entry.items, body })
    }

    /// Forgets a batch, sent or not. One that gave way to newer ones meanwhile is gone already: then `false`.
    pub(super) fn remove(&self, entry: &Entry) -> io::Result<bool> {
        let mut entries = self.lock();
        let known = entries.iter().position(|other| other == entry).and_then(|index| entries.remove(index)).is_some();
        self.measure(&entries);
        remove_file(&self.path(entry))?;
        Ok(known)
    }

    /// Lets go of what nobody wants any more, and adds it to `lost`.
    pub(super) fn expire(&self, now: SystemTime, lost: &mut Vec<Lost>) -> io::Result<()> {
        let mut entries = self.lock();
        while let Some(oldest) = entries.front() {
            let age = now.duration_since(UNIX_EPOCH + Duration::from_micros(oldest.created)).unwrap_or_default();
            if age <= MAX_AGE {
                break;
            }
            let Some(oldest) = entries.pop_front() else { break };
            lost.push(oldest.lost());
            remove_file(&self.path(&oldest))?;
        }
        self.measure(&entries);
        Ok(())
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(entry.file_name())
    }

    fn measure(&self, entries: &VecDeque<Entry>) {
        self.bytes.store(entries.iter().map(|entry| entry.size).sum(), Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses it: give each its own otlp.spool.dir"))
        }
        // Some network file systems have no locks. A spool there is worth more than the check.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a file; that somebody else did so already is as good.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn batch(text: &'static str, items: u64) -> Batch {
        Batch { signal: Signal::Traces, gzip: true, items, body: Bytes::from_static(text.as_bytes()) }
    }

    fn push(spool: &Spool, batch: &Batch, time: SystemTime) -> Vec<u64> {
        let mut lost = Vec::new();
        spool.push(batch, time, &mut lost).unwrap();
        lost.into_iter().map(|lost| lost.items).collect()
    }

    fn bodies(spool: &Spool) -> Vec<String> {
        let mut bodies = Vec::new();
        while let Some(entry) = spool.oldest() {
            bodies.push(String::from_utf8(spool.read(&entry).unwrap().body.to_vec()).unwrap());
            assert!(spool.remove(&entry).unwrap());
        }
        bodies
    }

    #[test]
    fn batches_come_back_in_order_after_a_restart_and_a_clock_that_stepped_back() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let spool = Spool::open(dir.path(), 100).unwrap();
        for (text, time) in [("one", now), ("two", now - Duration::from_secs(60)), ("three", now)] {
            assert!(push(&spool, &batch(text, 1), time).is_empty());
        }
        fs::write(dir.path().join("00000000000000000001.traces.1.partial"), "torn").unwrap();
        drop(spool);

        let spool = Spool::open(dir.path(), 100).unwrap();
        assert_eq!(spool.bytes().load(Ordering::Relaxed), 11);
        let entry = spool.oldest().unwrap();
        assert_eq!((entry.signal, entry.gzip, entry.items), (Signal::Traces, true, 1));
        let mode = fs::metadata(spool.path(&entry)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(bodies(&spool), ["one", "two", "three"]);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, [LOCK], "nothing is left behind");
    }

    #[test]
    fn a_folder_belongs_to_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        let error = Spool::open(dir.path(), 100).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(spool);
        Spool::open(dir.path(), 100).unwrap();
    }

    #[test]
    fn the_oldest_make_room_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 8).unwrap();
        let now = SystemTime::now();
        assert!(push(&spool, &batch("aaaa", 5), now).is_empty());
        assert!(push(&spool, &batch("bbbb", 6), now).is_empty());
        assert_eq!(push(&spool, &batch("cc", 7), now), [5]);
        assert_eq!(push(&spool, &batch("far too long", 8), now), [8]);
        assert_eq!(spool.bytes().load(Ordering::Relaxed), 6);
        assert_eq!(bodies(&spool), ["bbbb", "cc"]);
    }

    #[test]
    fn a_folder_that_is_gone_is_an_error_and_not_a_loss_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("spool");
        let spool = Spool::open(&folder, 8).unwrap();
        push(&spool, &batch("aaaa", 5), SystemTime::now());
        fs::remove_dir_all(&folder).unwrap();
        let mut lost = Vec::new();
        assert!(spool.push(&batch("bbbbbb", 6), SystemTime::now(), &mut lost).is_err());
        assert_eq!(lost, [Lost { signal: Signal::Traces, items: 5 }], "it made room");
        assert!(spool.is_empty());
    }

    #[test]
    fn a_day_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        let now = SystemTime::now();
        push(&spool, &batch("old", 3), now - Duration::from_hours(25));
        push(&spool, &batch("new", 4), now);
        let mut lost = Vec::new();
        spool.expire(now, &mut lost).unwrap();
        assert_eq!(lost, [Lost { signal: Signal::Traces, items: 3 }]);
        assert_eq!(bodies(&spool), ["new"]);
    }
}
