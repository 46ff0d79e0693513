//! A folder of encoded batches that wait for their endpoint: for each signal first in, first out, all of them bounded by
//! bytes and by age. It knows nothing of HTTP. The folder is a format that the next version reads, too:
//!
//! - A file per batch, `CREATED.SIGNAL.ITEMS.ENCODING`: 20 digits of microseconds since the epoch; `traces`, `metrics` or
//!   `logs`; how many items; `gz` or `pb` (plain). All that is needed to send it again is in its name, so nothing secret is
//!   ever written; the content is the request's body, and its length is not noted anywhere else. Other names are left alone.
//! - Order: by CREATED, which grows within a signal, also when the clock steps back. Signals may have the same one.
//! - A file appears by rename from `CREATED.SIGNAL.ITEMS.partial`, after its bytes are on the disk (`fdatasync`): it is
//!   complete or absent. The folder itself is not synced, so a power cut can cost the newest batches and no more, or bring
//!   back some that were removed, which are then sent twice.
//! - A crash leaves at most partial files, which the next start removes: their batches were never taken over.
//! - `.lock` is held (`flock`) as long as the folder is in use: a second process would send every batch again. A folder
//!   that is gone is made again, and held again.
//! - The oldest of all signals make room before a batch is written, so that the bytes of all files stay within the limit
//!   (those that an earlier run left may exceed it until then); on a full disk too. What is older than [`MAX_AGE`] goes. Whatever is let go is told to the caller as [`Lost`], once.
//! - The folder is read at the start only. A file that somebody took or cut later is found out when its turn comes.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use mlx_manager_config::Signal;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::cause::Cause;

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

impl Batch {
    /// Telemetry repeats itself: compressed it takes a tenth of the room, and at this level little time.
    pub(super) fn compress(&mut self) -> io::Result<()> {
        if !self.gzip {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&self.body)?;
            self.body = gzip.finish()?.into();
            self.gzip = true;
        }
        Ok(())
    }
}

/// Items that the spool let go of unsent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub signal: Signal,
    pub items: u64,
    pub cause: Cause,
}

/// A batch on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Microseconds since the epoch, unique and growing within a signal.
    created: u64,
    signal: Signal,
    gzip: bool,
    items: u64,
    size: u64,
}

impl Entry {
    pub(super) fn lost(&self, cause: Cause) -> Lost {
        Lost { signal: self.signal, items: self.items, cause }
    }

    pub(super) fn items(&self) -> u64 {
        self.items
    }

    fn file_name(&self) -> String {
        let encoding = if self.gzip { "gz" } else { "pb" };
        format!("{:020}.{}.{}.{encoding}", self.created, self.signal.as_str(), self.items)
    }

