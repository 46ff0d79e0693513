//! A real OTLP receiver over HTTP/protobuf, which keeps what it was sent.

use std::{
    collections::HashMap,
    io::Read,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::Metric,
    trace::v1::Span,
};
use prost::Message;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::task::TaskTracker;

/// A span with the service it came from.
#[derive(Debug, Clone)]
pub struct ReceivedSpan {
    pub service: String,
    pub resource: HashMap<String, Value>,
    pub span: Span,
}

impl ReceivedSpan {
    pub fn attribute(&self, name: &str) -> Option<Value> {
        attributes(&self.span.attributes).remove(name)
    }

    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.attribute(name) {
            Some(Value::IntValue(value)) => Some(value),
            None => None,
            other => panic!("{name} is no integer: {other:?}"),
        }
    }

    pub fn text(&self, name: &str) -> Option<String> {
        match self.attribute(name) {
            Some(Value::StringValue(value)) => Some(value),
            None => None,
            other => panic!("{name} is no text: {other:?}"),
        }
    }

    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub fn parent_id(&self) -> String {
        hex(&self.span.parent_span_id)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<ReceivedSpan>,
    logs: Vec<LogRecord>,
    metrics: Vec<Metric>,
    authorizations: Vec<String>,
}

/// The receiver.
#[derive(Debug, Clone)]
pub struct Otlp {
    pub address: SocketAddr,
    received: Arc<Mutex<Received>>,
    status: Arc<AtomicU16>,
}

impl Otlp {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let otlp =
            Self { address: listener.local_addr().unwrap(), received: Arc::default(), status: Arc::new(200.into()) };
        let routes = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/logs", post(logs))
            .route("/v1/metrics", post(metrics))
            .layer(from_fn_with_state(otlp.clone(), turn_away))
            .with_state(otlp.clone());
        TaskTracker::new().spawn(async move { axum::serve(listener, routes).await.unwrap() });
        otlp
    }

    /// From now on answers with a status, and takes nothing unless it is 200.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.received.lock().unwrap().spans.clone()
    }

    pub fn logs(&self) -> Vec<LogRecord> {
        self.received.lock().unwrap().logs.clone()
    }

    pub fn metrics(&self) -> Vec<Metric> {
        self.received.lock().unwrap().metrics.clone()
    }

    pub fn authorizations(&self) -> Vec<String> {
        self.received.lock().unwrap().authorizations.clone()
    }

    /// Waits until some span satisfies `wanted`.
    pub async fn span(&self, wanted: impl Fn(&ReceivedSpan) -> bool) -> ReceivedSpan {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(span) = self.spans().into_iter().find(&wanted) {
                return span;
            }
            assert!(Instant::now() < deadline, "no such span; there are {:?}", names(&self.spans()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn turn_away(State(otlp): State<Otlp>, request: Request, next: Next) -> Response {
    match otlp.status.load(Ordering::SeqCst) {
        200 => next.run(request).await,
        status => StatusCode::from_u16(status).unwrap().into_response(),
    }
}

pub fn names(spans: &[ReceivedSpan]) -> Vec<String> {
    spans.iter().map(|span| format!("{}: {}", span.service, span.span.name)).collect()
}

async fn traces(State(otlp): State<Otlp>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(plain(&headers, &body).as_slice()).unwrap();
    let mut received = otlp.received.lock().unwrap();
    received.note(&headers);
    for resource_spans in request.resource_spans {
        let resource = attributes(&resource_spans.resource.unwrap().attributes);
        let service = match &resource["service.name"] {
            Value::StringValue(name) => name.clone(),
            other => panic!("{other:?}"),
        };
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.push(ReceivedSpan { service: service.clone(), resource: resource.clone(), span });
        }
    }
    StatusCode::OK
}

async fn logs(State(otlp): State<Otlp>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportLogsServiceRequest::decode(plain(&headers, &body).as_slice()).unwrap();
    let records =
        request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs).flat_map(|scope| scope.log_records);
    let mut received = otlp.received.lock().unwrap();
    received.note(&headers);
    received.logs.extend(records);
    StatusCode::OK
}

async fn metrics(State(otlp): State<Otlp>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportMetricsServiceRequest::decode(plain(&headers, &body).as_slice()).unwrap();
    let metrics =
        request.resource_metrics.into_iter().flat_map(|metrics| metrics.scope_metrics).flat_map(|scope| scope.metrics);
    let mut received = otlp.received.lock().unwrap();
    received.note(&headers);
    received.metrics.extend(metrics);
    StatusCode::OK
}

impl Received {
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("authorization") {
            self.authorizations.push(value.to_str().unwrap().to_owned());
        }
    }
}

fn plain(headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    if headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap();
        plain
    } else {
        body.to_vec()
    }
}

fn attributes(attributes: &[KeyValue]) -> HashMap<String, Value> {
    attributes
        .iter()
        .filter_map(|attribute| {
            let AnyValue { value } = attribute.value.clone()?;
            Some((attribute.key.clone(), value?))
        })
        .collect()
}
