//! `key=value` lines: between text and JSON, one record per line.

use super::{RESERVED, display_into, hex_into, integer_into, key_into, time::write_timestamp, word_into};
use crate::log::record::{Fields, LogRecord, Value};

/// Appends one line and returns where the sequence number belongs.
pub fn render(record: &LogRecord<'_>, out: &mut String) -> usize {
    out.push_str("timestamp=");
    write_timestamp(out, record.timestamp, &jiff::tz::TimeZone::UTC);
    out.push_str(" level=");
    out.push_str(record.level.as_str());
    out.push_str(" target=");
    word_into(out, record.target);
    if let Some(line) = record.line {
        out.push_str(" line=");
        integer_into(out, line);
    }
    out.push_str(" message=");
    word_into(out, record.message);
    if let Some(request_id) = record.request_id {
        out.push_str(" request_id=");
        word_into(out, request_id);
    }
    if let Some(trace) = record.trace {
        out.push_str(" trace_id=");
        hex_into(out, &trace.trace_id.to_bytes());
        out.push_str(" span_id=");
        hex_into(out, &trace.span_id.to_bytes());
        out.push_str(" trace_flags=");
        hex_into(out, &[trace.flags.to_u8()]);
    }
    out.push_str(" seq=");
    let sequence_at = out.len();
    fields_into(out, record.fields);
    fields_into(out, record.context);
    if !record.spans.is_empty() {
        out.push_str(" spans=");
        word_into(out, &record.spans.join(" > "));
    }
    sequence_at
}

fn fields_into(out: &mut String, fields: &Fields) {
    for (key, value) in fields.iter() {
        out.push(' ');
        if RESERVED.contains(&key) {
            out.push_str("field.");
        }
        key_into(out, key);
        out.push('=');
        match value {
            Value::Text(text) => word_into(out, text),
            Value::Signed(value) => integer_into(out, value),
            Value::Unsigned(value) => integer_into(out, value),
            Value::Float(value) => display_into(out, value),
            Value::Bool(value) => display_into(out, value),
            Value::Error(chain) => word_into(out, &chain.join(": ")),
        }
    }
}
