//! Proves from log files that no record is missing, or says which are.
//!
//! It reads what is there and knows nothing of a running daemon. The files of one sink are a [`Family`]: the active one
//! and its archives, in any order. Enter at [`verify_live`].

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{
    archive,
    line::{self, Line, Lost},
};

mod gaps;

pub use gaps::Gap;

/// How often files are listed that somebody archives all the time.
const MOST_LISTINGS: usize = 100;
/// How many files are open at once.
const MOST_OPEN: usize = 64;

/// The files of one sink, and what their numbers say.
#[derive(Debug, Default)]
pub struct Family {
    /// The active file, whether or not it is one of the files read.
    pub name: PathBuf,
    /// How many files were read.
    pub files: usize,
    /// How many numbered records they hold.
    pub records: u64,
    /// Lines in text, which has no numbers.
    pub text: u64,
    /// The lowest and the highest number.
    pub numbers: Option<(u64, u64)>,
    /// Numbers that are missing, in order.
    pub gaps: Vec<Gap>,
    /// What else is not as it should be, by file and line.
    pub faults: Vec<Fault>,
}

/// Something in a file that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Numbers that stand in two places.
    Twice {
        /// The numbers.
        numbers: RangeInclusive<u64>,
        /// Where the first of them stands first.
        first: Spot,
        /// Where it stands again.
        again: Spot,
    },
    /// A number lower than the one before it in the same file.
    Backwards {
        /// The number.
        sequence: u64,
        /// The one before it.
        after: u64,
        /// Where.
        spot: Spot,
    },
    /// A loss record that counts more records than are missing.
    Miscount {
        /// How many it and those that overlap it count.
        counted: u64,
        /// How many are missing.
        missing: u64,
        /// Where it stands.
        spot: Spot,
    },
    /// A record of which a part is missing.
    Torn(Spot),
    /// Lines that are no records.
    Foreign {
        /// The first one.
        spot: Spot,
        /// How many in a row.
        lines: u64,
    },
    /// A file that can't be read to its end.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Fault {
    /// Whether it says that something is wrong with the numbers, and not just beside them.
    pub fn breaks_proof(&self) -> bool {
        !matches!(self, Self::Torn(_) | Self::Foreign { .. })
    }
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

impl Family {
    /// Whether every number from the lowest to the highest is there once or was lost and counted.
    pub fn is_whole(&self) -> bool {
        self.gaps.iter().all(|gap| gap.explained_by.is_some()) && !self.faults.iter().any(Fault::breaks_proof)
    }

    /// Whether there is nothing to prove anything with: lines, but no numbers.
    pub fn has_no_numbers(&self) -> bool {
        self.numbers.is_none()
            && (self.text > 0 || self.faults.iter().any(|fault| matches!(fault, Fault::Foreign { .. })))
    }
}

/// Consecutive numbers on consecutive lines.
#[derive(Debug)]
struct Run {
    first: u64,
    last: u64,
    start: Spot,
}

impl Run {
    fn spot_of(&self, sequence: u64) -> Spot {
        Spot { path: self.start.path.clone(), line: self.start.line + (sequence - self.first) }
    }
}

/// What was read of a family.
#[derive(Debug, Default)]
struct Reading {
    runs: Vec<Run>,
    losses: Vec<(Lost, u64, Spot)>,
}

/// Judges files that nobody writes.
#[cfg(test)]
pub(crate) fn verify(paths: &[PathBuf]) -> Vec<Family> {
    verify_live(paths.to_vec(), || None)
}

/// Reads files, each once, and judges each family, while a daemon may be writing them. Active files are opened first, so that one which becomes an archive is read
/// to its end, and anew until nothing was archived between listing and opening them. `list` lists them again, if it can.
pub fn verify_live(mut paths: Vec<PathBuf>, list: impl Fn() -> Option<Vec<PathBuf>>) -> Vec<Family> {
    let mut active = open_active(&paths);
    for again in (0..MOST_LISTINGS).filter_map(|_| list()) {
        if again == paths {
            break;
        }
        active = open_active(&again);
        paths = again;
    }
    let mut families: BTreeMap<PathBuf, (Family, Reading)> = BTreeMap::new();
    let mut paths = once_each(&paths);
    paths.sort_by_key(|path| !may_be_active(path));
    for path in paths {
        let file = match active.remove(path).map_or_else(|| open(path), Ok) {
            // Retention deletes whole archives. If one leaves a gap, the gap will tell.
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_archive(path) => continue,
            file => file,
        };
        let mut name = family_of(path);
        // A file without an extension has archives with one.
        let bare = name.with_extension("");
        if name != *path
            && name.extension().is_some_and(|extension| extension == "log")
            && !name.exists()
            && bare.exists()
        {
            name = bare;
        }
        let (family, reading) = families.entry(key(&name)).or_default();
        if family.files == 0 {
            family.name = name;
        }
        family.files += 1;
        if let Err(error) = file.and_then(|file| read(path, BufReader::new(file), family, reading)) {
            family.faults.push(Fault::Unreadable { path: path.to_owned(), reason: error.to_string() });
        }
    }
    let judge = |(mut family, reading): (Family, Reading)| {
        gaps::judge(&mut family, reading);
        family
    };
    families.into_values().map(judge).collect()
}

