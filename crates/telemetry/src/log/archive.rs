//! Archives of one sink: their names, and the folder that they stand in.
//!
//! Names are parsed, never matched by a prefix: whatever else lies in the folder is left alone.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use mlx_manager_config::{Compression, Retention};

/// The time in an archive's name, UTC, without colons for the sake of other file systems.
const TIME_FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";

/// A clock that steps back by more than this was plainly wrong before, and its archives are not waited for.
const MOST_STEP: SignedDuration = SignedDuration::from_hours(24);

/// An archive in the folder, older ones ordered first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Archive {
    /// When it was archived, to the second.
    pub time: Timestamp,
    /// Tells archives of the same second apart.
    pub counter: u32,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Whether a file's name says that it is compressed.
pub fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz" || extension == "zst")
}

/// Whether a file's name says that it is being compressed, so that the plain archive is still there.
pub fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tmp") && is_compressed(&path.with_extension(""))
}

/// Opens a log file for reading, whether it is compressed or not.
///
/// # Errors
/// What the file system says.
pub fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let file = File::open(path)?;
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(file))),
        Some("zst") => Box::new(zstd::Decoder::new(file)?),
        _ => Box::new(file),
    })
}

/// The archives of one active file, in the folder `archive` beside it.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
    stem: String,
    extension: String,
    /// Which archives are kept.
    pub retention: Retention,
    /// How they are compressed.
    pub compression: Compression,
}

impl Shelf {
    /// The shelf of an active file.
    pub fn new(active: &Path, retention: Retention, compression: Compression) -> Self {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        Self {
            folder: active.with_file_name("archive"),
            stem: text(active.file_stem()),
            extension: text(active.extension().or(Some("log".as_ref()))),
            retention,
            compression,
        }
    }

    /// Moves the active file onto the shelf.
    ///
    /// # Errors
    /// What the file system says; the active file then stays where it is. So does one in whose place somebody put a link
    /// or a device: what is behind it would be lost.
    pub fn shelve(&self, active: &Path, now: Timestamp) -> io::Result<()> {
        if !fs::symlink_metadata(active)?.is_file() {
            return Err(io::Error::other("it is no regular file any more"));
        }
        fs::create_dir_all(&self.folder)?;
        let newest = self.list()?.pop();
        // The order of names is the order of writing, also when the clock steps back.
        let (time, counter) = match newest {
            Some(newest)
                if newest.time.as_second() >= now.as_second() && newest.time.duration_since(now) <= MOST_STEP =>
            {
                (newest.time, newest.counter + 1)
            }
            _ => (now, 1),
        };
        let time = time.strftime(TIME_FORMAT);
        let name = format!("{}.{time}.{counter:04}.{}", self.stem, self.extension);
        fs::rename(active, self.folder.join(name))
    }

    /// All archives, the oldest first.
    ///
    /// # Errors
    /// What the file system says; a missing folder is an empty one.
    pub fn list(&self) -> io::Result<Vec<Archive>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut archives = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some((time, counter, suffix)) = name.to_str().and_then(|name| self.parse(name)) else {
                continue;
            };
            let compressed = match suffix {
                "" => false,
                ".gz" | ".zst" => true,
                _ => continue,
            };
            // Somebody else may clean up too: what is gone needs no attention.
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                archives.push(Archive { time, counter, compressed, path: entry.path(), bytes: metadata.len() });
            }
        }
        archives.sort_unstable();
        Ok(archives)
    }

    /// Deletes what a compression left behind when the daemon was killed, and nothing that still grows.
    ///
    /// # Errors
    /// What the file system says; a missing folder has no leftovers.
    pub fn remove_leftovers(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if let Some((_, _, ".gz.tmp" | ".zst.tmp")) = entry.file_name().to_str().and_then(|name| self.parse(name)) {
                let leftover = File::open(entry.path())?;
                if !matches!(leftover.try_lock(), Err(TryLockError::WouldBlock)) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Deletes the oldest archive, provided that archives are deleted at all; the newest, which tells what came before
    /// the disk was full, is kept. Best effort: the failed write is what gets reported.
    pub fn give_up_oldest(&self) {
        if self.retention == Retention::default() {
            return;
        }
        let archives = self.list().unwrap_or_default();
        if let [oldest, _, ..] = &archives[..] {
            drop(fs::remove_file(&oldest.path));
        }
    }

    /// Time, counter and what follows the extension.
    fn parse<'a>(&self, name: &'a str) -> Option<(Timestamp, u32, &'a str)> {
        let rest = name.strip_prefix(self.stem.as_str())?.strip_prefix('.')?;
        let (time, counter, rest) = parse_stamp(rest)?;
        Some((time, counter, rest.strip_prefix(self.extension.as_str())?))
    }
}

