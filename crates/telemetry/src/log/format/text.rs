//! Text, for people: one line per record, and below it our own indented block for causes and backtraces.

use tracing::Level;

use super::{
    BACKTRACE, Style, display_into, escape_into, hex_into, integer_into, key_into, time::write_timestamp, word_into,
};
use crate::log::record::{Fields, LogRecord, Value};

const RESET: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";

/// `2026-11-20T23:11:34.123456Z | INFO     | mlx_manager::server::dispatch:88 - message key=value`
pub fn render(style: &Style, record: &LogRecord<'_>, out: &mut String) {
    let paint = |out: &mut String, code: &str| {
        if style.color {
            out.push_str(code);
        }
    };
    paint(out, DIM);
    write_timestamp(out, record.timestamp, &style.timezone);
    paint(out, RESET);
    out.push_str(" | ");
    paint(out, color(record.level));
    out.push_str(padded(record.level));
    paint(out, RESET);
    out.push_str(" | ");
    paint(out, DIM);
    escape_into(out, record.target);
    if let Some(line) = record.line {
        out.push(':');
        integer_into(out, line);
    }
    paint(out, RESET);
    out.push_str(" - ");
    escape_into(out, record.message);
    let mut blocks = Vec::new();
    fields_into(out, record.fields, &mut blocks);
    fields_into(out, record.context, &mut blocks);
    if let Some(request_id) = record.request_id {
        out.push_str(" request_id=");
        word_into(out, request_id);
    }
    if let Some(trace) = record.trace {
        out.push_str(" trace_id=");
        hex_into(out, &trace.trace_id.to_bytes());
    }
    if !record.spans.is_empty() {
        out.push_str("\n    in ");
        escape_into(out, &record.spans.join(" > "));
    }
    for (title, text) in blocks {
        // The block's line breaks are ours; what each of its lines says is escaped like everything else.
        for line in text.lines() {
            out.push_str("\n    ");
            out.push_str(title);
            escape_into(out, line);
        }
    }
}

fn fields_into<'a>(out: &mut String, fields: &'a Fields, blocks: &mut Vec<(&'static str, &'a str)>) {
    for (key, value) in fields.iter() {
        if let (BACKTRACE, Value::Text(text)) = (key, value) {
            blocks.push(("", text));
            continue;
        }
        out.push(' ');
        key_into(out, key);
        out.push('=');
        match value {
            Value::Text(text) => word_into(out, text),
            Value::Signed(value) => integer_into(out, value),
            Value::Unsigned(value) => integer_into(out, value),
            Value::Float(value) => display_into(out, value),
            Value::Bool(value) => display_into(out, value),
            Value::Error(chain) => {
                let mut causes = chain.iter();
                word_into(out, causes.next().map_or("", String::as_str));
                blocks.extend(causes.map(|cause| ("caused by: ", cause.as_str())));
            }
        }
    }
}

/// The level, eight letters wide.
fn padded(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR   ",
        Level::WARN => "WARN    ",
        Level::INFO => "INFO    ",
        Level::DEBUG => "DEBUG   ",
        Level::TRACE => "TRACE   ",
    }
}

fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[1;31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}
