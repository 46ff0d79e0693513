use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

use jiff::civil::{Weekday, time};
use mlx_manager_config::{Compression, Retention};
use tempfile::TempDir;

use super::*;

mod clock;

struct Stage {
    folder: TempDir,
    seconds: Arc<AtomicI64>,
    rotations: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
}

impl Stage {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            seconds: Arc::new(AtomicI64::new(1_000_000_000)),
            rotations: Arc::default(),
            failures: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("app.log")
    }

    fn shelf(&self) -> Shelf {
        Shelf::new(&self.path(), Retention::default(), Compression::None)
    }

    fn try_open(&self, rotation: Rotation, timezone: TimeZone) -> io::Result<RollingFile> {
        let seconds = Arc::clone(&self.seconds);
        let clock = Clock::new(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        let plan = RollingPlan { path: self.path(), rotation, timezone, clock };
        let (rotations, failures) = (Arc::clone(&self.rotations), Arc::clone(&self.failures));
        RollingFile::open(plan, self.shelf(), move |result| {
            let counter = if result.is_ok() { &rotations } else { &failures };
            counter.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn open(&self, rotation: Rotation) -> RollingFile {
        self.open_in(rotation, TimeZone::UTC)
    }

    fn open_in(&self, rotation: Rotation, timezone: TimeZone) -> RollingFile {
        self.try_open(rotation, timezone).unwrap()
    }

    fn archives(&self) -> Vec<String> {
        self.shelf().list().unwrap().iter().map(|archive| fs::read_to_string(&archive.path).unwrap()).collect()
    }

    fn active(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }
}

fn put(file: &mut RollingFile, line: &str) {
    file.make_room_for(line.len() as u64).unwrap();
    assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
}

fn size(limit: u64) -> Rotation {
    Rotation { size: Some(limit), every: None }
}

#[test]
fn rotates_before_a_record_would_cross_the_size() {
    let stage = Stage::new();
    let mut file = stage.open(size(10));
    for line in ["1234\n", "5678\n", "9\n", "larger than the limit\n", "x\n"] {
        put(&mut file, line);
    }
    assert_eq!(stage.archives(), ["1234\n5678\n", "9\n", "larger than the limit\n"]);
    assert_eq!(stage.active(), "x\n");
    assert_eq!(stage.rotations.load(Ordering::Relaxed), 3);
    assert_eq!(file.room(), 8);
    for path in stage.shelf().list().unwrap().iter().map(|archive| archive.path.clone()).chain([stage.path()]) {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o027, 0);
    }
}

#[test]
fn restart_continues_size_and_mends_torn_line() {
    let stage = Stage::new();
    put(&mut stage.open(size(10)), "1234\n");
    fs::write(stage.path(), "1234\n12").unwrap();
    let mut file = stage.open(size(21));
    assert_eq!(stage.active(), "1234\n12… (torn)\n");
    put(&mut file, "x\n");
    assert_eq!(stage.active(), "1234\n12… (torn)\nx\n");
    put(&mut file, "y\n");
    assert_eq!(stage.archives(), ["1234\n12… (torn)\nx\n"]);
}

#[test]
fn restart_in_a_later_period_rotates_and_in_the_same_does_not() {
    let stage = Stage::new();
    let daily = || Rotation { size: None, every: Some(Period::Day { at: time(0, 0, 0, 0) }) };
    fs::write(stage.path(), "old\n").unwrap();
    let written: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
    let touched = File::options().append(true).open(stage.path()).unwrap();
    touched.set_modified(written.into()).unwrap();
    stage.seconds.store(written.as_second() + 3_600, Ordering::Relaxed);
    let mut file = stage.open(daily());
    file.make_room_for(0).unwrap();
    assert_eq!(stage.active(), "old\n");
    drop(file);
    stage.seconds.store(written.as_second() + 12 * 3_600, Ordering::Relaxed);
    let mut file = stage.open(daily());
    put(&mut file, "new\n");
    assert_eq!((stage.archives(), stage.active()), (vec!["old\n".into()], "new\n".into()));
}

#[test]
fn size_and_period_hold_together_and_a_clock_that_steps_back_rotates_nothing() {
    let stage = Stage::new();
    let mut file = stage.open(Rotation { size: Some(10), every: Some(Period::Hour) });
    put(&mut file, "1234\n");
    stage.seconds.fetch_add(3_600, Ordering::Relaxed);
    put(&mut file, "5\n");
    assert_eq!(stage.archives(), ["1234\n"]);
    stage.seconds.fetch_sub(7_200, Ordering::Relaxed);
    put(&mut file, "6\n");
    assert_eq!((stage.archives().len(), stage.active()), (1, "5\n6\n".into()));
    put(&mut file, "7890123\n");
    assert_eq!(stage.active(), "7890123\n");
    // An empty period leaves no empty archive.
    drop(file);
    fs::write(stage.path(), "").unwrap();
    let mut file = stage.open(Rotation { size: None, every: Some(Period::Hour) });
    stage.seconds.fetch_add(7_200, Ordering::Relaxed);
    file.make_room_for(0).unwrap();
    assert_eq!(stage.archives().len(), 2);
}

#[test]
fn renamed_or_deleted_file_is_opened_anew() {
    let stage = Stage::new();
    let mut file = stage.open(size(100));
    put(&mut file, "a\n");
    let moved = stage.folder.path().join("moved");
    fs::rename(stage.path(), &moved).unwrap();
    file.next_look = Instant::now();
    file.look_after().unwrap();
    put(&mut file, "b\n");
    fs::remove_file(stage.path()).unwrap();
    file.next_look = Instant::now();
    file.look_after().unwrap();
    put(&mut file, "c\n");
    assert_eq!((fs::read_to_string(moved).unwrap(), stage.active()), ("a\n".into(), "c\n".into()));
    assert_eq!(file.generation(), 2);
    // Cut by somebody else: the room is back.
    fs::write(stage.path(), "").unwrap();
    file.next_look = Instant::now();
    file.look_after().unwrap();
    assert_eq!((file.room(), file.generation()), (100, 3));
}

#[test]
fn file_that_cannot_be_opened_anew_is_tried_again_before_the_next_write() {
    let stage = Stage::new();
    let mut file = stage.open(size(100));
    let folder = stage.folder.path().to_owned();
    let moved = folder.with_extension("moved");
    fs::rename(&folder, &moved).unwrap();
    fs::write(&folder, "a file where the folder was").unwrap();
    file.next_look = Instant::now();
    for _ in 0..3 {
        assert!(file.look_after().is_err());
    }
    fs::remove_file(&folder).unwrap();
    fs::rename(&moved, &folder).unwrap();
    file.look_after().unwrap();
    put(&mut file, "a\n");
    assert_eq!(stage.active(), "a\n");
}

#[test]
fn lock_file_keeps_the_number_with_which_a_file_begins() {
    let stage = Stage::new();
    let file = stage.open(size(100));
    assert_eq!(file.noted_sequence().unwrap(), None);
    for number in [u64::MAX, 7] {
        file.note_sequence(number).unwrap();
        assert_eq!(file.noted_sequence().unwrap(), Some(number));
    }
    drop(file);
    assert_eq!(stage.open(size(100)).noted_sequence().unwrap(), Some(7));
}

#[test]
fn second_writer_is_refused_also_after_rotation() {
    let stage = Stage::new();
    let mut file = stage.open(size(3));
    let refused = || stage.try_open(size(3), TimeZone::UTC).err().map(|error| error.kind());
    assert_eq!(refused(), Some(io::ErrorKind::WouldBlock));
    put(&mut file, "a\n");
    put(&mut file, "b\n");
    assert_eq!(stage.archives(), ["a\n"]);
    assert_eq!(refused(), Some(io::ErrorKind::WouldBlock));
    drop(file);
    assert_eq!(refused(), None);
}

#[test]
fn lock_that_was_taken_away_is_taken_anew() {
    let stage = Stage::new();
    let mut file = stage.open(size(100));
    let refused = || stage.try_open(size(100), TimeZone::UTC).err().map(|error| error.kind());
    let lock = lock_of(&stage.path());
    let mut look = || {
        file.next_look = Instant::now();
        file.look_after()
    };
    // With everything else, and alone.
    for gone in [vec![&stage.path(), &lock], vec![&lock]] {
        gone.into_iter().for_each(|path| fs::remove_file(path).unwrap());
        look().unwrap();
        assert_eq!(refused(), Some(io::ErrorKind::WouldBlock));
    }
    // Another daemon was faster.
    fs::remove_file(&lock).unwrap();
    let other = stage.open(size(100));
    assert_eq!(look().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(other);
    look().unwrap();
    assert_eq!(refused(), Some(io::ErrorKind::WouldBlock));
}

#[test]
fn lock_that_cannot_be_opened_is_named() {
    let stage = Stage::new();
    fs::create_dir(lock_of(&stage.path())).unwrap();
    let error = stage.try_open(size(100), TimeZone::UTC).err().unwrap().to_string();
    assert!(error.contains("/.app.log.lock: "), "{error}");
}

#[test]
fn device_is_never_moved_and_has_nothing_beside_it() {
    let stage = Stage::new();
    std::os::unix::fs::symlink("/dev/null", stage.path()).unwrap();
    let mut file = stage.open(Rotation { size: Some(3), every: Some(Period::Hour) });
    let other = stage.open(size(3));
    for _ in 0..9 {
        put(&mut file, "a\n");
        stage.seconds.fetch_add(3600, Ordering::Relaxed);
        file.next_look = Instant::now();
        file.look_after().unwrap();
    }
    file.note_sequence(7).unwrap();
    assert_eq!((file.generation(), file.room(), other.noted_sequence().unwrap()), (0, u64::MAX, None));
    let names: Vec<_> = fs::read_dir(&stage.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["app.log"]);
    assert_eq!(stage.path().read_link().unwrap(), Path::new("/dev/null"));
}

#[test]
fn link_put_in_place_of_the_file_is_not_moved() {
    let stage = Stage::new();
    let mut file = stage.open(size(3));
    let target = stage.folder.path().join("target");
    fs::rename(stage.path(), &target).unwrap();
    std::os::unix::fs::symlink(&target, stage.path()).unwrap();
    for line in ["a\n", "b\n"] {
        put(&mut file, line);
    }
    assert_eq!(stage.failures.load(Ordering::Relaxed), 1);
    assert_eq!((fs::read_to_string(target).unwrap(), stage.archives()), ("a\nb\n".into(), vec![]));
}

#[test]
fn rotation_that_fails_loses_nothing() {
    let stage = Stage::new();
    let mut file = stage.open(size(3));
    let obstacle = stage.folder.path().join("archive");
    fs::write(&obstacle, "a file where the folder should be").unwrap();
    for line in ["a\n", "b\n", "c\n"] {
        put(&mut file, line);
    }
    assert_eq!(stage.active(), "a\nb\nc\n");
    assert_eq!(stage.failures.load(Ordering::Relaxed), 1);
    fs::remove_file(obstacle).unwrap();
    file.next_rotation = Instant::now();
    put(&mut file, "d\n");
    assert_eq!((stage.archives(), stage.active()), (vec!["a\nb\nc\n".into()], "d\n".into()));
}

#[test]
fn period_ends() {
    let day = |hour, minute| Period::Day { at: time(hour, minute, 0, 0) };
    let week = Period::Week { on: Weekday::Monday, at: time(6, 0, 0, 0) };
    let cases = [
        (Period::Hour, "UTC", "2026-11-20T23:11:34Z", "2026-11-21T00:00:00Z"),
        (Period::Hour, "UTC", "2026-11-20T23:00:00Z", "2026-11-21T00:00:00Z"),
        (Period::Hour, "Asia/Kolkata", "2026-11-20T23:11:34Z", "2026-11-20T23:30:00Z"),
        (day(0, 0), "UTC", "2026-11-20T23:11:34Z", "2026-11-21T00:00:00Z"),
        (day(0, 0), "UTC", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
        (day(0, 0), "Europe/Berlin", "2026-11-20T23:11:34Z", "2026-11-21T23:00:00Z"),
        // The clocks skip 02:30 on 2026-03-29 in Berlin, and show it twice on 2026-10-25.
        (day(2, 30), "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z"),
        (day(2, 30), "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
        (day(2, 30), "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        (Period::Hour, "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z"),
        (Period::Hour, "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"),
        (week, "UTC", "2026-11-20T23:11:34Z", "2026-11-23T06:00:00Z"),
        (week, "UTC", "2026-11-23T05:00:00Z", "2026-11-23T06:00:00Z"),
        (week, "UTC", "2026-11-23T06:00:00Z", "2026-11-30T06:00:00Z"),
    ];
    for (period, timezone, moment, expected) in cases {
        let end = period_end(period, moment.parse().unwrap(), &TimeZone::get(timezone).unwrap());
        assert_eq!(end, Some(expected.parse().unwrap()), "{period:?} {timezone} {moment}");
    }
}