/// Time, counter and what follows the dot behind them.
fn parse_stamp(text: &str) -> Option<(Timestamp, u32, &str)> {
    let (time, rest) = text.split_once('.')?;
    let (counter, rest) = rest.split_once('.')?;
    let digits = counter.len() >= 4 && counter.bytes().all(|byte| byte.is_ascii_digit());
    let time = DateTime::strptime(TIME_FORMAT, time).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    digits.then_some((time, counter.parse().ok()?, rest))
}

/// The name of the active file that an uncompressed archive comes from, if its name is that of an archive.
pub fn active_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, (_, _, extension)) =
        name.match_indices('.').find_map(|(at, _)| Some((&name[..at], parse_stamp(&name[at + 1..])?)))?;
    Some(format!("{stem}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_whole() {
        let shelf = Shelf::new(Path::new("/logs/app.log"), Retention::default(), Compression::None);
        let time: Timestamp = "2026-11-20T23:11:34Z".parse().unwrap();
        assert_eq!(shelf.parse("app.2026-11-20T23-11-34Z.0001.log"), Some((time, 1, "")));
        assert_eq!(shelf.parse("app.2026-11-20T23-11-34Z.12345.log.gz"), Some((time, 12345, ".gz")));
        for foreign in [
            "app.log",
            "app.other.2026-11-20T23-11-34Z.0001.log",
            "app2.2026-11-20T23-11-34Z.0001.log",
            "app.2026-11-20T23-11-34Z.1.log",
            "app.2026-11-20T23-11-34Z.+001.log",
            "app.2026-13-20T23-11-34Z.0001.log",
            "app.2026-11-20.0001.log",
        ] {
            assert_eq!(shelf.parse(foreign), None, "{foreign}");
        }
        let active = |name: &str| active_name(Path::new(name));
        assert_eq!(active("a/my.app.2026-11-20T23-11-34Z.0001.log").as_deref(), Some("my.app.log"));
        assert_eq!(active("a/app.2026-11-20.0001.log"), None);
    }

    #[test]
    fn same_second_counts_on_and_order_is_age() {
        let folder = tempfile::tempdir().unwrap();
        let active = folder.path().join("app.log");
        let shelf = Shelf::new(&active, Retention::default(), Compression::None);
        // The last two: the clock steps back by ten seconds, and then by years.
        for (text, time) in [("a", 10), ("b", 20), ("c", 20), ("d", 10), ("e", -100_000_000)] {
            fs::write(&active, text).unwrap();
            shelf.shelve(&active, Timestamp::from_second(time).unwrap()).unwrap();
        }
        let archives = shelf.list().unwrap();
        let found = archives.iter().map(|archive| (archive.counter, fs::read_to_string(&archive.path).unwrap()));
        let expected = [(1, "e"), (1, "a"), (1, "b"), (2, "c"), (3, "d")];
        assert!(found.eq(expected.map(|(counter, text)| (counter, text.to_owned()))), "{archives:?}");
        assert!(archives[1].path.ends_with("archive/app.1970-01-01T00-00-10Z.0001.log"));
    }

    #[test]
    fn full_disk_takes_the_oldest_but_never_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let active = folder.path().join("app.log");
        let kept = Shelf::new(&active, Retention::default(), Compression::None);
        for second in [1, 2, 3] {
            fs::write(&active, "x").unwrap();
            kept.shelve(&active, Timestamp::from_second(second).unwrap()).unwrap();
        }
        let left = || kept.list().unwrap().iter().map(|archive| archive.time.as_second()).collect::<Vec<_>>();
        kept.give_up_oldest();
        assert_eq!(left(), [1, 2, 3]);
        let deleted = Shelf { retention: Retention { files: Some(9), ..Retention::default() }, ..kept.clone() };
        for expected in [&[2, 3][..], &[3], &[3]] {
            deleted.give_up_oldest();
            assert_eq!(left(), expected);
        }
    }
}
