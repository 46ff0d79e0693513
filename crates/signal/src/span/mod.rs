//! The few spans there are. Each constructor has the constant target of the component it speaks for and gives the span
//! its OpenTelemetry name, kind and required attributes; each `…_finished` function sets what is known at the end.
//!
//! Attributes go to OpenTelemetry directly and not through fields of the `tracing` span: log lines show those fields, an
//! unsigned one would be exported as a string, and arrays have no field type. When nothing is recorded, none are made.

mod attempt;
mod database;
mod engine;
mod http;
mod inference;
mod pull;

use std::{borrow::Cow, error::Error as StdError};

use opentelemetry::{
    Array, KeyValue, StringValue, Value,
    trace::{SpanRef, Status, TraceContextExt},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{genai, hook::Conventions, redact};

pub use attempt::{attempt, attempt_finished};
pub use database::{Server, Statement, database, database_finished};
pub use engine::{
    BatchSize, DecodePace, cache_looked_up, cache_lookup, decode, decode_finished, prefill, prefill_chunk, queue,
};
pub use http::{http_server, http_server_finished, http_server_request};
pub use inference::{
    Destination, InferenceEnd, InferenceStart, capture_input, captures_content, inference, inference_failed_over,
    inference_finished, route, route_finished,
};
pub use pull::{download, download_finished, pull, pull_finished, pull_resolved};

/// Logfire's number for a span in which all went well.
const LEVEL_INFO: i64 = 9;
/// Logfire's number for a request that its caller got wrong.
const LEVEL_WARN: i64 = 13;
/// Logfire's number for a span that failed.
const LEVEL_ERROR: i64 = 17;

/// How to speak about a span, if anybody records it.
fn conventions(span: &Span) -> Option<Conventions> {
    Conventions::of(span).filter(|conventions| conventions.recording)
}

/// The OpenTelemetry context of a span that is recorded; starts it.
fn recording(span: &Span) -> Option<(Conventions, opentelemetry::Context)> {
    let conventions = conventions(span)?;
    let context = span.context();
    let recording = context.span().is_recording();
    recording.then_some((conventions, context))
}

/// Ends a span now, though somebody may hold on to its handle for longer.
fn end(span: &Span) {
    if conventions(span).is_some() {
        span.context().span().end();
    }
}

/// What a span says from its start on.
struct Start {
    /// Its OpenTelemetry name, unless it is that of its callsite.
    name: Option<Cow<'static, str>>,
    /// Logfire's message, with and without the values.
    template: &'static str,
    message: String,
    attributes: Vec<KeyValue>,
}

/// Starts a span, which is described only if it is recorded.
fn start(span: &Span, describe: impl FnOnce(&Conventions) -> Start) {
    if let Some((conventions, context)) = recording(span) {
        let Start { name, template, message, mut attributes } = describe(&conventions);
        attributes.extend([
            KeyValue::new("logfire.span_type", "span"),
            KeyValue::new("logfire.msg_template", template),
            KeyValue::new("logfire.msg", message),
        ]);
        let otel = context.span();
        if let Some(name) = name {
            otel.update_name(name);
        }
        otel.set_attributes(attributes);
    }
}

/// What an exception event says.
struct Failure {
    kind: &'static str,
    message: String,
    /// The error and under it its causes, as a stack trace ends in other languages.
    trace: String,
}

impl Failure {
    /// Takes down an error with all its causes, redacted.
    fn new(kind: &'static str, message: &str, mut cause: Option<&(dyn StdError + 'static)>) -> Self {
        let message = redact::text(message).into_owned();
        let mut trace = format!("{kind}: {message}\n");
        while let Some(error) = cause {
            trace.push_str("caused by: ");
            trace.push_str(&redact::text(&error.to_string()));
            trace.push('\n');
            cause = error.source();
        }
        Self { kind, message, trace }
    }
}

/// Sets the last attributes, the level and, with a failure, status and exception; then ends the span. Each attribute is
/// set but once, since the SDK would export both.
fn finish(span: &SpanRef<'_>, mut attributes: Vec<KeyValue>, failed: Option<(Value, Option<Failure>)>) {
    match failed {
        None => attributes.push(KeyValue::new("logfire.level_num", LEVEL_INFO)),
        Some((kind, failure)) => {
            attributes.push(KeyValue::new("logfire.level_num", LEVEL_ERROR));
            attributes.push(KeyValue::new("error.type", kind));
            let description = failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default();
            span.set_status(Status::error(description));
            if let Some(Failure { kind, message, trace }) = failure {
                let event = vec![
                    KeyValue::new("exception.type", kind),
                    KeyValue::new("exception.message", message),
                    KeyValue::new("exception.stacktrace", trace),
                    // A text, as the Python SDK has it.
                    KeyValue::new("exception.escaped", "True"),
                ];
                span.add_event("exception", event);
            }
        }
    }
    span.set_attributes(attributes);
    span.end();
}

/// A count as the integer it is.
fn count(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

fn texts(name: &'static str, values: &[String]) -> KeyValue {
    KeyValue::new(name, Value::Array(Array::String(values.iter().cloned().map(StringValue::from).collect())))
}

fn key_values(attributes: genai::Attributes) -> Vec<KeyValue> {
    attributes
        .into_iter()
        .map(|(name, value)| match value {
            genai::Value::Text(text) => KeyValue::new(name, text),
            genai::Value::Integer(integer) => KeyValue::new(name, integer),
            genai::Value::Float(float) => KeyValue::new(name, float),
            genai::Value::Bool(switch) => KeyValue::new(name, switch),
            genai::Value::Texts(values) => texts(name, &values),
        })
        .collect()
}
