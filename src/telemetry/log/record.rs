//! A log record before it is text: typed fields, the context of its spans, and the limit on its size.
//!
//! Knows nothing of formats and sinks. Enter at [`LogRecord`].

use std::{
    error::Error,
    fmt::{self, Write},
    sync::Arc,
};

use jiff::Timestamp;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};
use tracing::{
    Level,
    field::{Field, Visit},
};

/// The most bytes that the message and the values of one record hold together, before escaping.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

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
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text, or anything that was recorded by `Display` or `Debug`.
    Text(Arc<str>),
    /// A signed integer.
    Signed(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// A number with a fraction.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// An error and its causes from the outermost in; never empty.
    Error(Vec<String>),
}

/// Fields in the order of their first recording; a later value replaces an earlier one of the same key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// No fields.
    pub const NONE: &'static Self = &Self(Vec::new());

    /// Sets a field.
    pub fn set(&mut self, key: &'static str, value: Value) {
        match self.0.iter_mut().find(|(existing, _)| *existing == key) {
            Some((_, existing)) => *existing = value,
            None => self.0.push((key, value)),
        }
    }

    /// A field's value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(existing, _)| *existing == key).map(|(_, value)| value)
    }

    /// Takes a field out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let index = self.0.iter().position(|(existing, _)| *existing == key)?;
        Some(self.0.remove(index).1)
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// Sets every field of another list.
    pub fn merge(&mut self, other: Self) {
        for (key, value) in other.0 {
            self.set(key, value);
        }
    }

    /// Adds the fields of an outer span that no inner one has.
    pub fn inherit(&mut self, outer: &Self) {
        for (key, value) in outer.iter() {
            if self.get(key).is_none() {
                self.0.push((key, value.clone()));
            }
        }
    }
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

    fn set(&mut self, field: &Field, value: Value) {
        if !self.skips(field) {
            self.fields.set(field.name(), value);
        }
    }

    fn skips(&self, field: &Field) -> bool {
        self.plain_only && field.name().contains('.')
    }

    fn text(&mut self, arguments: fmt::Arguments<'_>) -> String {
        let mut limited = Limited { text: String::new(), left: self.left, whole: 0 };
        if limited.write_fmt(arguments).is_err() {
            // `Limited` itself never fails: the value's own formatting did.
            limited.text.push_str("(formatting failed)");
        }
        self.left = limited.left;
        if limited.whole > limited.text.len() {
            let whole = limited.whole;
            limited.text.push_str(&format!("… (cut, {whole} bytes in all)"));
        }
        limited.text
    }
}

impl Visit for Collector {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::Float(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::Unsigned(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if self.skips(field) {
            return;
        }
        let mut chain = Vec::new();
        let mut next = Some(value);
        while let Some(error) = next.filter(|_| chain.len() < MAX_CAUSES) {
            chain.push(self.text(format_args!("{error}")));
            next = error.source();
        }
        self.set(field, Value::Error(chain));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.skips(field) {
            return;
        }
        let text = self.text(format_args!("{value:?}"));
        if field.name() == "message" && !self.plain_only {
            self.message = text;
        } else {
            self.set(field, Value::Text(text.into()));
        }
    }
}

/// Keeps the beginning of what is written and counts the rest.
struct Limited {
    text: String,
    left: usize,
    whole: usize,
}

impl Write for Limited {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.whole += part.len();
        let kept = part.floor_char_boundary(self.left);
        self.text.push_str(&part[..kept]);
        // Once something was cut nothing may follow, or the text would have a hole.
        self.left = if kept < part.len() { 0 } else { self.left - kept };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_value_replaces_and_keeps_its_place() {
        let mut fields = Fields::default();
        fields.set("a", Value::Signed(1));
        fields.set("b", Value::Bool(true));
        fields.set("a", Value::Signed(2));
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("a", &Value::Signed(2)), ("b", &Value::Bool(true))]);
    }

    #[test]
    fn inner_value_hides_outer_one() {
        let mut inner = Fields::default();
        inner.set("model", Value::Signed(1));
        let mut outer = Fields::default();
        outer.set("model", Value::Signed(2));
        outer.set("tokens", Value::Signed(3));
        inner.inherit(&outer);
        assert_eq!(inner.get("model"), Some(&Value::Signed(1)));
        assert_eq!(inner.get("tokens"), Some(&Value::Signed(3)));
    }

    #[test]
    fn long_text_is_cut_at_a_character_and_says_so() {
        let mut collector = Collector::event();
        let long = "ü".repeat(MAX_RECORD_BYTES);
        let text = collector.text(format_args!("x{long}"));
        assert!(text.ends_with(&format!("ü… (cut, {} bytes in all)", long.len() + 1)));
        assert!(text.len() < MAX_RECORD_BYTES + 64);
        assert_eq!(collector.text(format_args!("more")), "… (cut, 4 bytes in all)");
    }
}
