//! Trace context, in and out: the headers of requests and responses, and the ids that rows and log lines have.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::HeaderExtractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::hook::Conventions;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Makes the caller's `traceparent` the parent of a span that was not entered yet.
pub fn extract(span: &Span, headers: &HeaderMap) {
    if !headers.contains_key(TRACEPARENT) {
        return;
    }
    let Some(conventions) = Conventions::of(span) else { return };
    let context =
        conventions.propagator.extract_with_context(&opentelemetry::Context::new(), &HeaderExtractor(headers));
    if context.span().span_context().is_valid() {
        // The error says that the span is disabled, so that it has no trace to be part of.
        span.set_parent(context).unwrap_or_default();
    }
}

/// Writes `traceparent` and `tracestate` of a span into a request's or response's headers. Nothing without a trace.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    let span = context.span();
    let ids = span.span_context();
    if !ids.is_valid() {
        return;
    }
    let sampled = u8::from(ids.is_sampled());
    let traceparent = format!("00-{}-{}-{sampled:02x}", ids.trace_id(), ids.span_id());
    if let Ok(value) = HeaderValue::try_from(traceparent) {
        headers.insert(TRACEPARENT, value);
    }
    match HeaderValue::try_from(ids.trace_state().header()) {
        Ok(value) if !value.is_empty() => headers.insert(TRACESTATE, value),
        // A client's own header that we were given to overwrite belongs to another trace.
        _ => headers.remove(TRACESTATE),
    };
}

/// The hexadecimal ids of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanIds {
    /// 32 digits.
    pub trace_id: String,
    /// 16 digits.
    pub span_id: String,
    /// Whether the trace was chosen from the start to be exported.
    pub sampled: bool,
}

/// The ids of a span, when it is traced.
pub fn ids(span: &Span) -> Option<SpanIds> {
    let context = span.context();
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid().then(|| SpanIds {
        trace_id: ids.trace_id().to_string(),
        span_id: ids.span_id().to_string(),
        sampled: ids.is_sampled(),
    })
}
