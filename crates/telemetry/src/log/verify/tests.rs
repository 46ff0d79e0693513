use std::fs;

use tempfile::TempDir;

use super::*;
use crate::log::loss::TARGET;

struct Stage(TempDir);

impl Stage {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn spot(&self, name: &str, line: u64) -> Spot {
        Spot { path: self.0.path().join(name), line }
    }

    /// One family from one file of these lines.
    fn judge(&self, text: &str) -> Family {
        let path = self.write("app.log", text);
        let mut families = verify(&[path]);
        assert_eq!(families.len(), 1);
        families.remove(0)
    }
}

fn lines(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().map(|number| format!("message=x seq={number}\n")).collect()
}

fn loss(sequence: u64, count: u64, first: u64, last: u64) -> String {
    format!("target={TARGET} seq={sequence} lost={count} lost_first={first} lost_last={last}\n")
}

fn ranges(family: &Family) -> Vec<(u64, u64, bool)> {
    family.gaps.iter().map(|gap| (gap.first, gap.last, gap.explained_by.is_some())).collect()
}

#[test]
fn family_is_whole_in_any_order_and_form() {
    let stage = Stage::new();
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let json: String = (30..40).map(|number| format!("{{\"target\":\"a\",\"seq\":{number}}}\n")).collect();
    let paths = [
        stage.write("logs/app.log", json),
        stage.write(
            "logs/archive/app.2026-01-01T00-00-02Z.0001.log.zst",
            zstd::encode_all(lines(10..20).as_bytes(), 0).unwrap(),
        ),
        stage.write("logs/archive/app.2026-01-01T00-00-03Z.0001.log", lines(20..30)),
        stage.write("logs/archive/app.2026-01-01T00-00-01Z.0001.log.gz", gzip(&lines(5..10))),
        // Compressed already, and not yet deleted.
        stage.write("logs/archive/app.2026-01-01T00-00-01Z.0001.log", lines(5..10)),
        // In the middle of it.
        stage.write("logs/archive/app.2026-01-01T00-00-03Z.0001.log.gz.tmp", "garbage"),
        // The same file by another name.
        stage.0.path().join("logs/archive/../app.log"),
        stage.write("logs/other.log.1", lines([1])),
        stage.write("logs/other.log-20260101-1767225600.gz", gzip(&lines([0]))),
    ];
    let families = verify(&paths);
    let judged: Vec<_> =
        families.iter().map(|family| (family.files, family.records, family.numbers, family.is_whole())).collect();
    assert_eq!(judged, [(4, 35, Some((5, 39)), true), (2, 2, Some((0, 1)), true)]);
    assert!(families[0].name.ends_with("logs/app.log") && families[1].name.ends_with("logs/other.log"));
}

#[test]
fn family_is_one_however_its_files_are_spelled() {
    let stage = Stage::new();
    stage.write("logs/archive/app.2026-01-01T00-00-01Z.0001.log", lines([1]));
    let archive = stage.0.path().join("logs/../logs/archive/app.2026-01-01T00-00-01Z.0001.log");
    for name in ["logs/app", "logs/app.log"] {
        let path = stage.write(name, lines([3]));
        let families = verify(&[archive.clone(), path.clone()]);
        assert_eq!(families.len(), 1, "{families:?}");
        assert!(families[0].name == path && ranges(&families[0]) == [(2, 2, false)], "{families:?}");
    }
}

#[test]
fn brothers_are_no_twins() {
    let stage = Stage::new();
    let gzip = |text: String| zstd::encode_all(text.as_bytes(), 0).unwrap();
    let paths = [
        stage.write("app.log", lines([4])),
        stage.write("app.log.2", lines([0, 1])),
        // Younger, because compression was switched on between the two.
        stage.write("app.log.2.zst", gzip(lines([2, 3]))),
        // Twins: logrotate has not deleted the plain one yet.
        stage.write("twin.log.1", lines([0, 1])),
        stage.write("twin.log.1.zst", gzip(lines([0, 1]))),
    ];
    let judged: Vec<_> =
        verify(&paths).iter().map(|family| (family.files, family.records, family.is_whole())).collect();
    assert_eq!(judged, [(3, 5, true), (1, 2, true)]);
}

#[test]
fn link_and_file_are_one_family() {
    let stage = Stage::new();
    stage.write("real/app.log", lines([2]));
    let archive = stage.write("real/archive/app.2026-01-01T00-00-01Z.0001.log", lines([1]));
    let link = stage.0.path().join("link.log");
    std::os::unix::fs::symlink("real/app.log", &link).unwrap();
    let families = verify(&[link, archive]);
    assert_eq!(families.iter().map(|family| (family.files, family.is_whole())).collect::<Vec<_>>(), [(2, true)]);
}

#[test]
fn rotation_between_listing_and_reading_leaves_no_gap() {
    let stage = Stage::new();
    let active = stage.write("app.log", lines([1]));
    let archives = std::cell::RefCell::new(vec![stage.write("archive/app.2026-01-01T00-00-01Z.0001.log", lines([0]))]);
    let listed = || [&[active.clone()][..], &archives.borrow()].concat();
    let first = listed();
    let last = std::cell::Cell::new(1);
    let rotate = || {
        let next = last.get() + 1;
        last.set(next);
        let archive = stage.0.path().join(format!("archive/app.2026-01-01T00-00-02Z.{next:04}.log"));
        fs::rename(&active, &archive).unwrap();
        archives.borrow_mut().push(archive);
        stage.write("app.log", lines([next]));
    };
    rotate();
    let listings = std::cell::Cell::new(0);
    let list = || {
        let found = listed();
        listings.set(listings.get() + 1);
        // Twice between listing and opening, and once after the opening.
        if [1, 3, 5].contains(&listings.get()) {
            rotate();
        }
        // A name may be missing for a moment.
        if listings.get() == 2 { None } else { Some(found) }
    };
    let families = verify_live(first, list);
    assert!(families[0].is_whole() && families[0].numbers == Some((0, 4)), "{families:?}");
    // What retention deletes meanwhile is no gap.
    let gone = archives.borrow()[0].clone();
    fs::remove_file(&gone).unwrap();
    let families = verify(&listed());
    assert!(families[0].is_whole() && families[0].numbers == Some((1, 5)), "{families:?}");
}

