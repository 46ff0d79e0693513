use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use jiff::tz::TimeZone;
use mlx_manager_config::{Compression, Format, Retention, Rotation};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::log::{
    archive::Shelf,
    rolling::RollingPlan,
    verify::{Family, verify},
};

const SOON: Duration = Duration::from_secs(20);

fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

struct Stage {
    folder: TempDir,
    retention: Retention,
    counters: Arc<SinkCounters>,
    sink: Arc<FileSink>,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    fn new(bounds: Bounds) -> Self {
        let counters = Arc::new(SinkCounters::default());
        let sink = Arc::new(FileSink::new(bounds, 1, Arc::clone(&counters)));
        let folder = tempfile::tempdir().unwrap();
        Self { folder, retention: Retention::default(), counters, sink, complaints: Arc::default() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("app.log")
    }

    fn shelf(&self) -> Shelf {
        Shelf::new(&self.path(), self.retention.clone(), Compression::None)
    }

    fn worker(&self, path: &Path, size: Option<u64>) -> Worker {
        let plan = RollingPlan {
            path: path.to_owned(),
            rotation: Rotation { size, every: None },
            timezone: TimeZone::UTC,
            clock: Clock::system(),
        };
        let shelf = Shelf::new(path, self.retention.clone(), Compression::None);
        let complaints = Arc::clone(&self.complaints);
        Worker {
            sink: Arc::clone(&self.sink),
            file: RollingFile::open(plan, shelf, |_| ()).unwrap(),
            style: Style { format: Format::Logfmt, color: false, journald: false, timezone: TimeZone::UTC },
            clock: Clock::system(),
            complain: Box::new(move |message| complaints.lock().push(message.to_owned())),
        }
    }

    fn push(&self, text: &str, level: Level) {
        let text = format!("message={text} seq=\n");
        let sequence_at = Some(text.len() - 1);
        self.sink.push(&Rendered { text, sequence_at }, level, Timestamp::now());
    }

    fn flush(&self) -> bool {
        let asked = self.sink.ask_flush();
        self.sink.await_flush(asked, Instant::now() + SOON)
    }

    fn finish(&self, worker: thread::JoinHandle<()>) {
        self.sink.stop();
        worker.join().unwrap();
    }
}

fn sequences(text: &str) -> Vec<u64> {
    let number = |line: &str| {
        let at = line.find(" seq=").unwrap() + 5;
        line[at..].split(' ').next().unwrap().parse().unwrap()
    };
    text.lines().map(number).collect()
}

#[test]
fn flush_leaves_everything_on_disk_in_order_across_rotations() {
    let stage = Stage::new(Bounds::default());
    let worker = stage.worker(&stage.path(), Some(10_000));
    let worker = thread::spawn(|| worker.run());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5_000).for_each(|_| stage.push("x", Level::INFO)));
        }
    });
    assert!(stage.flush());
    let archives = stage.shelf().list().unwrap();
    assert!(archives.len() > 20);
    assert!(archives.iter().all(|archive| archive.bytes <= 10_000 && archive.bytes > 9_900));
    let paths = archives.into_iter().map(|archive| archive.path).chain([stage.path()]);
    let text: String = paths.map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(sequences(&text).into_iter().eq(1..=20_000));
    assert_eq!(stage.counters.written(Level::INFO), 20_000);
    stage.finish(worker);
}

#[test]
fn record_is_written_without_being_asked_to() {
    let stage = Stage::new(Bounds::default());
    let worker = stage.worker(&stage.path(), None);
    let worker = thread::spawn(|| worker.run());
    for (count, level) in [(1, Level::INFO), (2, Level::ERROR), (3, Level::TRACE)] {
        stage.push("x", level);
        let deadline = Instant::now() + SOON;
        while fs::read_to_string(stage.path()).unwrap().lines().count() < count {
            assert!(Instant::now() < deadline, "{level} was not written");
            thread::yield_now();
        }
    }
    stage.finish(worker);
}

