//! `[log]`

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::level_filters::LevelFilter;

use super::{
    decode::Decoder,
    log_file::{COMPRESSION, FILE, RETENTION, ROTATION, decode_file},
    schema::{Key, Table},
    section::Section,
    setting::{Choice, Raw, Setting, nearest},
};

/// The most sinks: each has a bit in a mask of 64, of which two are taken.
pub const MAX_SINKS: usize = 62;

/// Levels, caps for noisy targets, and sinks.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The level of targets that no directive names.
    pub level: Level,
    /// Further directives of `log.level` or LOG_LEVEL (`mlx_manager::server=debug`); they lift caps of the same target.
    pub directives: Vec<Directive>,
    /// Caps for noisy targets, by module path prefix.
    pub targets: Vec<Directive>,
    /// Folder of the log files.
    pub dir: PathBuf,
    /// Time zone of rotation periods and of the console.
    pub timezone: Timezone,
    /// Whether the last DEBUG records of an inference request are kept and written if it fails.
    pub failure_story: bool,
    /// Where records go.
    pub sinks: Vec<Sink>,
}

/// A log level, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// Nothing.
    #[default]
    Off,
    /// Failures.
    Error,
    /// What may become one.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// A level for a module path prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Module path prefix; matches whole segments (`hyper` is not `hyper_util`).
    pub target: String,
    /// The most detailed level that passes.
    pub level: Level,
}

/// Time zone of periods and displays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timezone {
    /// Coordinated universal time.
    Utc,
    /// The machine's own.
    Local,
}

/// One place that records go to.
#[derive(Debug, Clone)]
pub struct Sink {
    /// Unique name; a metric label.
    pub name: String,
    /// What it writes to.
    pub kind: SinkKind,
    /// How a record is written.
    pub format: Format,
    /// Only these module path prefixes; empty means all.
    pub include: Vec<String>,
    /// Never these.
    pub exclude: Vec<String>,
    /// The sink's own floor, beside `log.level`.
    pub level: Level,
}

/// What a sink writes to.
#[derive(Debug, Clone)]
pub enum SinkKind {
    /// Standard error.
    Console {
        /// Whether to colour.
        color: Color,
    },
    /// A file that rotates.
    File {
        /// The active file, absolute or below `log.dir`, already joined, and what it leads to if it is a link.
        path: PathBuf,
        /// When a new file is begun.
        rotation: Rotation,
        /// Which archives are kept.
        retention: Retention,
        /// How archives are compressed.
        compression: Compression,
    },
}

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// JSON lines.
    Json,
    /// `key=value` lines.
    Logfmt,
}

/// Whether a console is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// When a new file is begun; both may be set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rotation {
    /// Before a record would make the file larger than this, in bytes.
    pub size: Option<u64>,
    /// At the start of every such period.
    pub every: Option<Period>,
}

/// A rotation period with the time of day at which it starts, in `log.timezone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Every full hour.
    Hour,
    /// Every day at this time.
    Day {
        /// Time of day.
        at: jiff::civil::Time,
    },
    /// Every week on this day at this time.
    Week {
        /// The day.
        on: jiff::civil::Weekday,
        /// Time of day.
        at: jiff::civil::Time,
    },
}

/// Which archives are kept; all limits that are set hold together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// None older than this.
    pub age: Option<Duration>,
    /// No more than this many archives.
    pub files: Option<usize>,
    /// No more than this many bytes of archives.
    pub total: Option<u64>,
}

/// How archives are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`
    Gzip,
    /// `.zst`
    Zstd,
}

pub(super) const LEVEL: Key = Key::new(
    "level",
    "\"info\"",
    "LOG_LEVEL: a level in any case (WARNING is WARN), or directives \"info,mlx_manager::server=debug\"",
);
pub(super) const DIR: Key =
    Key::new("dir", "\"logs\"", "LOG_DIR; MLX_MANAGER_LOG_LEVEL and MLX_MANAGER_LOG_DIR beat the short forms");
