//! Which archives go, which are compressed, and the one thread that does both.
//!
//! It works at the start, after each rotation and every hour, beside the writing threads and never in their way: with
//! the lowest priority where a thread can have one of its own, and with pauses for the disk's sake.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use mlx_manager_config::{Compression, Retention};

use super::{
    archive::{Archive, Shelf},
    clock::Clock,
    counter::SinkCounters,
};

/// How often the shelves are looked at when nothing rotates.
pub const EVERY: Duration = Duration::from_secs(60 * 60);
/// Compression reads this much and then lets others run.
const PIECE_BYTES: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(2);

/// The thread that looks after all shelves.
pub struct Keeper {
    /// The shelves, each with the counters of its sink.
    pub shelves: Vec<(Shelf, Arc<SinkCounters>)>,
    /// The time.
    pub clock: Clock,
    /// A message for every rotation; the thread ends when nobody can send any more.
    pub rotations: Receiver<()>,
    /// How often the shelves are looked at when nothing rotates.
    pub every: Duration,
}

impl Keeper {
    /// Works until all senders are gone.
    pub fn run(self) {
        // Best effort: where it is refused, the pauses remain.
        drop(lower_priority());
        for (shelf, counters) in &self.shelves {
            if shelf.remove_leftovers().is_err() {
                counters.count_io_error();
            }
        }
        loop {
            for (shelf, counters) in &self.shelves {
                if tidy(shelf, self.clock.now()).is_err() {
                    counters.count_io_error();
                }
            }
            if self.rotations.recv_timeout(self.every) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

/// Gives the calling thread the least share of the processor. Linux only: elsewhere the same call is about the process.
#[cfg(target_os = "linux")]
fn lower_priority() -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, 19)?)
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() -> io::Result<()> {
    Ok(())
}

/// Deletes what is past its time and compresses what may be compressed.
///
/// # Errors
/// The first thing that went wrong; the rest was still tried.
pub fn tidy(shelf: &Shelf, now: Timestamp) -> io::Result<()> {
    let archives = shelf.list()?;
    let kept = kept(&archives, &shelf.retention, now);
    let (gone, kept) = archives.split_at(archives.len() - kept);
    let mut result = Ok(());
    for archive in gone {
        result = result.and(remove(&archive.path));
    }
    // The newest stays as it is for those who still read it.
    let older = kept.split_last().map_or(&[][..], |(_, older)| older);
    for archive in older.iter().filter(|archive| !archive.compressed) {
        result = result.and(compress(&archive.path, shelf.compression));
    }
    result
}

/// How many of the newest archives are kept; they are ordered from the oldest.
fn kept(archives: &[Archive], retention: &Retention, now: Timestamp) -> usize {
    let oldest =
        retention.age.and_then(|age| SignedDuration::try_from(age).ok()).and_then(|age| now.checked_sub(age).ok());
    let mut total = 0;
    archives
        .iter()
        .rev()
        .take(retention.files.unwrap_or(usize::MAX))
        .take_while(|archive| {
            total += archive.bytes;
            oldest.is_none_or(|oldest| archive.time >= oldest) && retention.total.is_none_or(|limit| total <= limit)
        })
        .count()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Compresses a file under a temporary name and renames it when it is whole.
fn compress(path: &Path, compression: Compression) -> io::Result<()> {
    let suffix = match compression {
        Compression::None => return Ok(()),
        Compression::Gzip => ".gz",
        Compression::Zstd => ".zst",
    };
    let with_suffix = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::path::PathBuf::from(name)
    };
    let temporary = with_suffix(&format!("{suffix}.tmp"));
    let mut source = File::open(path)?;
    // Locked as long as it grows: another keeper, of a daemon that is just ending, must neither share nor remove it.
    let target = match File::create_new(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        target => target?,
    };
    if let Err(TryLockError::WouldBlock) = target.try_lock() {
        return Ok(());
    }
    target.set_permissions(source.metadata()?.permissions())?;
    let copied = match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
            copy_slowly(&mut source, &mut encoder).and_then(|()| encoder.finish())
        }
        Compression::Zstd | Compression::None => zstd::Encoder::new(target, 0)
            .and_then(|mut encoder| copy_slowly(&mut source, &mut encoder).and_then(|()| encoder.finish())),
    };
    if let Err(error) = copied.and_then(|target| target.sync_all()) {
        remove(&temporary)?;
        return Err(error);
    }
    fs::rename(&temporary, with_suffix(suffix))?;
    remove(path)
}