#[test]
fn overload_sheds_info_before_warnings_and_says_so_in_the_file() {
    let stage = Stage::new(Bounds { records: 100, bytes: 1_000_000 });
    // Nobody writes yet.
    for _ in 0..90 {
        stage.push("info", Level::INFO);
    }
    for _ in 0..30 {
        stage.push("warning", Level::WARN);
    }
    let count = |level| stage.counters.dropped(level);
    assert_eq!((count(Level::INFO), count(Level::WARN)), (15, 5));
    let worker = stage.worker(&stage.path(), None);
    let worker = thread::spawn(|| worker.run());
    assert!(stage.flush());
    stage.push("after", Level::INFO);
    assert!(stage.flush());
    let text = fs::read_to_string(stage.path()).unwrap();
    let counts = ["=info", "=warning", "=after"].map(|text_part| text.matches(text_part).count());
    assert_eq!(counts, [75, 25, 1]);
    assert_eq!(text.matches("20 records lost between ").count(), 1);
    let expected = (1..=75).chain(91..=115).chain([121, 122]);
    assert!(sequences(&text).into_iter().eq(expected), "{:?}", sequences(&text));
    let family = verified(&stage);
    assert!(family.is_whole() && family.gaps.len() == 2, "{family:?}");
    stage.finish(worker);
}

#[test]
fn bytes_bound_the_queue_too() {
    let stage = Stage::new(Bounds { records: 1_000, bytes: 400 });
    for _ in 0..100 {
        stage.push("0123456789", Level::INFO);
    }
    assert!(stage.sink.lock().bytes.len() <= 300);
    assert!(stage.counters.dropped(Level::INFO) > 80);
}

#[test]
#[cfg(target_os = "linux")]
fn failing_disk_keeps_the_newest_and_recovers_by_itself() {
    let stage = Stage::new(Bounds { records: 40, bytes: 1_000_000 });
    // The device for this very purpose: every write to it finds no space.
    let full = stage.folder.path().join("full");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let worker = stage.worker(&full, None);
    let worker = thread::spawn(|| worker.run());
    stage.push("first", Level::ERROR);
    let deadline = Instant::now() + SOON;
    while stage.counters.io_errors() < 2 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    for index in 0..100 {
        stage.push(&format!("later{index}"), Level::WARN);
    }
    assert!(stage.counters.dropped(Level::WARN) >= 60);
    assert_eq!(stage.complaints.lock().len(), 1);
    // The disk comes back: the name now leads to a real file, which the worker finds by itself.
    let target = stage.folder.path().join("real");
    fs::write(&target, "").unwrap();
    fs::remove_file(&full).unwrap();
    std::os::unix::fs::symlink(&target, &full).unwrap();
    assert!(stage.flush());
    let text = fs::read_to_string(&target).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].contains("=first "), "{text}");
    assert!(lines[1].contains(" records lost between "), "{text}");
    assert!(lines.last().unwrap().contains("=later99 "), "{text}");
    assert_eq!(stage.complaints.lock().len(), 1);
    stage.finish(worker);
}

#[test]
fn only_an_error_is_urgent() {
    let stage = Stage::new(Bounds::default());
    for (level, urgent) in [(Level::WARN, false), (Level::ERROR, true)] {
        stage.push("x", level);
        assert_eq!(stage.sink.lock().urgent, urgent);
    }
    let job = stage.sink.next_job(&mut Pending::default());
    assert_eq!(job.batch.map(|batch| batch.entries.len()), Some(2));
    assert!(!stage.sink.lock().urgent);
}