const TIMEZONE: Key = Key::new("timezone", "\"utc\"", "utc | local: of rotation times and of the console");
const FAILURE_STORY: Key = Key::new(
    "failure_story",
    "true",
    "what a request said at DEBUG is kept in memory, and written after all if the request fails",
);

pub(super) const TABLE: Table = Table::single("log", "", &[LEVEL, DIR, TIMEZONE, FAILURE_STORY]);

pub(super) const TARGETS: Table = Table::single(
    "log.targets",
    "Caps for noisy targets, by module path prefix. The most specific wins; only a directive for that target lifts one.",
    &[
        Key::new("hyper", "\"warn\"", ""),
        Key::new("hyper_util", "\"warn\"", ""),
        Key::new("reqwest", "\"warn\"", ""),
        Key::new("rustls", "\"warn\"", ""),
        Key::new("sqlx", "\"warn\"", ""),
        Key::new("h2", "\"warn\"", ""),
    ],
);

const NAME: Key = Key::bare("name", "unique; a metric label");
const KIND: Key = Key::bare("kind", "console | file; the console is stderr, in journald's priorities under systemd");
const FORMAT: Key = Key::new("format", "\"text\"", "text | json | logfmt");
const COLOR: Key = Key::new("color", "\"auto\"", "auto | always | never").only("console");
const INCLUDE: Key = Key::new("include", "[]", "only these module path prefixes; empty means all");
const EXCLUDE: Key = Key::new("exclude", "[]", "never these");
const SINK_LEVEL: Key = Key::new("level", "\"trace\"", "the sink's own floor, beside log.level");

pub(super) const SINKS: Table = Table::array(
    "log.sinks",
    "Where records go. A record may go to several sinks.",
    &[NAME, KIND, FILE, FORMAT, COLOR, INCLUDE, EXCLUDE, SINK_LEVEL, ROTATION, RETENTION, COMPRESSION],
    &[
        &[(NAME, "\"console\""), (KIND, "\"console\""), (FORMAT, "\"text\""), (COLOR, "\"auto\"")],
        &[
            (NAME, "\"mlx-server\""),
            (KIND, "\"file\""),
            (FILE, "\"mlx-server.log\""),
            (FORMAT, "\"text\""),
            (INCLUDE, "[\"mlx_manager::server\"]"),
            (SINK_LEVEL, "\"trace\""),
            (ROTATION, "{ size = \"10 MB\" }"),
            (RETENTION, "{ age = \"7 days\" }"),
            (COMPRESSION, "\"none\""),
        ],
        &[
            (NAME, "\"mlx-manager\""),
            (KIND, "\"file\""),
            (FILE, "\"mlx-manager.log\""),
            (FORMAT, "\"text\""),
            (EXCLUDE, "[\"mlx_manager::server\"]"),
            (ROTATION, "{ size = \"10 MB\" }"),
            (RETENTION, "{ age = \"7 days\" }"),
        ],
    ],
);

const LEVELS: [(&str, Level); 10] = [
    (Level::Off.as_str(), Level::Off),
    (Level::Error.as_str(), Level::Error),
    (Level::Warn.as_str(), Level::Warn),
    (Level::Info.as_str(), Level::Info),
    (Level::Debug.as_str(), Level::Debug),
    (Level::Trace.as_str(), Level::Trace),
    ("warning", Level::Warn),
    ("critical", Level::Error),
    ("fatal", Level::Error),
    ("none", Level::Off),
];

impl Level {
    /// The level's name, in the file, in labels and in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Whether an event of this level passes.
    pub fn allows(self, event: tracing::Level) -> bool {
        self >= Self::from(event)
    }

    /// Reads a level's name in any case; `WARNING`, `CRITICAL` and `FATAL` are taken as other loggers mean them.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.trim();
        LEVELS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, level)| *level)
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::OFF,
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

impl Setting for Level {
    fn allowed() -> String {
        "off, error, warn, info, debug, trace, in any case".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or(None)?;
        Self::from_name(text).ok_or_else(|| level_hint(text))
    }
}