/// Opens the active files among these. What isn't open after this is opened when it is read.
fn open_active(paths: &[PathBuf]) -> BTreeMap<PathBuf, Box<dyn Read>> {
    let active = paths.iter().filter(|path| may_be_active(path)).take(MOST_OPEN);
    active.filter_map(|path| Some((path.clone(), open(path).ok()?))).collect()
}

fn may_be_active(path: &Path) -> bool {
    !archive::is_compressed(path) && !is_archive(path)
}

fn is_archive(path: &Path) -> bool {
    archive::active_name(&plain(path)).is_some()
}

/// The name of a file without what compression adds to it.
fn plain(path: &Path) -> PathBuf {
    if archive::is_compressed(path) { path.with_extension("") } else { path.to_owned() }
}

/// What is the same for all spellings of an active file's path, whether or not it exists, and for a link to it.
fn key(name: &Path) -> PathBuf {
    if let Ok(real) = name.canonicalize() {
        return real;
    }
    let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).join(name.file_name().unwrap_or_default())
}

/// Opens a file, or what it was compressed to since it was named.
fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let compressed = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        archive::open(Path::new(&name))
    };
    match archive::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            compressed(".gz").or_else(|_| compressed(".zst")).map_err(|_| error)
        }
        file => file,
    }
}

/// The paths without those that lead to a file that was named before, or to its compressed twin: between its last byte
/// and the end of the plain file, an archive is there in both forms. Names alone don't tell: where logrotate began to
/// compress, `app.log.2.gz` is the younger brother of `app.log.2`.
fn once_each(paths: &[PathBuf]) -> Vec<&PathBuf> {
    let mut chosen: BTreeMap<PathBuf, &PathBuf> = BTreeMap::new();
    for path in paths.iter().filter(|path| !archive::is_unfinished(path)) {
        chosen.entry(path.canonicalize().unwrap_or_else(|_| path.clone())).or_insert(path);
    }
    let is_twin = |real: &PathBuf| {
        let plain = plain(real);
        plain != *real
            && chosen.contains_key(&plain)
            && first_line(&plain).is_ok_and(|first| first_line(real).is_ok_and(|other| first == other))
    };
    chosen.iter().filter(|(real, _)| !is_twin(real)).map(|(_, path)| *path).collect()
}

fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(open(path)?).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// The active file that a file belongs to, by its name: itself, an archive of ours in `archive` beside it or moved to
/// the same folder, or what logrotate makes of it (`app.log.1`, `app.log-20261120-1795230817`).
fn family_of(path: &Path) -> PathBuf {
    let plain = plain(path);
    if let Some(name) = archive::active_name(&plain) {
        let folder = plain.parent().unwrap_or(Path::new(""));
        let folder = if folder.ends_with("archive") { folder.parent().unwrap_or(Path::new("")) } else { folder };
        return folder.join(name);
    }
    let mut name = plain.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    while let Some((stem, suffix)) = name.rsplit_once(['.', '-'])
        && !suffix.is_empty()
        && suffix.bytes().all(|byte| byte.is_ascii_digit())
        && stem.contains('.')
    {
        name = stem;
    }
    plain.with_file_name(name)
}

fn read(path: &Path, mut file: impl BufRead, family: &mut Family, reading: &mut Reading) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut previous: Option<u64> = None;
    let mut in_text = false;
    for number in 1.. {
        bytes.clear();
        if file.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let spot = || Spot { path: path.to_owned(), line: number };
        let kind = match bytes.strip_suffix(b"\n") {
            // Whatever it seems to say: half a number looks like a whole one.
            None => Line::Torn,
            // The lines below a record in text.
            Some(line) if in_text && line.starts_with(b"    ") => Line::Text,
            Some(line) => line::read(line),
        };
        in_text = kind == Line::Text;
        match kind {
            Line::Record { sequence, lost } => {
                family.records += 1;
                if let Some(after) = previous.filter(|previous| sequence < *previous) {
                    family.faults.push(Fault::Backwards { sequence, after, spot: spot() });
                }
                previous = Some(sequence);
                reading.losses.extend(lost.map(|lost| (lost, sequence, spot())));
                match reading.runs.last_mut() {
                    Some(run)
                        if run.last.checked_add(1) == Some(sequence)
                            && run.start.path == path
                            && run.start.line + (sequence - run.first) == number =>
                    {
                        run.last = sequence;
                    }
                    _ => reading.runs.push(Run { first: sequence, last: sequence, start: spot() }),
                }
            }
            Line::Text => family.text += 1,
            Line::Torn => family.faults.push(Fault::Torn(spot())),
            Line::Foreign => match family.faults.last_mut() {
                Some(Fault::Foreign { spot, lines }) if spot.path == path && spot.line + *lines == number => {
                    *lines += 1
                }
                _ => family.faults.push(Fault::Foreign { spot: spot(), lines: 1 }),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
