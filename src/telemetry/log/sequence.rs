//! Where the sequence numbers of a file left off, so that a restart counts on.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use crate::config::Format;

/// The last record lies within so many bytes from the end, cut records and escapes included.
const TAIL_BYTES: u64 = 1024 * 1024;

/// The number after the last one in the first of these files that has any; 0 if none has.
///
/// # Errors
/// When a file is there and can't be read.
pub fn next<'a>(newest_first: impl IntoIterator<Item = &'a Path>, format: Format) -> io::Result<u64> {
    for path in newest_first {
        let tail = match tail(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            tail => tail?,
        };
        let last =
            tail.split(|byte| *byte == b'\n').rev().find_map(|line| parse(&String::from_utf8_lossy(line), format));
        if let Some(last) = last {
            return Ok(last + 1);
        }
    }
    Ok(0)
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe has no past, and who reads it takes away what others are to read.
    if !path.metadata()?.is_file() {
        return Ok(Vec::new());
    }
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The sequence number of a line. A message that looks like one is in quotes, whose own quotes are escaped.
fn parse(line: &str, format: Format) -> Option<u64> {
    let key = match format {
        Format::Text => return None,
        Format::Json => "\"seq\":",
        Format::Logfmt => "seq=",
    };
    let separator = if format == Format::Json { b',' } else { b' ' };
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in line.bytes().enumerate() {
        if !quoted && byte == separator && line[index + 1..].starts_with(key) {
            let digits = &line[index + 1 + key.len()..];
            let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
            return digits[..end].parse().ok();
        }
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_key_and_not_its_image_in_a_message() {
        let json = r#"{"timestamp":"t","message":"x\",\"seq\":9,","seq":41,"a":1}"#;
        assert_eq!(parse(json, Format::Json), Some(41));
        assert_eq!(parse(r#"timestamp=t message="a seq=9 \" seq=8" seq=42 b=1"#, Format::Logfmt), Some(42));
        assert_eq!(parse("a - b seq=3", Format::Text), None);
        assert_eq!(parse(r#"{"message":"torn,"#, Format::Json), None);
    }

    #[test]
    fn newest_file_with_a_number_counts() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["missing", "empty", "torn", "old"].map(|name| folder.path().join(name));
        std::fs::write(&paths[1], "").unwrap();
        std::fs::write(&paths[2], "m=1 seq=6\nm=2 seq=7\nm=\"torn").unwrap();
        std::fs::write(&paths[3], "m=1 seq=2\n").unwrap();
        assert_eq!(next(paths.iter().map(AsRef::as_ref), Format::Logfmt).unwrap(), 8);
        assert_eq!(next(paths[..2].iter().map(AsRef::as_ref), Format::Logfmt).unwrap(), 0);
    }
}
