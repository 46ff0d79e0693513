use std::{fs, path::Path, thread};

use jiff::tz::TimeZone;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{Compression, Format, Retention, Rotation},
    telemetry::log::{archive::Shelf, rolling::RollingPlan},
};

const SOON: Duration = Duration::from_secs(20);

struct Stage {
    folder: TempDir,
    counters: Arc<SinkCounters>,
    sink: Arc<FileSink>,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    fn new(bounds: Bounds) -> Self {
        let counters = Arc::new(SinkCounters::default());
        let sink = Arc::new(FileSink::new(bounds, 1, Arc::clone(&counters)));
        Self { folder: tempfile::tempdir().unwrap(), counters, sink, complaints: Arc::default() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("app.log")
    }

    fn worker(&self, path: &Path, size: Option<u64>) -> Worker {
        let plan = RollingPlan {
            path: path.to_owned(),
            rotation: Rotation { size, every: None },
            timezone: TimeZone::UTC,
            clock: Clock::system(),
        };
        let shelf = Shelf::new(path, Retention::default(), Compression::None);
        let complaints = Arc::clone(&self.complaints);
        Worker {
            sink: Arc::clone(&self.sink),
            file: RollingFile::open(plan, shelf, |_| ()).unwrap(),
            style: Style { format: Format::Logfmt, color: false, journald: false, timezone: TimeZone::UTC },
            clock: Clock::system(),
            complain: Box::new(move |message| complaints.lock().unwrap().push(message.to_owned())),
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
    let archives = Shelf::new(&stage.path(), Retention::default(), Compression::None).list().unwrap();
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
    assert_eq!(stage.complaints.lock().unwrap().len(), 1);
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
    assert_eq!(stage.complaints.lock().unwrap().len(), 1);
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
