//! The part of `[[log.sinks]]` that only file sinks have: where the file is, rotation and retention.

use std::path::{Path, PathBuf};

use super::{
    Compression, Period, Retention, Rotation, SinkKind,
    decode::Decoder,
    schema::Key,
    section::{Found, Refusal, Section},
    setting::{Choice, Count, Raw, Setting, Size},
};

pub(super) const FILE: Key = Key::bare("file", "below log.dir, or absolute").only("file");
pub(super) const ROTATION: Key = Key::new(
    "rotation",
    "{ size = \"10 MB\" }",
    "size and/or every = \"hour\" | \"day\" | \"week\" with at = \"00:00\", on = \"monday\"; or \"never\"",
)
.only("file");
pub(super) const RETENTION: Key = Key::new(
    "retention",
    "{ age = \"7 days\" }",
    "age and/or files = 20 and/or total = \"500 MB\", of archives; or \"never\" to delete none",
)
.only("file");
pub(super) const COMPRESSION: Key = Key::new("compression", "\"none\"", "none | gzip | zstd").only("file");

const SIZE: Key = Key::bare("size", "");
const EVERY: Key = Key::bare("every", "");
const AT: Key = Key::bare("at", "");
const ON: Key = Key::bare("on", "");

const ROTATION_KEYS: &[Key] = &[SIZE, EVERY, AT, ON];

const AGE: Key = Key::bare("age", "");
const FILES: Key = Key::bare("files", "");
const TOTAL: Key = Key::bare("total", "");

const RETENTION_KEYS: &[Key] = &[AGE, FILES, TOTAL];

/// The longest name in a log file's path, in bytes. File systems take 255, and an archive's name is longer than its
/// file's.
const LONGEST_NAME: usize = 200;
/// As many links in a row as Linux follows.
const MOST_LINKS: usize = 40;

#[derive(Clone, Copy, PartialEq)]
enum Every {
    Hour,
    Day,
    Week,
}

impl Choice for Every {
    const CHOICES: &'static [(&'static str, Self)] = &[("hour", Self::Hour), ("day", Self::Day), ("week", Self::Week)];
}

/// A log file's path as it is written.
struct FilePath(String);

impl Setting for FilePath {
    fn allowed() -> String {
        format!("a file, with names of at most {LONGEST_NAME} bytes")
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = String::read(raw)?;
        let names_a_file = !matches!(text.rsplit('/').next(), Some("" | "." | ".."));
        let fits = text.split('/').all(|name| name.len() <= LONGEST_NAME);
        if names_a_file && fits && !text.contains('\0') && !text.trim().is_empty() { Ok(Self(text)) } else { Err(None) }
    }
}

/// Whether a path leads to what is written to as it is, without anything beside it: a device, a pipe, or what the process
/// was handed open, such as `/dev/stderr`, whatever that is.
pub fn is_stream(path: &Path) -> bool {
    is_handed_over(path) || path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

fn is_handed_over(path: &Path) -> bool {
    path.starts_with("/dev/fd") || path.starts_with("/proc")
}

/// The file whose lock keeps a second daemon away from a log file.
pub fn lock_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

/// Where a file's own links lead, whether or not it exists: what stands beside a file stands beside that one. Links of
/// folders are left as they are, because somebody may turn them while the daemon runs.
fn follow_links(mut path: PathBuf) -> PathBuf {
    for _ in 0..MOST_LINKS {
        match path.read_link() {
            Ok(target) if !is_handed_over(&path) => path = path.parent().unwrap_or(&path).join(target),
            _ => break,
        }
    }
    path
}

/// The file, rotation, retention and compression of a sink of kind `file`; `dir` is `log.dir`.
pub(super) fn decode_file<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, dir: &Path) -> Option<SinkKind> {
    let file = decoder.required::<FilePath>(section, &FILE);
    let compression = decoder.get(section, &COMPRESSION);
    let rotation = decode_rotation(decoder, section);
    let retention = decode_retention(decoder, section);
    let path = follow_links(dir.join(file?.0));
    let (mut rotation, mut retention, mut compression) = (rotation?, retention?, compression?);
    if is_stream(&path) {
        for key in [ROTATION, RETENTION, COMPRESSION] {
            if !decoder.given(section, &key) {
                continue;
            }
            let message = format!("has no effect, because {} is a device or a pipe", path.display());
            decoder.warn(&section.path_of(&key), &message, "leave it out, or name a file");
        }
        (rotation, retention, compression) = (Rotation::default(), Retention::default(), Compression::None);
    }
    if rotation == Rotation::default() {
        let useless = [(RETENTION, retention != Retention::default()), (COMPRESSION, compression != Compression::None)];
        for (key, set) in useless {
            if set && decoder.given(section, &key) {
                let key = section.path_of(&key);
                let hint = "it is about archives: set a rotation, or leave it out";
                let message = "can do nothing, because the sink never rotates";
                decoder.report_relation(&key, decoder.place_of(&key), message, hint);
            }
        }
        (retention, compression) = (Retention::default(), Compression::None);
    }
    if let (Some(size), Some(total)) = (rotation.size, retention.total)
        && total < size
    {
        let key = section.path_of(&RETENTION);
        decoder.warn(&key, "keeps less than one full archive", "make `total` larger than the rotation's `size`");
    }
    Some(SinkKind::File { path, rotation, retention, compression })
}

