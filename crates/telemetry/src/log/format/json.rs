//! JSON lines, for machines. Times are UTC; trace context has the names of OpenTelemetry's format for non-OTLP logs.

use mlx_manager_signal::redact::is_forgeable;

use super::{OTHER, QUOTE, RESERVED, display_into, hex_into, integer_into, plain_length, time::write_timestamp};
use crate::log::record::{Fields, LogRecord, Value};

/// Appends one object and returns where the sequence number belongs.
pub fn render(record: &LogRecord<'_>, out: &mut String) -> usize {
    out.push_str("{\"timestamp\":\"");
    write_timestamp(out, record.timestamp, &jiff::tz::TimeZone::UTC);
    out.push_str("\",\"level\":\"");
    out.push_str(record.level.as_str());
    out.push_str("\",\"target\":");
    string_into(out, record.target);
    if let Some(line) = record.line {
        out.push_str(",\"line\":");
        integer_into(out, line);
    }
    out.push_str(",\"message\":");
    string_into(out, record.message);
    if let Some(request_id) = record.request_id {
        out.push_str(",\"request_id\":");
        string_into(out, request_id);
    }
    if let Some(trace) = record.trace {
        out.push_str(",\"trace_id\":\"");
        hex_into(out, &trace.trace_id.to_bytes());
        out.push_str("\",\"span_id\":\"");
        hex_into(out, &trace.span_id.to_bytes());
        out.push_str("\",\"trace_flags\":\"");
        hex_into(out, &[trace.flags.to_u8()]);
        out.push('"');
    }
    out.push_str(",\"seq\":");
    let sequence_at = out.len();
    fields_into(out, record.fields);
    fields_into(out, record.context);
    if !record.spans.is_empty() {
        out.push_str(",\"spans\":");
        strings_into(out, record.spans.iter().copied());
    }
    out.push('}');
    sequence_at
}

fn fields_into(out: &mut String, fields: &Fields) {
    for (key, value) in fields.iter() {
        out.push(',');
        if RESERVED.contains(&key) {
            string_into(out, &format!("field.{key}"));
        } else {
            string_into(out, key);
        }
        out.push(':');
        match value {
            Value::Text(text) => string_into(out, text),
            Value::Signed(value) => integer_into(out, value),
            Value::Unsigned(value) => integer_into(out, value),
            Value::Float(value) if value.is_finite() => display_into(out, value),
            // JSON has no word for these.
            Value::Float(value) => string_into(out, &value.to_string()),
            Value::Bool(value) => display_into(out, value),
            Value::Error(chain) => {
                string_into(out, chain.first().map_or("", String::as_str));
                if chain.len() > 1 {
                    out.push(',');
                    string_into(out, &format!("{key}.causes"));
                    out.push(':');
                    strings_into(out, chain.iter().skip(1).map(String::as_str));
                }
            }
        }
    }
}

fn strings_into<'a>(out: &mut String, texts: impl Iterator<Item = &'a str>) {
    out.push('[');
    for (index, text) in texts.enumerate() {
        if index > 0 {
            out.push(',');
        }
        string_into(out, text);
    }
    out.push(']');
}

fn string_into(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    loop {
        let (plain, other) = rest.split_at(plain_length(rest, QUOTE | OTHER));
        out.push_str(plain);
        let mut characters = other.chars();
        match characters.next() {
            None => break,
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            // All of these lie in the basic plane. JSON needs the C0 ones escaped, a terminal the others.
            Some(character) if is_forgeable(character) => {
                display_into(out, format_args!("\\u{:04x}", u32::from(character)));
            }
            Some(character) => out.push(character),
        }
        rest = characters.as_str();
    }
    out.push('"');
}