#[test]
fn archive_may_be_compressed_after_it_was_named() {
    let stage = Stage::new();
    let name = "archive/app.2026-01-01T00-00-02Z.0001.log";
    stage.write(&format!("{name}.zst"), zstd::encode_all(lines(1..5).as_bytes(), 0).unwrap());
    let families = verify(&[stage.0.path().join(name), stage.write("app.log", lines([5]))]);
    assert_eq!((families[0].records, families[0].is_whole()), (5, true));
    assert!(!verify(&[stage.0.path().join("gone.log")])[0].is_whole());
}

#[test]
fn gap_lies_between_two_lines_and_only_a_full_account_explains_it() {
    let stage = Stage::new();
    let family = stage.judge(&(lines([1, 2]) + &lines([5, 6])));
    assert_eq!(ranges(&family), [(3, 4, false)]);
    assert_eq!((&family.gaps[0].after, &family.gaps[0].before), (&stage.spot("app.log", 2), &stage.spot("app.log", 3)));
    assert!(!family.is_whole());

    let family = stage.judge(&(lines([1, 2]) + &lines([5, 6]) + &loss(7, 2, 3, 4)));
    assert_eq!(ranges(&family), [(3, 4, true)]);
    assert_eq!(family.gaps[0].explained_by, Some(stage.spot("app.log", 5)));
    assert!(family.is_whole());

    // One more is missing than was counted.
    let family = stage.judge(&(lines([1, 2, 6]) + &loss(7, 2, 3, 5)));
    assert!(!family.is_whole() && ranges(&family) == [(3, 5, false)]);
    // Right beside what was counted.
    let family = stage.judge(&(lines([1, 2, 6]) + &loss(7, 2, 3, 4)));
    assert!(!family.is_whole());
    assert_eq!(ranges(&family), [(3, 4, true), (5, 5, false)]);
    // More was counted than is missing.
    let family = stage.judge(&(lines([1, 2, 4]) + &loss(5, 2, 2, 3)));
    assert_eq!(family.faults, [Fault::Miscount { counted: 2, missing: 1, spot: stage.spot("app.log", 4) }]);
    assert!(!family.is_whole());
}

#[test]
fn overlapping_losses_are_counted_together() {
    let stage = Stage::new();
    // Of 1 to 8, two were shed, five gave way later, and the record about these has the last of their numbers.
    let family = stage.judge(&(lines([0]) + &loss(8, 6, 1, 8) + &lines([9]) + &loss(10, 2, 3, 6)));
    assert_eq!(ranges(&family), [(1, 7, true)]);
    assert!(family.is_whole());
    // What an older file held can't be counted, and need not be.
    let family = stage.judge(&(lines([6]) + &loss(8, 6, 1, 8) + &loss(9, 2, 3, 7)));
    assert_eq!(ranges(&family), [(7, 7, true)]);
    assert!(family.is_whole());
}

#[test]
fn everything_strange_is_named_with_its_line() {
    let stage = Stage::new();
    let text = lines([1, 2, 3])
        + "noise\nmore noise\n"
        + &lines([2, 3, 4])
        + "a=1 seq=5… (torn)\n"
        + &lines([5])
        + "a=1 seq=6";
    let family = stage.judge(&text);
    let spot = |line| stage.spot("app.log", line);
    let expected = [
        Fault::Foreign { spot: spot(4), lines: 2 },
        Fault::Backwards { sequence: 2, after: 3, spot: spot(6) },
        Fault::Torn(spot(9)),
        Fault::Torn(spot(11)),
        Fault::Twice { numbers: 2..=3, first: spot(2), again: spot(6) },
    ];
    assert_eq!(family.faults, expected);
    assert_eq!((family.numbers, family.gaps.len(), family.is_whole()), (Some((1, 5)), 0, false));
    // Neither of these says anything about numbers.
    let family = stage.judge(&(lines([1]) + "noise\n" + &lines([2]) + "torn"));
    assert!(family.is_whole() && family.faults.len() == 2);
}

#[test]
fn text_proves_nothing() {
    let stage = Stage::new();
    let family = stage.judge("2026-11-20T23:11:34.123456Z | ERROR    | a:1 - failed\n    in a > b\n    caused by: c\n");
    assert_eq!((family.text, family.faults.len(), family.has_no_numbers()), (3, 0, true));
    assert!(stage.judge("something else\n").has_no_numbers());
    assert!(!stage.judge("").has_no_numbers() && stage.judge("").is_whole());
}

#[test]
fn file_that_cannot_be_read_breaks_the_proof() {
    let stage = Stage::new();
    let families = verify(&[stage.write("app.log.1.gz", "broken"), stage.write("app.log", lines([1]))]);
    assert_eq!(families.len(), 1);
    assert!(matches!(&families[0].faults[..], [Fault::Unreadable { path, .. }] if path.ends_with("app.log.1.gz")));
    assert!(!families[0].is_whole());
}