#[test]
fn pieces_are_whole_records_within_the_room() {
    let entry = |length| Entry { length, sequence: 0, level: Level::INFO, timestamp: Timestamp::UNIX_EPOCH };
    let mut pending = Pending { entries: [10, 20, 70_000, 5].map(entry).into(), ..Pending::default() };
    assert_eq!(pending.piece(u64::MAX), 30);
    assert_eq!(pending.piece(29), 10);
    assert_eq!(pending.piece(0), 10);
    let counters = SinkCounters::default();
    // A write that took only a part of the second record.
    pending.advance(15, &counters);
    assert_eq!((pending.offset, pending.begun, counters.written(Level::INFO)), (10, 5, 1));
    pending.advance(15, &counters);
    assert_eq!((pending.offset, pending.begun), (30, 0));
    assert_eq!(pending.piece(u64::MAX), 70_000);
}

/// What a reader makes of the stage's files.
fn verified(stage: &Stage) -> Family {
    let archives = stage.shelf().list().unwrap().into_iter().map(|archive| archive.path);
    let mut families = verify(&archives.chain([stage.path()]).collect::<Vec<_>>());
    assert_eq!(families.len(), 1);
    families.remove(0)
}

#[test]
fn broken_disk_is_reported_once_and_costs_only_what_is_counted() {
    let stage = Stage::new(Bounds { records: 40, bytes: 1_000_000 });
    let mut worker = stage.worker(&stage.path(), None);
    let broken = Arc::new(AtomicBool::new(true));
    let fault = Arc::clone(&broken);
    let mut first = true;
    worker.file.fault = Some(Box::new(move || {
        let fails = fault.load(Ordering::Relaxed) && !mem::take(&mut first);
        fails.then(|| io::Error::from_raw_os_error(5))
    }));
    let worker = thread::spawn(|| worker.run());
    stage.push("first", Level::INFO);
    eventually(|| stage.counters.written(Level::INFO) == 1);
    stage.push("second", Level::ERROR);
    eventually(|| stage.counters.io_errors() > 2);
    (0..100).for_each(|_| stage.push("later", Level::INFO));
    (0..10).for_each(|_| stage.push("warning", Level::WARN));
    let dropped = stage.counters.dropped(Level::INFO) + stage.counters.dropped(Level::WARN);
    assert!(dropped >= 70, "{dropped}");
    assert!(!stage.sink.await_flush(stage.sink.ask_flush(), Instant::now() + Duration::from_millis(1)));
    broken.store(false, Ordering::Relaxed);
    assert!(stage.flush());
    assert_eq!(stage.complaints.lock().len(), 1, "{:?}", stage.complaints);
    let family = verified(&stage);
    assert!(family.is_whole() && !family.gaps.is_empty(), "{family:?}");
    let missing: u64 = family.gaps.iter().map(|gap| gap.count()).sum();
    // The record about them has one of their numbers.
    assert_eq!((missing, family.records), (dropped - 1, 112 - dropped + 1));
    stage.finish(worker);
}

#[test]
fn what_is_less_than_a_warning_gives_way_first_while_the_disk_fails() {
    let stage = Stage::new(Bounds { records: 40, bytes: 1_000_000 });
    let mut worker = stage.worker(&stage.path(), None);
    let broken = Arc::new(AtomicBool::new(true));
    let fault = Arc::clone(&broken);
    worker.file.fault = Some(Box::new(move || fault.load(Ordering::Relaxed).then(|| io::Error::from_raw_os_error(5))));
    let worker = thread::spawn(|| worker.run());
    stage.push("first", Level::ERROR);
    eventually(|| stage.counters.io_errors() > 2);
    let dropped = |level| stage.counters.dropped(level);
    for _ in 0..10 {
        stage.push("warning", Level::WARN);
        (0..50).for_each(|_| stage.push("info", Level::INFO));
    }
    assert!(dropped(Level::INFO) > 400);
    assert_eq!(dropped(Level::WARN), 0);
    // Nothing but warnings waits now: they make room for each other, and for nothing less.
    (0..60).for_each(|_| stage.push("warning", Level::WARN));
    let warnings = dropped(Level::WARN);
    assert!((30..60).contains(&warnings), "{warnings}");
    assert_eq!(stage.sink.lock().lesser, 0);
    (0..50).for_each(|_| stage.push("info", Level::INFO));
    assert_eq!(dropped(Level::WARN), warnings);
    broken.store(false, Ordering::Relaxed);
    assert!(stage.flush());
    let family = verified(&stage);
    assert!(family.is_whole() && family.gaps.len() > 1, "{family:?}");
    stage.finish(worker);
}

