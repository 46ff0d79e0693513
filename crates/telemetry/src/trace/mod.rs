//! Traces: the SDK behind the spans, and export.
//!
//! [`build`] makes the one OpenTelemetry layer; the log room's composite holds it. It carries what span constructors look
//! for ([`mlx_manager_signal::hook`]).

mod logs;
mod pending;
mod processor;
mod sampler;
mod tail;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use mlx_manager_config::{OtlpConfig, OtlpKind, TelemetryConfig, TracesConfig};
use mlx_manager_signal::hook::Conventions;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{Layer, Registry};

use crate::{
    build::Build,
    otlp::{self, Exporters, MetricDestination, TelemetryCounters, TraceError},
};
pub use logs::OtlpLogs;
use pending::Pending;
use processor::Router;
use sampler::Sampler;

static PROPAGATOR: LazyLock<TraceContextPropagator> = LazyLock::new(TraceContextPropagator::new);

/// A layer as the composite holds it.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// What [`build`] makes.
pub struct Traces {
    /// The OpenTelemetry layer. It is to be given our own spans only; an event given to it becomes a span event, and one at
    /// ERROR makes its span a failed one.
    pub layer: BoxedLayer,
    /// Whether somebody exports the spans.
    pub recording: bool,
    /// Ends it all.
    pub handle: TraceHandle,
    /// Where log records go out; `None` when no destination wants them.
    pub logs: Option<OtlpLogs>,
}

/// Makes the layer and starts the exporters. Without an active destination the outermost spans have ids, for log lines, audit
/// rows and `traceparent`, but nothing is recorded and no thread started.
///
/// # Errors
/// When a destination can't be served as configured.
pub fn build(
    traces: &TracesConfig,
    telemetry: &TelemetryConfig,
    otlp: &[OtlpConfig],
    build: Build,
) -> Result<Traces, TraceError> {
    let exporters = Exporters::start(telemetry, otlp, build)?;
    let (kinds, queues): (Vec<_>, Vec<_>) = exporters.spans().into_iter().unzip();
    let logfire = kinds.iter().zip(&queues).filter(|(kind, _)| **kind == OtlpKind::Logfire);
    let logfire: Vec<_> = logfire.map(|(_, queue)| queue.clone()).collect();
    let pending = (!logfire.is_empty()).then(|| Arc::new(Pending::new(logfire)));
    if let Some(pending) = &pending {
        exporters.spawn(Pending::run(Arc::downgrade(pending)));
    }
    let logs = OtlpLogs::new(exporters.logs());
    // Exporters bring their own resources, and the default one would be read from OTEL_* variables.
    let provider = SdkTracerProvider::builder().with_resource(Resource::builder_empty().build());
    let recording = !queues.is_empty();
    let conventions = Conventions {
        recording,
        version: traces.semconv,
        capture_content: traces.capture_content,
        propagator: &*PROPAGATOR,
    };
    let provider = if recording {
        provider
            .with_sampler(Sampler::Share(traces.sample_ratio))
            .with_span_processor(Router::new(queues, traces, pending.clone()))
            .build()
    } else {
        provider.with_sampler(Sampler::Never).build()
    };
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer_with_scope(otlp::scope()))
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
        .and_then(pending::follower(pending));
    let handle = TraceHandle { exporters: Arc::new(exporters), _provider: provider };
    Ok(Traces { layer: Box::new(layer), recording, handle, logs })
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
    #[cfg(test)]
    fn flush(&self, deadline: Duration) -> bool {
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
