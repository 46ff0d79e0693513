//! Traces: span constructors, context propagation and export.
//!
//! [`build`] makes the one OpenTelemetry layer; the log room's composite holds it. Others build spans with [`span`] and
//! pass trace context with [`extract`] and [`inject`]; they never see the SDK.

mod logs;
mod pending;
mod processor;
mod sampler;
pub mod span;
mod tail;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    InstrumentationScope,
    propagation::TextMapPropagator,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, Registry};

use super::otlp::Exporters;
pub use super::otlp::{CounterReading, MetricDestination, SpoolReading, TelemetryCounters, TraceError};
use crate::config::{OtlpConfig, OtlpKind, SemanticConventions, TelemetryConfig, TracesConfig};
pub use logs::OtlpLogs;
use pending::Pending;
use processor::Router;
use sampler::Sampler;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A layer as the composite holds it.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// What [`build`] makes.
pub struct Traces {
    /// The OpenTelemetry layer. It is to be given our own spans only; an event given to it becomes a span event, and one at
    /// ERROR makes its span a failed one.
    pub layer: BoxedLayer,
    /// Ends it all.
    pub handle: TraceHandle,
    /// Where log records go out; `None` when no destination wants them.
    pub logs: Option<OtlpLogs>,
}

/// Makes the layer and starts the exporters. Without an active destination spans have ids, for log lines, audit rows and
/// `traceparent`, but record nothing and start no thread.
///
/// # Errors
/// When a destination can't be served as configured.
pub fn build(traces: &TracesConfig, telemetry: &TelemetryConfig, otlp: &[OtlpConfig]) -> Result<Traces, TraceError> {
    let exporters = Exporters::start(telemetry, otlp)?;
    let (kinds, queues): (Vec<_>, Vec<_>) = exporters.spans()?.into_iter().unzip();
    let logfire = kinds.iter().zip(&queues).filter(|(kind, _)| **kind == OtlpKind::Logfire);
    let logfire: Vec<_> = logfire.map(|(_, queue)| queue.clone()).collect();
    let pending = (!logfire.is_empty()).then(|| Arc::new(Pending::new(logfire)));
    if let Some(pending) = &pending {
        exporters.spawn(Pending::run(Arc::downgrade(pending)));
    }
    let logs = OtlpLogs::new(exporters.logs()?);
    // Exporters bring their own resources, and the default one would be read from OTEL_* variables.
    let provider = SdkTracerProvider::builder().with_resource(Resource::builder_empty().build());
    let conventions =
        Conventions { recording: !queues.is_empty(), version: traces.semconv, capture_content: traces.capture_content };
    let provider = if queues.is_empty() {
        provider.with_sampler(Sampler::Never).build()
    } else {
        provider
            .with_sampler(Sampler::Share(traces.sample_ratio))
            .with_span_processor(Router::new(queues, traces, pending.clone()))
            .build()
    };
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer_with_scope(scope()))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        // Parents are explicit nearly everywhere; activation would cost at every poll of every instrumented future.
        .with_context_activation(false)
        // A warning that mentions an error does not make its span a failed one; the constructors' counterparts do that.
        .with_error_events_to_status(false)
        .with_error_events_to_exceptions(false)
        .with_error_fields_to_exceptions(false)
        .with_error_records_to_exceptions(false)
        // The processor routes by it.
        .with_target(true)
        .and_then(conventions)
        .and_then(Follower(pending));
    let handle = TraceHandle { exporters: Arc::new(exporters), _provider: provider };
    Ok(Traces { layer: Box::new(layer), handle, logs })
}

/// Who made it, as every span and log record says.
fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("mlx-manager").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Keeps export going; held until the end.
#[derive(Debug, Clone)]
pub struct TraceHandle {
    exporters: Arc<Exporters>,
    // Spans of a dropped provider would be lost.
    _provider: SdkTracerProvider,
}

impl TraceHandle {
    /// Waits until everything that ended before the call was delivered, put on disk, refused or given up. From a plain
    /// thread or a blocking task. `false`: the deadline came first.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.exporters.flush(deadline)
    }

    /// Flushes and ends the export thread; metric readers must be shut down before. From a plain thread or a blocking
    /// task. `false`: something was lost, or the deadline came first.
    pub fn shutdown(&self, deadline: Duration) -> bool {
        self.exporters.shutdown(deadline)
    }

    /// What became of spans, records and metrics on their way out.
    pub fn counters(&self) -> TelemetryCounters {
        self.exporters.counters()
    }

    /// The destinations that want metrics, each with an exporter for a periodic reader.
    ///
    /// # Errors
    /// When the SDK refuses to make one.
    pub fn metrics(&self) -> Result<Vec<MetricDestination>, TraceError> {
        self.exporters.metrics()
    }
}

/// How span constructors speak. It sits beside the OpenTelemetry layer, where every span finds it through its own
/// subscriber; so there is no global, and a test has its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conventions {
    /// Whether anybody will ever see the attributes.
    recording: bool,
    version: SemanticConventions,
    capture_content: bool,
}

impl<S: Subscriber> Layer<S> for Conventions {}

/// Who announces long spans, beside the conventions for the same reason.
struct Follower(Option<Arc<Pending>>);

impl<S: Subscriber> Layer<S> for Follower {}

/// Makes the caller's `traceparent` the parent of a span that was not entered yet.
pub fn extract(span: &Span, headers: &HeaderMap) {
    if !headers.contains_key(TRACEPARENT) {
        return;
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &HeaderExtractor(headers));
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
