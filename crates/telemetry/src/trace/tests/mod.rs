//! Spans, records and metrics over real sockets into an endpoint that decodes them.

mod collector;
mod delivery;
mod pending;
mod spans;

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue};
use mlx_manager_config::{OtlpKind, Protocol, Secret, SemanticConventions, Send, Signal, Spool};
use mlx_manager_llm::Api;
use mlx_manager_signal::{
    propagate::{extract, ids, inject},
    route::Kind,
    span,
};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tracing::{Dispatch, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use collector::{Collector, attribute, string};

const LONG: Duration = Duration::from_secs(20);
const TOKEN: &str = "pylf_v1_us_abcdefghijklmnop";

fn traces() -> TracesConfig {
    TracesConfig {
        sample_ratio: 1.0,
        capture_content: false,
        keep_slower_than: Duration::from_secs(10),
        semconv: SemanticConventions::Both,
    }
}

fn telemetry() -> TelemetryConfig {
    TelemetryConfig { environment: "test".to_owned(), service_prefix: String::new(), service_name: None }
}

fn logfire(collector: &Collector) -> OtlpConfig {
    OtlpConfig {
        name: "logfire".to_owned(),
        kind: OtlpKind::Logfire,
        endpoint: format!("http://{}/", collector.address),
        protocol: Protocol::HttpProtobuf,
        token: Secret::new(TOKEN),
        headers: vec![("x-team".to_owned(), Secret::new("blue"))],
        send: Send::IfTokenPresent,
        signals: vec![Signal::Traces, Signal::Metrics, Signal::Logs],
        timeout: Duration::from_secs(30),
        spool: None,
    }
}

fn spooled(collector: &Collector, dir: &Path) -> OtlpConfig {
    OtlpConfig { spool: Some(Spool { dir: dir.to_owned(), size: 1_000_000 }), ..logfire(collector) }
}

/// Builds and makes a subscriber of it.
fn subscriber(traces: &TracesConfig, otlp: &[OtlpConfig]) -> (Dispatch, TraceHandle, Option<OtlpLogs>) {
    let Traces { layer, handle, logs, .. } = build(traces, &telemetry(), otlp, crate::build::TEST_BUILD).unwrap();
    (Dispatch::new(Registry::default().with(layer)), handle, logs)
}

fn within<T>(dispatch: &Dispatch, f: impl FnOnce() -> T) -> T {
    tracing::dispatcher::with_default(dispatch, f)
}

fn server_span() -> Span {
    span::http_server(
        Kind::Inference,
        "POST",
        Some("/v1/chat/completions"),
        Some(([127, 0, 0, 1], 4711).into()),
        "req-1",
    )
}

/// A server span that ended with a status.
fn served(status: u16) {
    span::http_server_finished(&server_span(), Some(status), None);
}

fn counts(handle: &TraceHandle) -> (u64, u64, u64) {
    let reading = handle.counters().read().find(|reading| reading.signal == Signal::Traces).unwrap();
    (reading.exported, reading.dropped, reading.failed)
}