fn level_hint(text: &str) -> Option<String> {
    nearest(text, LEVELS.iter().map(|(name, _)| *name)).map(|name| format!("did you mean \"{name}\"?"))
}

/// `log.level`: one level, or directives.
struct Filter {
    level: Level,
    directives: Vec<Directive>,
}

impl Setting for Filter {
    fn allowed() -> String {
        "off, error, warn, info, debug, trace, in any case, or directives such as \
         \"info,mlx_manager::server=debug\""
            .to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or(None)?;
        let mut level = None;
        let mut directives: Vec<Directive> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((target, name)) = part.split_once('=') else {
                let parsed = Level::from_name(part).ok_or_else(|| {
                    level_hint(part).or_else(|| Some(format!("`{part}` is no level; for a target: {part}=debug")))
                })?;
                if level.replace(parsed).is_some() {
                    return Err(Some("it has two levels without a target".to_owned()));
                }
                continue;
            };
            let target = target.trim();
            if !is_target(target) {
                return Err(Some(format!("`{target}` is no module path")));
            }
            let level = Level::from_name(name)
                .ok_or_else(|| level_hint(name).or_else(|| Some(format!("`{}` is no level", name.trim()))))?;
            // A later directive for the same target replaces the earlier, as a later option does on a command line.
            directives.retain(|directive| directive.target != target);
            directives.push(Directive { target: target.to_owned(), level });
        }
        if level.is_none() && directives.is_empty() {
            return Err(None);
        }
        Ok(Self { level: level.unwrap_or(Level::Info), directives })
    }
}

/// Whether a text is a module path such as `mlx_manager::server`.
pub fn is_target(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|character| character.is_alphanumeric() || "_-.".contains(character))
    };
    text.split("::").all(part)
}

/// A module path prefix.
struct Target(String);

impl Setting for Target {
    fn allowed() -> String {
        "a module path prefix such as \"mlx_manager::server\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = String::read(raw)?;
        if is_target(&text) { Ok(Self(text)) } else { Err(None) }
    }
}

impl Choice for Timezone {
    const CHOICES: &'static [(&'static str, Self)] = &[("utc", Self::Utc), ("local", Self::Local)];
}

impl Choice for Format {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("text", Self::Text), ("json", Self::Json), ("logfmt", Self::Logfmt)];
}

impl Choice for Color {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("always", Self::Always), ("never", Self::Never)];
}

impl Choice for Compression {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("gzip", Self::Gzip), ("zstd", Self::Zstd)];
}

#[derive(Clone, Copy)]
enum Kind {
    Console,
    File,
}

impl Choice for Kind {
    const CHOICES: &'static [(&'static str, Self)] = &[("console", Self::Console), ("file", Self::File)];
}

impl Choice for jiff::civil::Weekday {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("monday", Self::Monday),
        ("tuesday", Self::Tuesday),
        ("wednesday", Self::Wednesday),
        ("thursday", Self::Thursday),
        ("friday", Self::Friday),
        ("saturday", Self::Saturday),
        ("sunday", Self::Sunday),
    ];
}