/// Copies with pauses: a thread's priority says nothing about the disk.
fn copy_slowly(source: &mut impl Read, target: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = source.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        target.write_all(&piece[..length])?;
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        sync::{
            atomic::{AtomicI64, Ordering},
            mpsc,
        },
    };

    use super::*;

    fn archive(second: i64, bytes: u64) -> Archive {
        let time = Timestamp::from_second(second).unwrap();
        Archive { time, counter: 1, compressed: false, path: PathBuf::new(), bytes }
    }

    #[test]
    fn all_limits_hold_together() {
        let archives = [archive(10, 5), archive(20, 5), archive(30, 5), archive(40, 5)];
        let now = Timestamp::from_second(50).unwrap();
        let count = |age: Option<u64>, files, total| {
            kept(&archives, &Retention { age: age.map(Duration::from_secs), files, total }, now)
        };
        assert_eq!(count(None, None, None), 4);
        assert_eq!(count(Some(30), None, None), 3);
        assert_eq!(count(None, Some(2), None), 2);
        assert_eq!(count(None, Some(0), None), 0);
        assert_eq!(count(None, None, Some(14)), 2);
        assert_eq!(count(None, None, Some(15)), 3);
        assert_eq!(count(Some(30), Some(3), Some(9)), 1);
        assert_eq!(count(Some(5), Some(3), Some(100)), 0);
    }

    #[test]
    fn deletes_only_its_own_archives() {
        let folder = tempfile::tempdir().unwrap();
        let shelf_of = |name: &str| {
            let retention = Retention { files: Some(1), ..Retention::default() };
            Shelf::new(&folder.path().join(name), retention, Compression::None)
        };
        for name in ["app.log", "app.two.log"] {
            for second in [1, 2] {
                fs::write(folder.path().join(name), "x").unwrap();
                shelf_of(name).shelve(&folder.path().join(name), Timestamp::from_second(second).unwrap()).unwrap();
            }
        }
        fs::write(folder.path().join("archive/app.notes.log"), "mine").unwrap();
        tidy(&shelf_of("app.log"), Timestamp::from_second(9).unwrap()).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path().join("archive"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected = [
            "app.1970-01-01T00-00-02Z.0001.log",
            "app.notes.log",
            "app.two.1970-01-01T00-00-01Z.0001.log",
            "app.two.1970-01-01T00-00-02Z.0001.log",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn keeper_works_at_the_start_after_a_rotation_and_when_idle() {
        let folder = tempfile::tempdir().unwrap();
        let active = folder.path().join("app.log");
        let retention = Retention { age: Some(Duration::from_secs(100)), ..Retention::default() };
        let shelf = Shelf::new(&active, retention, Compression::Zstd);
        let add = |second: i64| {
            fs::write(&active, "x").unwrap();
            shelf.shelve(&active, Timestamp::from_second(second).unwrap()).unwrap();
        };
        let left = || {
            let archives = shelf.list().unwrap();
            archives.iter().map(|archive| (archive.time.as_second(), archive.compressed)).collect::<Vec<_>>()
        };
        let eventually = |expected: &[(i64, bool)]| {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while left() != expected {
                assert!(std::time::Instant::now() < deadline, "{:?}", left());
                thread::yield_now();
            }
        };
        let now = Arc::new(AtomicI64::new(200));
        let shown = Arc::clone(&now);
        let start = |every: Duration| {
            let shown = Arc::clone(&shown);
            let clock = Clock::new(move || Timestamp::from_second(shown.load(Ordering::Relaxed)).unwrap());
            let (rotated, rotations) = mpsc::channel();
            let shelves = vec![(shelf.clone(), Arc::default())];
            (rotated, thread::spawn(move || Keeper { shelves, clock, rotations, every }.run()))
        };
        [10, 150, 160].into_iter().for_each(add);
        let leftover = folder.path().join("archive/app.1970-01-01T00-02-30Z.0001.log.zst.tmp");
        fs::write(&leftover, "torn").unwrap();
        let (rotated, keeper) = start(EVERY);
        eventually(&[(150, true), (160, false)]);
        assert!(!leftover.exists());
        add(170);
        rotated.send(()).unwrap();
        eventually(&[(150, true), (160, true), (170, false)]);
        drop(rotated);
        keeper.join().unwrap();
        let (rotated, keeper) = start(Duration::from_millis(1));
        now.store(265, Ordering::Relaxed);
        eventually(&[(170, false)]);
        drop(rotated);
        keeper.join().unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_the_own_thread_steps_back() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let before = priority();
        let lowered = thread::spawn(move || {
            lower_priority().unwrap();
            priority()
        });
        assert_eq!((lowered.join().unwrap(), priority()), (19, before));
    }

    #[test]
    fn compresses_one_generation_late_and_cleans_up() {
        for (compression, suffix) in [(Compression::Gzip, "gz"), (Compression::Zstd, "zst")] {
            let folder = tempfile::tempdir().unwrap();
            let active = folder.path().join("app.log");
            let shelf = Shelf::new(&active, Retention::default(), compression);
            let text = "line\n".repeat(50_000);
            for second in [1, 2] {
                fs::write(&active, &text).unwrap();
                shelf.shelve(&active, Timestamp::from_second(second).unwrap()).unwrap();
            }
            let leftover = folder.path().join(format!("archive/app.1970-01-01T00-00-01Z.0001.log.{suffix}.tmp"));
            // Another keeper is at it.
            let busy = File::create(&leftover).unwrap();
            busy.lock().unwrap();
            shelf.remove_leftovers().unwrap();
            tidy(&shelf, Timestamp::from_second(9).unwrap()).unwrap();
            assert!(leftover.exists() && shelf.list().unwrap().iter().all(|archive| !archive.compressed));
            drop(busy);
            shelf.remove_leftovers().unwrap();
            assert!(!leftover.exists());
            tidy(&shelf, Timestamp::from_second(9).unwrap()).unwrap();
            let archives = shelf.list().unwrap();
            assert_eq!(archives.iter().map(|archive| archive.compressed).collect::<Vec<_>>(), [true, false]);
            let bytes = fs::read(&archives[0].path).unwrap();
            let mut unpacked = String::new();
            match compression {
                Compression::Gzip => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut unpacked).map(drop),
                _ => zstd::Decoder::new(&bytes[..]).unwrap().read_to_string(&mut unpacked).map(drop),
            }
            .unwrap();
            assert!(unpacked == text && bytes.len() < text.len() / 10);
        }
    }
}
