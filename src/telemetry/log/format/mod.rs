//! How a record is written: one file per format.
//!
//! A format renders a record into bytes and escapes for itself; it knows nothing of sinks, files and levels' limits.
//! Enter at [`render`].

use std::fmt::Write;

use jiff::{Timestamp, fmt::temporal::DateTimePrinter, tz::TimeZone};

use super::record::LogRecord;
use crate::config::Format;

mod json;
mod logfmt;
mod text;

/// How one sink writes.
#[derive(Debug, Clone)]
pub struct Style {
    /// The format.
    pub format: Format,
    /// Whether text is coloured.
    pub color: bool,
    /// Whether each line starts with journald's priority, `<6>`.
    pub journald: bool,
    /// Time zone of text.
    pub timezone: TimeZone,
}

/// A rendered record, newline included. A sink puts its sequence number in when it knows the record's place.
#[derive(Debug, Default)]
pub struct Rendered {
    /// The lines.
    pub text: String,
    /// Where the sequence number belongs, in formats that have one.
    pub sequence_at: Option<usize>,
}

impl Rendered {
    /// Appends the record to a buffer, with its sequence number.
    pub fn append_to(&self, buffer: &mut Vec<u8>, sequence: u64) {
        match self.sequence_at {
            Some(at) => {
                let (head, tail) = self.text.split_at(at);
                buffer.extend_from_slice(head.as_bytes());
                buffer.extend_from_slice(sequence.to_string().as_bytes());
                buffer.extend_from_slice(tail.as_bytes());
            }
            None => buffer.extend_from_slice(self.text.as_bytes()),
        }
    }
}

/// Renders a record.
pub fn render(style: &Style, record: &LogRecord<'_>) -> Rendered {
    let mut rendered = Rendered { text: String::with_capacity(256), sequence_at: None };
    match style.format {
        Format::Text => text::render(style, record, &mut rendered.text),
        Format::Json => rendered.sequence_at = Some(json::render(record, &mut rendered.text)),
        Format::Logfmt => rendered.sequence_at = Some(logfmt::render(record, &mut rendered.text)),
    }
    rendered.text.push('\n');
    if style.journald {
        rendered = prefixed(&rendered, record.level);
    }
    rendered
}

/// The name of the field that holds a backtrace: in text it is a block of its own.
pub const BACKTRACE: &str = "backtrace";

/// Top-level keys of the machine formats that an event's own field may not take; it is called `field.<name>` instead.
const RESERVED: [&str; 11] = [
    "timestamp",
    "level",
    "target",
    "line",
    "message",
    "request_id",
    "trace_id",
    "span_id",
    "trace_flags",
    "seq",
    "spans",
];

/// Puts journald's priority before every line, because journald makes an entry of each.
fn prefixed(rendered: &Rendered, level: tracing::Level) -> Rendered {
    let priority = match level {
        tracing::Level::ERROR => "<3>",
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        tracing::Level::DEBUG | tracing::Level::TRACE => "<7>",
    };
    let mut text = String::with_capacity(rendered.text.len() + priority.len());
    for line in rendered.text.split_inclusive('\n') {
        text.push_str(priority);
        text.push_str(line);
    }
    // Formats with a sequence number are one line.
    Rendered { text, sequence_at: rendered.sequence_at.map(|at| at + priority.len()) }
}

/// Writes RFC 3339 with microseconds: with `Z` in UTC, else with the offset.
fn write_timestamp(out: &mut String, timestamp: Timestamp, timezone: &TimeZone) {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    let printed = if *timezone == TimeZone::UTC {
        PRINTER.print_timestamp(&timestamp, &mut *out)
    } else {
        PRINTER.print_timestamp_with_offset(&timestamp, timezone.to_offset(timestamp), &mut *out)
    };
    if printed.is_err() {
        out.push('-');
    }
}

/// Whether a terminal, or a reader, could take a character for something else than text: control characters (C0, DEL,
/// C1), line separators and the marks that turn the direction of text.
fn is_forgeable(character: char) -> bool {
    matches!(character,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}'
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Appends text with every forgeable character written out.
fn escape_into(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // As JSON does it, which is what readers of logfmt know. All of these lie in the basic plane.
            character if is_forgeable(character) => display_into(out, format_args!("\\u{:04x}", u32::from(character))),
            character => out.push(character),
        }
    }
}

/// Appends a value as one word, quoted where it would not be one.
fn word_into(out: &mut String, text: &str) {
    let plain = |character: char| {
        !character.is_whitespace() && !matches!(character, '"' | '=' | '\\') && !is_forgeable(character)
    };
    if !text.is_empty() && text.chars().all(plain) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for part in text.split_inclusive(['"', '\\']) {
        match part.strip_suffix(['"', '\\']) {
            Some(rest) => {
                escape_into(out, rest);
                out.push('\\');
                out.push_str(&part[rest.len()..]);
            }
            None => escape_into(out, part),
        }
    }
    out.push('"');
}

/// Appends a field's name, with everything that would end it replaced.
fn key_into(out: &mut String, key: &str) {
    let safe = |character: char| {
        if character.is_whitespace() || matches!(character, '=' | '"') || is_forgeable(character) {
            '_'
        } else {
            character
        }
    };
    out.extend(key.chars().map(safe));
}

/// Appends a number; formatting into a string cannot fail.
fn display_into(out: &mut String, value: impl std::fmt::Display) {
    if write!(out, "{value}").is_err() {
        out.push('-');
    }
}

#[cfg(test)]
mod tests;