impl Setting for jiff::civil::Time {
    fn allowed() -> String {
        "a time of day such as \"00:00\" or \"23:30\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = match raw {
            // TOML has times of day of its own.
            Raw::Datetime(text) => text.as_str(),
            raw => raw.text().ok_or(None)?,
        };
        let mut parts = text.trim().split(':').map(|part| {
            let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse::<i8>().ok() } else { None }
        });
        let (hour, minute) = (parts.next().flatten().ok_or(None)?, parts.next().flatten().ok_or(None)?);
        let second = match parts.next() {
            None => 0,
            Some(second) => second.ok_or(None)?,
        };
        if parts.next().is_some() {
            return Err(None);
        }
        Self::new(hour, minute, second, 0).map_err(|_| None)
    }
}

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<LogConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &["targets", "sinks"]);
    let filter = decoder.get::<Filter>(&section, &LEVEL);
    let dir = decoder.path(&section, &DIR);
    let timezone = decoder.get(&section, &TIMEZONE);
    let failure_story = decoder.get(&section, &FAILURE_STORY);
    let targets = decode_targets(decoder);
    let dir_or_empty = dir.clone().unwrap_or_default();
    let mut names = Vec::new();
    let mut sinks = Vec::new();
    for section in decoder.entries(&SINKS) {
        sinks.push(decode_sink(decoder, &section, &dir_or_empty, &mut names));
    }
    if sinks.len() > MAX_SINKS {
        let key = format!("{}[{MAX_SINKS}]", SINKS.header);
        let place = decoder.place_of(&SINKS.path_in_entry(MAX_SINKS, &NAME));
        decoder.report(&key, place, "is one sink too many", &format!("allowed: {MAX_SINKS} sinks"));
    }
    let filter = filter?;
    Some(LogConfig {
        level: filter.level,
        directives: filter.directives,
        targets,
        dir: dir?,
        timezone: timezone?,
        failure_story: failure_story?,
        sinks: sinks.into_iter().collect::<Option<_>>()?,
    })
}

/// The default caps stand beside the user's own, each until it is named.
fn decode_targets(decoder: &mut Decoder<'_>) -> Vec<Directive> {
    let section = decoder.table(&TARGETS);
    let mut names: Vec<String> = TARGETS.keys.iter().map(|key| key.name.to_owned()).collect();
    for (name, _) in section.written() {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    let overlaid = decoder.overlaid(&section);
    for (name, _) in &overlaid {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let mut targets = Vec::new();
    for name in names {
        if !is_target(&name) {
            let path = section.path_of_name(&name);
            let said = overlaid.iter().find(|(other, _)| *other == name);
            let place = said.map_or_else(|| section.place.clone(), |(_, place)| place.clone());
            decoder.report(&path, place, "isn't a module path prefix", "allowed: names such as \"hyper\" or \"a::b\"");
        } else if let Some(level) = decoder.get_named(&section, &name) {
            targets.push(Directive { target: name, level });
        }
    }
    targets
}

fn decode_sink<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    dir: &Path,
    names: &mut Vec<String>,
) -> Option<Sink> {
    decoder.check_keys(section, &[]);
    let name = decoder.unique_name(section, &NAME, names);
    let kind = decoder.required::<Kind>(section, &KIND);
    let format = decoder.get(section, &FORMAT);
    let include = decode_prefixes(decoder, section, &INCLUDE);
    let exclude = decode_prefixes(decoder, section, &EXCLUDE);
    let level = decoder.get::<Level>(section, &SINK_LEVEL);
    let kind = match kind? {
        Kind::Console => {
            decoder.check_kind(section, "console");
            decoder.get(section, &COLOR).map(|color| SinkKind::Console { color })
        }
        Kind::File => {
            decoder.check_kind(section, "file");
            decode_file(decoder, section, dir)
        }
    };
    let sink = Sink { name: name?, kind: kind?, format: format?, include: include?, exclude: exclude?, level: level? };
    let covered = |prefix: &String| {
        let below = |other: &String| prefix == other || prefix.starts_with(&format!("{other}::"));
        sink.exclude.iter().any(below)
    };
    if sink.level == Level::Off {
        decoder.warn(&section.path_of(&SINK_LEVEL), "is off, so the sink takes nothing", "leave the sink out");
    } else if !sink.include.is_empty() && sink.include.iter().all(covered) {
        let key = section.path_of(&EXCLUDE);
        decoder.warn(&key, "covers everything that `include` names, so the sink takes nothing", "narrow it down");
    }
    Some(sink)
}

fn decode_prefixes<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, key: &Key) -> Option<Vec<String>> {
    let prefixes = decoder.list::<Target>(section, key)?;
    Some(prefixes.into_iter().map(|(target, _)| target.0).collect())
}
