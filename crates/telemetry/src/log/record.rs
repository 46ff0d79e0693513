//! A log record before it is text: typed fields, the context of its spans, and the limit on its size.
//!
//! Knows nothing of formats and sinks. Enter at [`LogRecord`].

use std::{
    error::Error,
    fmt::{self, Write},
    mem,
    ops::Range,
};

use jiff::Timestamp;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};
use tracing::{
    Level,
    field::{Field, Visit},
};

/// The most bytes that the message and the values of one record hold together, before escaping.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// The most bytes that a text keeps for its next use.
const KEPT_BYTES: usize = 4 * 1024;

/// How far an error's `source()` chain is followed; a longer one is most likely a circle.
const MAX_CAUSES: usize = 32;

/// One thing that happened, as sinks and the observer see it.
#[derive(Debug)]
pub struct LogRecord<'a> {
    /// When.
    pub timestamp: Timestamp,
    /// How bad.
    pub level: Level,
    /// The component that speaks; the module path unless the event names another.
    pub target: &'a str,
    /// The source line.
    pub line: Option<u32>,
    /// The sentence.
    pub message: &'a str,
    /// The event's own fields.
    pub fields: &'a Fields,
    /// Plain fields of the enclosing spans that the event has not itself; an inner span's value hides an outer one's.
    /// Without `request_id`.
    pub context: &'a Fields,
    /// The request it belongs to.
    pub request_id: Option<&'a str>,
    /// The trace and the span it belongs to.
    pub trace: Option<TraceIds>,
    /// Names of the enclosing spans from the outermost in; only of errors.
    pub spans: &'a [&'static str],
}

/// Where a record lies in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceIds {
    /// The trace.
    pub trace_id: TraceId,
    /// The innermost span.
    pub span_id: SpanId,
    /// Whether it is sampled.
    pub flags: TraceFlags,
}

impl TraceIds {
    /// The ids of a span, if it is part of a trace.
    pub fn of(context: &SpanContext) -> Option<Self> {
        context.is_valid().then(|| Self {
            trace_id: context.trace_id(),
            span_id: context.span_id(),
            flags: context.trace_flags(),
        })
    }
}

