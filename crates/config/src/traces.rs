//! `[traces]`

use std::time::Duration;

use super::{
    decode::Decoder,
    schema::{Key, Table},
    setting::{Choice, DurationOrZero, Ratio},
};

/// What is traced, and in which words.
#[derive(Debug, Clone)]
pub struct TracesConfig {
    /// Share of traces kept, in [0, 1].
    pub sample_ratio: f64,
    /// Whether prompts and answers go into spans.
    pub capture_content: bool,
    /// Traces at least this slow are kept whatever the ratio, as are errors.
    pub keep_slower_than: Duration,
    /// The version of the GenAI conventions that attributes follow.
    pub semconv: SemanticConventions,
}

/// A version of the GenAI semantic conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SemanticConventions {
    /// The names that Logfire's pages read.
    V1_41,
    /// The newest names.
    Latest,
    /// Both.
    Both,
}

impl Choice for SemanticConventions {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("1.41", Self::V1_41), ("latest", Self::Latest), ("both", Self::Both)];
}

const SAMPLE_RATIO: Key = Key::new("sample_ratio", "1.0", "the share of traces that is kept");
const CAPTURE_CONTENT: Key = Key::new("capture_content", "false", "prompts and answers in spans");
const KEEP_SLOWER_THAN: Key =
    Key::new("keep_slower_than", "\"10 s\"", "below a ratio of 1, errors and slower traces are kept whole");
const SEMCONV: Key = Key::new("semconv", "\"both\"", "names of the GenAI conventions: 1.41 | latest | both");

pub(super) const TABLE: Table =
    Table::single("traces", "", &[SAMPLE_RATIO, CAPTURE_CONTENT, KEEP_SLOWER_THAN, SEMCONV]);

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<TracesConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let sample_ratio = decoder.get::<Ratio>(&section, &SAMPLE_RATIO);
    let capture_content = decoder.get(&section, &CAPTURE_CONTENT);
    let keep_slower_than = decoder.get::<DurationOrZero>(&section, &KEEP_SLOWER_THAN);
    let semconv = decoder.get(&section, &SEMCONV);
    Some(TracesConfig {
        sample_ratio: sample_ratio?.0,
        capture_content: capture_content?,
        keep_slower_than: keep_slower_than?.0,
        semconv: semconv?,
    })
}
