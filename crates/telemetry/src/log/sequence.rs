//! Where the sequence numbers of a file left off, so that a restart counts on.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    archive::{self, Shelf},
    line::{self, Line},
};

/// The last record lies within so many bytes from the end, cut records and escapes included.
const TAIL_BYTES: u64 = 1024 * 1024;
/// A file without any number is younger than its sink's format, or empty; so many archives are looked at behind it.
const ARCHIVES: usize = 4;

/// The number after the last one in the newest of the sink's files that has any; 0 if none has. An archive that can't be
/// read is no reason not to start: it is passed over, and `complain` hears of it.
///
/// # Errors
/// When the active file or the folder is there and can't be read.
pub fn next(active: &Path, shelf: &Shelf, complain: impl Fn(&str)) -> io::Result<u64> {
    if let Some(next) = after_last(active)? {
        return Ok(next);
    }
    for archive in shelf.list()?.iter().rev().take(ARCHIVES) {
        match after_last(&archive.path) {
            Ok(Some(next)) => return Ok(next),
            Ok(None) => {}
            Err(error) => complain(&format!(
                "cannot read log archive {}: {error}; sequence numbers may repeat",
                archive.path.display()
            )),
        }
    }
    Ok(0)
}

fn after_last(path: &Path) -> io::Result<Option<u64>> {
    let tail = match tail(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        tail => tail?,
    };
    Ok(tail.split(|byte| *byte == b'\n').rev().find_map(|line| match line::read(line) {
        Line::Record { sequence, .. } => Some(sequence.saturating_add(1)),
        _ => None,
    }))
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe has no past, and who reads it takes away what others are to read.
    if !path.metadata()?.is_file() {
        return Ok(Vec::new());
    }
    let mut tail = Vec::new();
    if archive::is_compressed(path) {
        let mut reader = archive::open(path)?;
        let mut kept = VecDeque::new();
        let mut piece = vec![0; 64 * 1024];
        loop {
            let length = reader.read(&mut piece)?;
            if length == 0 {
                return Ok(kept.into());
            }
            kept.extend(&piece[..length]);
            kept.drain(..kept.len().saturating_sub(TAIL_BYTES as usize));
        }
    }
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use mlx_manager_config::{Compression, Retention};

    use super::*;

    #[test]
    fn newest_file_with_a_number_counts() {
        let folder = tempfile::tempdir().unwrap();
        let active = folder.path().join("app.log");
        let archived = |second: u32, suffix: &str| {
            folder.path().join(format!("archive/app.2026-01-01T00-00-{second:02}Z.0001.log{suffix}"))
        };
        let shelf = Shelf::new(&active, Retention::default(), Compression::Gzip);
        let complaints = std::cell::RefCell::new(Vec::new());
        let next = |active: &Path, shelf: &Shelf| {
            super::next(active, shelf, |complaint| complaints.borrow_mut().push(complaint.to_owned()))
        };
        fs::create_dir(folder.path().join("archive")).unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 0);
        fs::write(archived(1, ""), "m=1 seq=2\n").unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 3);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // More than the tail, so that the end is what is read.
        (0..200_000).for_each(|sequence| writeln!(gzip, "m=1 seq={sequence}").unwrap());
        fs::write(archived(2, ".gz"), gzip.finish().unwrap()).unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 200_000);
        fs::write(archived(3, ".zst"), zstd::encode_all(&b"m=1 seq=200007\n"[..], 0).unwrap()).unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 200_008);
        fs::write(&active, "").unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 200_008);
        assert!(complaints.borrow().is_empty());
        fs::write(archived(4, ".gz"), "broken").unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 200_008);
        assert!(complaints.borrow()[0].contains("04Z.0001.log.gz: "), "{complaints:?}");
        // What was torn in the middle of its number says nothing.
        fs::write(&active, "m=1 seq=200010\nm=1 seq=20\u{2026} (torn)\n").unwrap();
        assert_eq!(next(&active, &shelf).unwrap(), 200_011);
    }
}