/// Whether the key says `"never"`, which stands in place of a table.
fn is_never<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, key: &Key) -> bool {
    match decoder.find(section, key) {
        Ok(Some(Found { raw: Raw::Table, .. })) => false,
        Ok(Some(found)) if found.raw.text() == Some("never") => {
            decoder.show(&found, "\"never\"".to_owned());
            true
        }
        Ok(Some(found)) => {
            decoder.refuse(&found, Refusal { allowed: "a table in braces, or \"never\"", hint: None, secret: false });
            true
        }
        _ => true,
    }
}

fn decode_rotation<'a>(decoder: &mut Decoder<'a>, sink: &Section<'a>) -> Option<Rotation> {
    if is_never(decoder, sink, &ROTATION) {
        return Some(Rotation::default());
    }
    let section = decoder.nested(sink, &ROTATION, ROTATION_KEYS)?;
    decoder.check_keys(&section, &[]);
    let size = decoder.get::<Size>(&section, &SIZE).map(|size| size.0);
    let every = decoder.get::<Every>(&section, &EVERY);
    let at = decoder.get::<jiff::civil::Time>(&section, &AT);
    let on = decoder.get::<jiff::civil::Weekday>(&section, &ON);
    let midnight = jiff::civil::Time::midnight();
    if section.written().next().is_none() && decoder.overlaid(&section).is_empty() {
        let message = "sets nothing";
        decoder.report(&section.path, section.place.clone(), message, "allowed: size and/or every, or \"never\"");
    }
    let is_wrong = every.is_none() && decoder.given(&section, &EVERY);
    if decoder.given(&section, &AT) && !is_wrong && !matches!(every, Some(Every::Day | Every::Week)) {
        let (key, hint) = (section.path_of(&AT), "add every = \"day\" or \"week\", or leave it out");
        decoder.report_relation(&key, decoder.place_of(&key), "has no day or week to start", hint);
    }
    if decoder.given(&section, &ON) && !is_wrong && every != Some(Every::Week) {
        let (key, hint) = (section.path_of(&ON), "add every = \"week\", or leave it out");
        decoder.report_relation(&key, decoder.place_of(&key), "has no week to start", hint);
    }
    let every = every.map(|every| match every {
        Every::Hour => Period::Hour,
        Every::Day => Period::Day { at: at.unwrap_or(midnight) },
        Every::Week => Period::Week { on: on.unwrap_or(jiff::civil::Weekday::Monday), at: at.unwrap_or(midnight) },
    });
    remember(decoder, &section);
    Some(Rotation { size, every })
}

fn decode_retention<'a>(decoder: &mut Decoder<'a>, sink: &Section<'a>) -> Option<Retention> {
    if is_never(decoder, sink, &RETENTION) {
        return Some(Retention::default());
    }
    let section = decoder.nested(sink, &RETENTION, RETENTION_KEYS)?;
    decoder.check_keys(&section, &[]);
    let age = decoder.get(&section, &AGE);
    let files = decoder.get::<Count<1, 1_000_000>>(&section, &FILES).map(|count| count.0 as usize);
    let total = decoder.get::<Size>(&section, &TOTAL).map(|size| size.0);
    if section.written().next().is_none() && decoder.overlaid(&section).is_empty() {
        let message = "can delete nothing, because it sets no limit";
        let allowed = "allowed: age, files and/or total; or \"never\" to keep every archive";
        decoder.report(&section.path, section.place.clone(), message, allowed);
    }
    remember(decoder, &section);
    Some(Retention { age, files, total })
}

/// Notes where a table in braces stands, for problems that are about the whole of it.
fn remember(decoder: &mut Decoder<'_>, section: &Section<'_>) {
    decoder.places.insert(section.path.clone(), section.place.clone());
}
