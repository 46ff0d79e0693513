//! An OTLP endpoint for tests: takes what it is sent over a real socket, decodes it, and misbehaves on request.

use std::{
    io::Read,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path, State},
    response::IntoResponse,
    routing::post,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest,
        metrics::v1::ExportMetricsServiceRequest,
        trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    trace::v1::Span,
};
use parking_lot::Mutex;
use prost::Message;

/// Answers never.
pub(super) const HANG: u16 = 0;

#[derive(Default)]
struct Received {
    status: AtomicU16,
    retry_after: AtomicU16,
    rejected: AtomicU16,
    arrivals: Mutex<Vec<Instant>>,
    headers: Mutex<Vec<HeaderMap>>,
    spans: Mutex<Vec<(String, Span)>>,
    logs: Mutex<Vec<(String, LogRecord)>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    resources: Mutex<Vec<Vec<KeyValue>>>,
}

pub(super) struct Collector {
    pub address: SocketAddr,
    received: Arc<Received>,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let received = Arc::new(Received { status: AtomicU16::new(200), ..Received::default() });
        let router = Router::new()
            .route("/v1/{signal}", post(take))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&received));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, received, _runtime: runtime }
    }

    /// From now on answers with a status, or [`HANG`]s.
    pub fn answer(&self, status: u16) {
        self.received.status.store(status, Ordering::SeqCst);
    }

    /// Asks for patience, in seconds, whenever it does not answer 200.
    pub fn retry_after(&self, seconds: u16) {
        self.received.retry_after.store(seconds, Ordering::SeqCst);
    }

    /// Takes requests, but says of so many spans in each that they were rejected.
    pub fn reject(&self, spans: u16) {
        self.received.rejected.store(spans, Ordering::SeqCst);
    }

    /// When each request came.
    pub fn arrivals(&self) -> Vec<Instant> {
        self.received.arrivals.lock().clone()
    }

    /// Service name and span, in the order in which they were taken.
    pub fn spans(&self) -> Vec<(String, Span)> {
        self.received.spans.lock().clone()
    }

    pub fn span(&self, name: &str) -> (String, Span) {
        let spans = self.spans();
        let names: Vec<_> = spans.iter().map(|(_, span)| span.name.clone()).collect();
        let found = spans.into_iter().find(|(_, span)| span.name == name);
        found.unwrap_or_else(|| panic!("no {name} among {names:?}"))
    }

    pub fn logs(&self) -> Vec<(String, LogRecord)> {
        self.received.logs.lock().clone()
    }

    pub fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        self.received.metrics.lock().clone()
    }

    /// The headers of every request, those that were turned away too.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.received.headers.lock().clone()
    }

    pub fn resources(&self) -> Vec<Vec<KeyValue>> {
        self.received.resources.lock().clone()
    }
}

async fn take(
    State(received): State<Arc<Received>>,
    Path(signal): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let gzip = headers.get("content-encoding").is_some();
    received.arrivals.lock().push(Instant::now());
    received.headers.lock().push(headers);
    let status = received.status.load(Ordering::SeqCst);
    if status == HANG {
        std::future::pending::<()>().await;
    }
    if status != 200 {
        let seconds = received.retry_after.load(Ordering::SeqCst).to_string();
        return (StatusCode::from_u16(status).unwrap(), [("retry-after", seconds)], Bytes::new());
    }
    let mut bytes = Vec::new();
    if gzip {
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut bytes).unwrap();
    } else {
        bytes.extend_from_slice(&body);
    }
    match signal.as_str() {
        "traces" => {
            for resource in ExportTraceServiceRequest::decode(&bytes[..]).unwrap().resource_spans {
                let service = note_resource(&received, resource.resource.unwrap().attributes);
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                received.spans.lock().extend(spans.map(|span| (service.clone(), span)));
            }
        }
        "logs" => {
            for resource in ExportLogsServiceRequest::decode(&bytes[..]).unwrap().resource_logs {
                let service = note_resource(&received, resource.resource.unwrap().attributes);
                let records = resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
                received.logs.lock().extend(records.map(|record| (service.clone(), record)));
            }
        }
        "metrics" => received.metrics.lock().push(Message::decode(&bytes[..]).unwrap()),
        other => panic!("{other}"),
    }
    let rejected = received.rejected.load(Ordering::SeqCst).into();
    let partial =
        (rejected > 0).then(|| ExportTracePartialSuccess { rejected_spans: rejected, error_message: String::new() });
    let answer = ExportTraceServiceResponse { partial_success: partial };
    (StatusCode::OK, [("retry-after", String::new())], answer.encode_to_vec().into())
}

fn note_resource(received: &Received, attributes: Vec<KeyValue>) -> String {
    let service = match attribute(&attributes, "service.name") {
        Some(Value::StringValue(name)) => name,
        other => panic!("{other:?}"),
    };
    received.resources.lock().push(attributes);
    service
}

/// An attribute's value. That it is there twice is a defect.
pub(super) fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let mut values = attributes.iter().filter(|attribute| attribute.key == key);
    let value = values.next()?.value.clone()?.value;
    assert!(values.next().is_none(), "{key} is there twice");
    value
}

pub(super) fn string(text: &str) -> Option<Value> {
    Some(Value::StringValue(text.to_owned()))
}

pub(super) fn strings(texts: &[&str]) -> Option<Value> {
    let values = texts.iter().map(|text| AnyValue { value: string(text) }).collect();
    Some(Value::ArrayValue(opentelemetry_proto::tonic::common::v1::ArrayValue { values }))
}

/// Waits for something that happens on its own.
pub(super) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} never happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}