    fn parse(name: &str, size: u64) -> Option<Self> {
        let mut parts = name.split('.');
        let entry = Self {
            created: parts.next()?.parse().ok()?,
            signal: parts.next().and_then(|name| Signal::ALL.into_iter().find(|signal| signal.as_str() == name))?,
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

/// The folder of one destination.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    limit_bytes: u64,
    bytes: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By signal.
    queues: [VecDeque<Entry>; 3],
    bytes: u64,
    /// Holds the folder against a second process, which would send every batch again.
    _lock: File,
}

impl State {
    fn append(&mut self, entry: Entry) {
        self.bytes += entry.size;
        self.queues[entry.signal as usize].push_back(entry);
    }

    fn pop(&mut self, signal: Signal) -> Option<Entry> {
        let entry = self.queues[signal as usize].pop_front()?;
        self.bytes -= entry.size;
        Some(entry)
    }

    /// The oldest of all signals.
    fn pop_oldest(&mut self) -> Option<Entry> {
        let oldest = self.queues.iter().filter_map(VecDeque::front).min_by_key(|entry| entry.created)?.signal;
        self.pop(oldest)
    }
}

impl Spool {
    /// Opens a folder, creating it if need be, and takes over what an earlier run left there. An error too if another
    /// process has it.
    pub(super) fn open(dir: &Path, limit_bytes: u64) -> io::Result<Self> {
        let lock = create(dir)?;
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
        let mut state = State { queues: Default::default(), bytes: 0, _lock: lock };
        entries.into_iter().for_each(|entry| state.append(entry));
        let bytes = Arc::new(state.bytes.into());
        Ok(Self { dir: dir.to_owned(), limit_bytes, bytes, state: Mutex::new(state) })
    }

    /// Bytes on disk, for the gauge.
    pub(super) fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    pub(super) fn is_empty(&self, signal: Signal) -> bool {
        self.lock().queues[signal as usize].is_empty()
    }

    /// Appends a batch; the oldest ones make room for it, and on a full disk too. What is let go is added to `lost`, in
    /// case of an error too. A batch that can never fit is an error.
    pub(super) fn push(&self, batch: &Batch, now: SystemTime, lost: &mut Vec<Lost>) -> io::Result<Entry> {
        let mut state = self.lock();
        let pushed = self.append(&mut state, batch, now, lost, |entry| self.write(entry, &batch.body));
        self.bytes.store(state.bytes, Ordering::Relaxed);
        pushed
    }

    fn append(
        &self,
        state: &mut State,
        batch: &Batch,
        now: SystemTime,
        lost: &mut Vec<Lost>,
        mut write: impl FnMut(&Entry) -> io::Result<()>,
    ) -> io::Result<Entry> {
        let now = u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
        // A clock that steps back must not put a new batch before an older one.
        let last = state.queues[batch.signal as usize].back();
        let created = last.map_or(now, |last| now.max(last.created.saturating_add(1)));
        let size = batch.body.len() as u64;
        let entry = Entry { created, signal: batch.signal, gzip: batch.gzip, items: batch.items, size };
        if size > self.limit_bytes {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "a batch is larger than otlp.spool.size"));
        }
        while state.bytes + size > self.limit_bytes
            && let Some(oldest) = state.pop_oldest()
        {
            lost.push(oldest.lost(Cause::SpoolFull));
            remove_file(&self.path(&oldest))?;
        }
        while let Err(error) = write(&entry) {
            remove_file(&self.path(&entry).with_extension("partial"))?;
            match error.kind() {
                ErrorKind::NotFound if !self.dir.exists() => state._lock = create(&self.dir)?,
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    let Some(oldest) = state.pop_oldest() else { return Err(error) };
                    lost.push(oldest.lost(Cause::DiskFull));
                    remove_file(&self.path(&oldest))?;
                }
                _ => return Err(error),
            }
        }
        state.append(entry.clone());
        Ok(entry)
    }

    fn write(&self, entry: &Entry, body: &[u8]) -> io::Result<()> {
        let path = self.path(entry);
        let partial = path.with_extension("partial");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(body)?;
        file.sync_data()?;
        fs::rename(&partial, &path)
    }

    /// The batch of a signal to send next.
    pub(super) fn oldest(&self, signal: Signal) -> Option<Entry> {
        self.lock().queues[signal as usize].front().cloned()
    }

    /// The batch of an entry. `InvalidData` when somebody cut its file.
    pub(super) fn read(&self, entry: &Entry) -> io::Result<Batch> {
        let body = Bytes::from(fs::read(self.path(entry))?);
        if body.is_empty() || body.len() as u64 != entry.size {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(Batch { signal: entry.signal, gzip: entry.gzip, items: entry.items, body })
    }

    /// Forgets a batch, sent or not, and removes its file. The first is `false` for one that gave way to newer ones
    /// meanwhile.
    pub(super) fn remove(&self, entry: &Entry) -> (bool, io::Result<()>) {
        let mut state = self.lock();
        let known = state.queues[entry.signal as usize].front() == Some(entry) && state.pop(entry.signal).is_some();
        self.bytes.store(state.bytes, Ordering::Relaxed);
        (known, remove_file(&self.path(entry)))
    }

    /// Lets go of a signal's batches that nobody wants any more, and adds them to `lost`.
    pub(super) fn expire(&self, signal: Signal, now: SystemTime, lost: &mut Vec<Lost>) -> io::Result<()> {
        let mut state = self.lock();
        let mut removed = Ok(());
        while let Some(oldest) = state.queues[signal as usize].front() {
            let age = now.duration_since(UNIX_EPOCH + Duration::from_micros(oldest.created)).unwrap_or_default();
            if age <= MAX_AGE {
                break;
            }
            let Some(oldest) = state.pop(signal) else { break };
            lost.push(oldest.lost(Cause::TooOld));
            removed = removed.and(remove_file(&self.path(&oldest)));
        }
        self.bytes.store(state.bytes, Ordering::Relaxed);
        removed
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(entry.file_name())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Whether a file may well be read later: it is this process or the machine that lacks something.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// Creates a folder, if need be, and locks it.
fn create(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    lock(&dir.join(LOCK))
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
mod model;

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
        while let Some(entry) = spool.oldest(Signal::Traces) {
            bodies.push(String::from_utf8(spool.read(&entry).unwrap().body.to_vec()).unwrap());
            let (known, removed) = spool.remove(&entry);
            assert!(known && removed.is_ok());
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
        let entry = spool.oldest(Signal::Traces).unwrap();
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
        let mut lost = Vec::new();
        let error = spool.push(&batch("far too long", 8), now, &mut lost).unwrap_err();
        assert!(error.to_string().contains("otlp.spool.size") && lost.is_empty(), "{error}");
        assert_eq!(spool.bytes().load(Ordering::Relaxed), 6);
        assert_eq!(bodies(&spool), ["bbbb", "cc"]);
    }

    #[test]
    fn signals_have_queues_of_their_own_and_share_the_room() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let spool = Spool::open(dir.path(), 12).unwrap();
        let logs = |text: &'static str| Batch { signal: Signal::Logs, ..batch(text, 1) };
        push(&spool, &logs("log1"), now);
        push(&spool, &batch("one1", 2), now + Duration::from_secs(1));
        push(&spool, &logs("log2"), now + Duration::from_secs(2));
        let oldest = spool.oldest(Signal::Traces).unwrap();
        assert_eq!(spool.read(&oldest).unwrap().body, "one1", "what is before it is of another signal");
        assert_eq!(push(&spool, &batch("two2", 2), now + Duration::from_secs(3)), [1], "the oldest of all gave way");
        assert_eq!(bodies(&spool), ["one1", "two2"]);
        assert!(spool.is_empty(Signal::Traces) && !spool.is_empty(Signal::Logs));
        assert_eq!(spool.read(&spool.oldest(Signal::Logs).unwrap()).unwrap().body, "log2");
        assert_eq!(spool.bytes().load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_folder_that_is_gone_is_made_again_and_held_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("spool");
        let spool = Spool::open(&folder, 100).unwrap();
        push(&spool, &batch("lost", 5), SystemTime::now());
        fs::remove_dir_all(&folder).unwrap();
        assert!(push(&spool, &batch("kept", 6), SystemTime::now()).is_empty());
        let lost = spool.oldest(Signal::Traces).unwrap();
        assert_eq!(spool.read(&lost).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(spool.remove(&lost).0);
        assert_eq!(bodies(&spool), ["kept"]);
        assert!(Spool::open(&folder, 100).is_err(), "it has an owner");
    }

    #[test]
    fn on_a_full_disk_the_oldest_make_room_too() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        let now = SystemTime::now();
        for text in ["one", "two", "three"] {
            push(&spool, &batch(text, 1), now);
        }
        let mut lost = Vec::new();
        // There is room for two files.
        let write = |entry: &Entry| match fs::read_dir(dir.path()).unwrap().count() - 1 {
            0..2 => spool.write(entry, b"four"),
            _ => Err(ErrorKind::StorageFull.into()),
        };
        spool.append(&mut spool.lock(), &batch("four", 4), now, &mut lost, write).unwrap();
        assert_eq!(lost, [(); 2].map(|()| Lost { signal: Signal::Traces, items: 1, cause: Cause::DiskFull }));
        assert_eq!(bodies(&spool), ["three", "four"]);
        let full = |_: &Entry| Err(ErrorKind::StorageFull.into());
        let error = spool.append(&mut spool.lock(), &batch("five", 5), now, &mut lost, full).unwrap_err();
        assert!(error.kind() == ErrorKind::StorageFull && lost.len() == 2, "there is nothing to let go: {error}");
    }

    #[test]
    fn a_file_that_was_cut_is_no_batch() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        push(&spool, &batch("whole", 5), SystemTime::now());
        let entry = spool.oldest(Signal::Traces).unwrap();
        fs::write(spool.path(&entry), "who").unwrap();
        assert_eq!(spool.read(&entry).unwrap_err().kind(), ErrorKind::InvalidData);
        fs::write(spool.path(&entry), "").unwrap();
        drop(spool);
        let spool = Spool::open(dir.path(), 100).unwrap();
        let entry = spool.oldest(Signal::Traces).unwrap();
        assert_eq!(spool.read(&entry).unwrap_err().kind(), ErrorKind::InvalidData, "an empty one that was found");
    }

    #[test]
    fn a_folder_where_a_file_was_can_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        push(&spool, &batch("whole", 5), SystemTime::now());
        let entry = spool.oldest(Signal::Traces).unwrap();
        fs::remove_file(spool.path(&entry)).unwrap();
        fs::create_dir(spool.path(&entry)).unwrap();
        let error = spool.read(&entry).unwrap_err();
        assert!(!is_passing(&error), "{error}");
        let (known, removed) = spool.remove(&entry);
        assert!(known && removed.is_err() && spool.is_empty(Signal::Traces));
    }

    #[test]
    fn what_is_compressed_once_is_left_alone() {
        let mut batch = Batch { gzip: false, ..batch("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1) };
        let plain = batch.body.clone();
        batch.compress().unwrap();
        let once = batch.body.clone();
        batch.compress().unwrap();
        assert!(batch.gzip && batch.body == once && once.len() < plain.len());
        let mut unpacked = Vec::new();
        io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*once), &mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }

    #[test]
    fn a_day_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        let now = SystemTime::now();
        push(&spool, &batch("old", 3), now - Duration::from_hours(25));
        push(&spool, &batch("new", 4), now);
        let mut lost = Vec::new();
        spool.expire(Signal::Traces, now, &mut lost).unwrap();
        assert_eq!(lost, [Lost { signal: Signal::Traces, items: 3, cause: Cause::TooOld }]);
        assert_eq!(bodies(&spool), ["new"]);
    }
}
