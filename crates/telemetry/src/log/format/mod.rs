//! How a record is written: one file per format.
//!
//! A format renders a record into bytes and escapes for itself; it knows nothing of sinks, files and levels' limits.
//! Enter at [`render`].

use std::fmt::Write;

use jiff::tz::TimeZone;
use mlx_manager_config::Format;
use mlx_manager_signal::redact::is_forgeable;

use super::record::LogRecord;

mod json;
mod logfmt;
mod text;
mod time;

/// How one sink writes.
#[derive(Debug, Clone, PartialEq)]
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
    /// Renders a record in place of what was there before.
    pub fn render(&mut self, style: &Style, record: &LogRecord<'_>) {
        self.text.clear();
        self.sequence_at = match style.format {
            Format::Text => {
                text::render(style, record, &mut self.text);
                None
            }
            Format::Json => Some(json::render(record, &mut self.text)),
            Format::Logfmt => Some(logfmt::render(record, &mut self.text)),
        };
        self.text.push('\n');
        if style.journald {
            *self = prefixed(self, record.level);
        }
    }

    /// Appends the record to a buffer, with its sequence number.
    pub fn append_to(&self, buffer: &mut Vec<u8>, sequence: u64) {
        match self.sequence_at {
            Some(at) => {
                let (head, tail) = self.text.split_at(at);
                buffer.extend_from_slice(head.as_bytes());
                buffer.extend_from_slice(itoa::Buffer::new().format(sequence).as_bytes());
                buffer.extend_from_slice(tail.as_bytes());
            }
            None => buffer.extend_from_slice(self.text.as_bytes()),
        }
    }
}

/// Renders a record.
pub fn render(style: &Style, record: &LogRecord<'_>) -> Rendered {
    let mut rendered = Rendered::default();
    rendered.render(style, record);
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

/// What a byte is to a writer. Nearly every byte of a log is plain, and plain text is copied as a whole.
const QUOTE: u8 = 1;
const SPACE: u8 = 2;
const OTHER: u8 = 4;
const KIND: [u8; 256] = {
    let mut kinds = [OTHER; 256];
    let mut byte = 0x20;
    while byte < 0x7f {
        kinds[byte] = match byte as u8 {
            b'"' | b'\\' => QUOTE,
            b' ' | b'=' => SPACE,
            _ => 0,
        };
        byte += 1;
    }
    kinds
};

/// The length of the text's beginning that has no byte of these kinds.
fn plain_length(text: &str, kinds: u8) -> usize {
    text.bytes().take_while(|byte| KIND[usize::from(*byte)] & kinds == 0).count()
}

/// Appends text with every forgeable character written out.
fn escape_into(out: &mut String, text: &str) {
    let mut rest = text;
    loop {
        let (plain, other) = rest.split_at(plain_length(rest, OTHER));
        out.push_str(plain);
        let mut characters = other.chars();
        match characters.next() {
            None => return,
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            // As JSON does it, which is what readers of logfmt know. All of these lie in the basic plane.
            Some(character) if is_forgeable(character) => {
                display_into(out, format_args!("\\u{:04x}", u32::from(character)))
            }
            Some(character) => out.push(character),
        }
        rest = characters.as_str();
    }
}

/// Appends a value as one word, quoted where it would not be one.
fn word_into(out: &mut String, text: &str) {
    let plain = |character: char| {
        !character.is_whitespace() && !matches!(character, '"' | '=' | '\\') && !is_forgeable(character)
    };
    let begin = plain_length(text, QUOTE | SPACE | OTHER);
    if !text.is_empty() && text[begin..].chars().all(plain) {
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
    if plain_length(key, QUOTE | SPACE | OTHER) == key.len() {
        out.push_str(key);
    } else {
        out.extend(key.chars().map(safe));
    }
}

/// Appends a whole number.
fn integer_into(out: &mut String, value: impl itoa::Integer) {
    out.push_str(itoa::Buffer::new().format(value));
}

/// Appends anything else; formatting into a string cannot fail.
fn display_into(out: &mut String, value: impl std::fmt::Display) {
    if write!(out, "{value}").is_err() {
        out.push('-');
    }
}

/// Appends bytes as lower-case hexadecimal digits.
fn hex_into(out: &mut String, bytes: &[u8]) {
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    for byte in bytes {
        out.push(digit(byte >> 4));
        out.push(digit(byte & 15));
    }
}

#[cfg(test)]
mod tests;
