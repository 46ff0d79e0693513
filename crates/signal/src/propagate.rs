//! Trace context, in and out: the headers of requests and responses, and the ids that rows and log lines have.

use http::{HeaderMap, HeaderName, HeaderValue};
use mlx_manager_llm::TraceIds;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::HeaderExtractor;
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetrySpanExt, get_otel_context};
use tracing_subscriber::{Registry, registry::LookupSpan};

use crate::hook::Conventions;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The context of a span, or of the nearest one around it that has ids. Where nobody records, only the outermost spans
/// have, and where nobody logs either, there are no others.
fn context(span: &Span) -> Option<opentelemetry::Context> {
    let current = span.is_disabled().then(Span::current);
    let context = current.as_ref().unwrap_or(span).with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        registry.span(id)?.scope().find_map(|span| get_otel_context(&span.id(), dispatch))
    })??;
    context.span().span_context().is_valid().then_some(context)
}

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
    ids(span).iter().for_each(|ids| write(ids, headers));
}

/// Writes ids into headers, as `traceparent` and `tracestate`.
pub fn write(ids: &TraceIds, headers: &mut HeaderMap) {
    let traceparent = ["00", &ids.trace_id, &ids.span_id, if ids.sampled { "01" } else { "00" }].join("-");
    if let Ok(value) = HeaderValue::try_from(traceparent) {
        headers.insert(TRACEPARENT, value);
    }
    match HeaderValue::from_str(&ids.state) {
        Ok(value) if !value.is_empty() => headers.insert(TRACESTATE, value),
        // A client's own header that we were given to overwrite belongs to another trace.
        _ => headers.remove(TRACESTATE),
    };
}

/// The ids of a span, when it is traced.
pub fn ids(span: &Span) -> Option<TraceIds> {
    let context = context(span)?;
    let span = context.span();
    let ids = span.span_context();
    Some(TraceIds {
        trace_id: hex(ids.trace_id().to_bytes()),
        span_id: hex(ids.span_id().to_bytes()),
        sampled: ids.is_sampled(),
        state: ids.trace_state().header(),
    })
}

/// Small hexadecimal digits, for which the formatter of numbers takes many times as long.
fn hex<const N: usize>(bytes: [u8; N]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value & 0xf)]);
    let mut digits = String::with_capacity(2 * N);
    for byte in bytes {
        digits.push(digit(byte >> 4));
        digits.push(digit(byte));
    }
    digits
}