#[test]
fn what_a_disk_never_took_is_counted_and_missed() {
    let stage = Stage::new(Bounds::default());
    let mut worker = stage.worker(&stage.path(), None);
    let mut first = true;
    worker.file.fault = Some(Box::new(move || (!mem::take(&mut first)).then(|| io::Error::from_raw_os_error(5))));
    let worker = thread::spawn(|| worker.run());
    stage.push("first", Level::INFO);
    eventually(|| stage.counters.written(Level::INFO) == 1);
    stage.push("second", Level::ERROR);
    eventually(|| stage.counters.io_errors() > 1);
    (0..10).for_each(|_| stage.push("later", Level::WARN));
    let asked = stage.sink.ask_flush();
    stage.finish(worker);
    // Nobody waits for what will never come.
    assert!(!stage.sink.await_flush(asked, Instant::now() + SOON) && !stage.sink.is_flushed());
    assert_eq!((stage.counters.dropped(Level::ERROR), stage.counters.dropped(Level::WARN)), (1, 10));
    let complaints = stage.complaints.lock();
    assert!(complaints.len() == 2 && complaints[1].ends_with("to the end: 11 records are lost"), "{complaints:?}");
    // Numbers 1 to 12 are taken.
    assert_eq!(stage.worker(&stage.path(), None).file.noted_sequence().unwrap(), Some(13));
}

#[test]
fn shedding_is_told_now_and_then() {
    let stage = Stage::new(Bounds { records: 4, bytes: 1_000_000 });
    let rendered = Rendered { text: "message=x seq=\n".into(), sequence_at: Some(14) };
    let told = (0..9).map(|_| stage.sink.push(&rendered, Level::INFO, Timestamp::now()));
    assert_eq!(told.collect::<Vec<_>>(), [false, false, false, true, false, false, false, false, false]);
}

#[test]
fn full_disk_gives_up_old_archives_where_some_are_deleted_anyway() {
    for (retention, expected) in [(Retention::default(), 5), (Retention { files: Some(9), ..Retention::default() }, 1)]
    {
        let mut stage = Stage::new(Bounds::default());
        stage.retention = retention;
        for second in 1..=5 {
            fs::write(stage.path(), "x").unwrap();
            stage.shelf().shelve(&stage.path(), Timestamp::from_second(second).unwrap()).unwrap();
        }
        let mut worker = stage.worker(&stage.path(), None);
        let attempts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&attempts);
        worker.file.fault = Some(Box::new(move || {
            let full = count.fetch_add(1, Ordering::Relaxed) < 6;
            full.then(|| io::ErrorKind::StorageFull.into())
        }));
        let worker = thread::spawn(|| worker.run());
        stage.push("x", Level::ERROR);
        assert!(stage.flush());
        assert_eq!(stage.shelf().list().unwrap().len(), expected);
        assert_eq!((stage.complaints.lock().len(), stage.counters.io_errors()), (1, 6));
        stage.finish(worker);
    }
}

#[test]
fn outages_that_follow_each_other_are_reported_once() {
    let stage = Stage::new(Bounds::default());
    let mut worker = stage.worker(&stage.path(), None);
    let mut attempts = 0;
    worker.file.fault = Some(Box::new(move || {
        attempts += 1;
        (attempts % 2 == 1).then(|| io::Error::from_raw_os_error(5))
    }));
    let worker = thread::spawn(|| worker.run());
    for _ in 0..3 {
        stage.push("x", Level::ERROR);
        assert!(stage.flush());
    }
    assert_eq!((stage.complaints.lock().len(), stage.counters.io_errors()), (1, 3));
    stage.finish(worker);
}
