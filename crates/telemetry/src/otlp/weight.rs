//! About how many bytes of memory telemetry takes while it waits. What is text counts; the rest is a flat charge.

use opentelemetry::{Array, KeyValue, Value, logs::AnyValue};
use opentelemetry_sdk::{logs::SdkLogRecord, trace::SpanData};

/// A span, a log record or an event, empty.
const ITEM: usize = 512;
/// A key with a value that is no text.
const ATTRIBUTE: usize = 56;

/// A span with its events.
pub(super) fn span(span: &SpanData) -> u64 {
    let events = span.events.iter().map(|event| ITEM + attributes(&event.attributes)).sum::<usize>();
    (ITEM + span.name.len() + attributes(&span.attributes) + events) as u64
}

/// A log record.
pub(super) fn log_record(record: &SdkLogRecord) -> u64 {
    let attributes = record.attributes_iter().map(|(key, value)| ATTRIBUTE + key.as_str().len() + any(value));
    (ITEM + record.body().map_or(0, any) + attributes.sum::<usize>()) as u64
}

fn attributes(attributes: &[KeyValue]) -> usize {
    let text = |value: &Value| match value {
        Value::String(text) => text.as_str().len(),
        Value::Array(Array::String(texts)) => texts.iter().map(|text| text.as_str().len()).sum(),
        _ => 0,
    };
    attributes.iter().map(|attribute| ATTRIBUTE + text(&attribute.value)).sum()
}

fn any(value: &AnyValue) -> usize {
    match value {
        AnyValue::String(text) => text.as_str().len(),
        _ => 0,
    }
}