/// A value as it was recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Text, or anything that was recorded by `Display` or `Debug`.
    Text(&'a str),
    /// A signed integer.
    Signed(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// A number with a fraction.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// An error and its causes from the outermost in; never empty.
    Error(&'a [String]),
}

/// Fields in the order of their first recording; a later value replaces an earlier one of the same key.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    entries: Vec<(&'static str, Stored)>,
    /// All texts, one after the other: a field costs no allocation of its own.
    text: String,
}

#[derive(Debug, Clone)]
enum Stored {
    Text(Range<usize>),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Error(Vec<String>),
}

impl Fields {
    /// No fields.
    pub const NONE: &'static Self = &Self { entries: Vec::new(), text: String::new() };

    /// Sets a field.
    pub fn set(&mut self, key: &'static str, value: Value<'_>) {
        let stored = match value {
            Value::Text(text) => {
                let start = self.text.len();
                self.text.push_str(text);
                Stored::Text(start..self.text.len())
            }
            Value::Signed(value) => Stored::Signed(value),
            Value::Unsigned(value) => Stored::Unsigned(value),
            Value::Float(value) => Stored::Float(value),
            Value::Bool(value) => Stored::Bool(value),
            Value::Error(chain) => Stored::Error(chain.to_vec()),
        };
        self.put(key, stored);
    }

    fn put(&mut self, key: &'static str, value: Stored) {
        match self.entries.iter_mut().find(|(existing, _)| *existing == key) {
            Some((_, existing)) => {
                let old = mem::replace(existing, value);
                self.cut(old);
            }
            None => self.entries.push((key, value)),
        }
    }

    /// Takes the text of a value away, so that what is recorded again and again doesn't grow.
    fn cut(&mut self, value: Stored) {
        let Stored::Text(gone) = value else { return };
        self.text.drain(gone.clone());
        for (_, value) in &mut self.entries {
            if let Stored::Text(range) = value
                && range.start >= gone.end
            {
                *range = range.start - gone.len()..range.end - gone.len();
            }
        }
    }

    fn value<'a>(&'a self, stored: &'a Stored) -> Value<'a> {
        match stored {
            // The ranges are this text's own.
            Stored::Text(range) => Value::Text(self.text.get(range.clone()).unwrap_or_default()),
            Stored::Signed(value) => Value::Signed(*value),
            Stored::Unsigned(value) => Value::Unsigned(*value),
            Stored::Float(value) => Value::Float(*value),
            Stored::Bool(value) => Value::Bool(*value),
            Stored::Error(chain) => Value::Error(chain),
        }
    }

    /// A field's value.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.entries.iter().find(|(existing, _)| *existing == key).map(|(_, value)| self.value(value))
    }

    /// Takes a field out.
    pub fn remove(&mut self, key: &str) {
        if let Some(index) = self.entries.iter().position(|(existing, _)| *existing == key) {
            let (_, value) = self.entries.remove(index);
            self.cut(value);
        }
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Value<'_>)> {
        self.entries.iter().map(|(key, value)| (*key, self.value(value)))
    }

    /// Sets every field of another list.
    pub fn merge(&mut self, other: &Self) {
        for (key, value) in other.iter() {
            self.set(key, value);
        }
    }

    /// Takes everything out and keeps the room, unless it is much.
    pub fn clear(&mut self) {
        self.entries.clear();
        clear_text(&mut self.text);
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Empties a text and keeps its room, unless it is much.
pub fn clear_text(text: &mut String) {
    text.clear();
    text.shrink_to(KEPT_BYTES);
}

/// Collects an event's or a span's fields, within [`MAX_RECORD_BYTES`].
#[derive(Debug)]
pub struct Collector {
    /// The event's message.
    pub message: String,
    /// Its fields.
    pub fields: Fields,
    left: usize,
    /// Spans keep only what a log line shows: OpenTelemetry attributes, whose names have dots, may hold content.
    plain_only: bool,
}

impl Collector {
    /// For an event.
    pub fn event() -> Self {
        Self { message: String::new(), fields: Fields::default(), left: MAX_RECORD_BYTES, plain_only: false }
    }

    /// For a span.
    pub fn span() -> Self {
        Self { plain_only: true, ..Self::event() }
    }

    /// Makes it as good as new.
    pub fn clear(&mut self) {
        clear_text(&mut self.message);
        self.fields.clear();
        self.left = MAX_RECORD_BYTES;
    }

    fn put(&mut self, field: &Field, value: Stored) {
        if !self.skips(field) {
            self.fields.put(field.name(), value);
        }
    }

    fn skips(&self, field: &Field) -> bool {
        self.plain_only && field.name().contains('.')
    }

    /// Takes in a text that `write` writes.
    fn record_text(&mut self, field: &Field, write: impl FnOnce(&mut Limited<'_>) -> fmt::Result) {
        if self.skips(field) {
            return;
        }
        if field.name() == "message" && !self.plain_only {
            self.message.clear();
            limit(&mut self.message, &mut self.left, write);
        } else {
            let text = &mut self.fields.text;
            let start = text.len();
            limit(text, &mut self.left, write);
            let range = start..text.len();
            self.fields.put(field.name(), Stored::Text(range));
        }
    }
}

impl Visit for Collector {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Stored::Float(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Stored::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Stored::Unsigned(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Stored::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_text(field, |text| text.write_str(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if self.skips(field) {
            return;
        }
        let mut chain = Vec::new();
        let mut next = Some(value);
        while let Some(error) = next.filter(|_| chain.len() < MAX_CAUSES) {
            let mut text = String::new();
            limit(&mut text, &mut self.left, |text| write!(text, "{error}"));
            chain.push(text);
            next = error.source();
        }
        self.put(field, Stored::Error(chain));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_text(field, |text| write!(text, "{value:?}"));
    }
}

/// Appends what is written to a text, as long as there are bytes left.
fn limit(text: &mut String, left: &mut usize, write: impl FnOnce(&mut Limited<'_>) -> fmt::Result) {
    let start = text.len();
    let mut limited = Limited { text, left, whole: 0 };
    let result = write(&mut limited);
    let whole = limited.whole;
    if result.is_err() {
        // `Limited` itself never fails: the value's own formatting did.
        text.push_str("(formatting failed)");
    }
    if whole > text.len() - start {
        text.push_str(&format!("… (cut, {whole} bytes in all)"));
    }
}

/// Keeps the beginning of what is written and counts the rest.
struct Limited<'a> {
    text: &'a mut String,
    left: &'a mut usize,
    whole: usize,
}

impl Write for Limited<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.whole += part.len();
        let kept = part.floor_char_boundary(*self.left);
        self.text.push_str(&part[..kept]);
        // Once something was cut nothing may follow, or the text would have a hole.
        *self.left = if kept < part.len() { 0 } else { *self.left - kept };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_value_replaces_and_keeps_its_place() {
        let mut fields = Fields::default();
        fields.set("a", Value::Text("first"));
        fields.set("b", Value::Bool(true));
        fields.set("c", Value::Text("third"));
        for (text, bytes) in [("the second", 15), ("", 5), ("2", 6)] {
            fields.set("a", Value::Text(text));
            let expected = [("a", Value::Text(text)), ("b", Value::Bool(true)), ("c", Value::Text("third"))];
            assert_eq!(fields.iter().collect::<Vec<_>>(), expected);
            assert_eq!(fields.text.len(), bytes, "a replaced text is gone");
        }
        fields.set("c", Value::Signed(3));
        fields.remove("b");
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("a", Value::Text("2")), ("c", Value::Signed(3))]);
    }

    #[test]
    fn long_text_is_cut_at_a_character_and_says_so() {
        let (mut text, mut left) = (String::new(), MAX_RECORD_BYTES);
        let long = "ü".repeat(MAX_RECORD_BYTES);
        limit(&mut text, &mut left, |text| write!(text, "x{long}"));
        assert!(text.ends_with(&format!("ü… (cut, {} bytes in all)", long.len() + 1)));
        assert!(text.len() < MAX_RECORD_BYTES + 64);
        limit(&mut text, &mut left, |text| text.write_str("more"));
        assert!(text.ends_with("… (cut, 4 bytes in all)"));
        clear_text(&mut text);
        assert!(text.is_empty() && text.capacity() <= KEPT_BYTES);
    }
}
