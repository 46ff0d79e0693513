//! A real OTLP receiver over HTTP/protobuf and gRPC on one port, which keeps what it was sent.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
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
    resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::grpc::{self, Calls};

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
    services: BTreeSet<(&'static str, String)>,
    log_targets: BTreeSet<String>,
    authorizations: Vec<String>,
}

/// The receiver.
#[derive(Debug, Clone)]
pub struct Otlp {
    pub address: SocketAddr,
    received: Arc<Mutex<Received>>,
    status: Arc<AtomicU16>,
    refused: Arc<Mutex<HashMap<&'static str, u16>>>,
    held: watch::Sender<bool>,
    closed: Arc<AtomicBool>,
    pub grpc: Arc<Mutex<Calls>>,
}

/// A listener that hangs up on everybody while it is closed.
struct Door {
    listener: TcpListener,
    closed: Arc<AtomicBool>,
}

impl axum::serve::Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let accepted = self.listener.accept().await.unwrap();
            if !self.closed.load(Ordering::SeqCst) {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Otlp {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let otlp = Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
            status: Arc::new(200.into()),
            refused: Arc::default(),
            held: watch::Sender::new(false),
            closed: Arc::default(),
            grpc: Arc::default(),
        };
        let routes = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/logs", post(logs))
            .route("/v1/metrics", post(metrics))
            .merge(grpc::routes())
            .layer(from_fn_with_state(otlp.clone(), turn_away))
            .with_state(otlp.clone());
        let door = Door { listener, closed: Arc::clone(&otlp.closed) };
        TaskTracker::new().spawn(async move { axum::serve(door, routes).await.unwrap() });
        otlp
    }

    /// From now on hangs up on new connections, or no longer.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
    }

    /// From now on takes its time with every request, or no longer.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// From now on answers with a status at a path, and takes nothing there unless it is 200.
    pub fn answer_at(&self, path: &'static str, status: u16) {
        self.refused.lock().unwrap().insert(path, status);
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

    /// Each signal with the `service.name` of a resource it came with.
    pub fn services(&self) -> BTreeSet<(&'static str, String)> {
        self.received.lock().unwrap().services.clone()
    }

    /// Who said what the logs say.
    pub fn log_targets(&self) -> BTreeSet<String> {
        self.received.lock().unwrap().log_targets.clone()
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
    otlp.held.subscribe().wait_for(|held| !held).await.unwrap();
    let here = otlp.refused.lock().unwrap().get(request.uri().path()).copied();
    match here.unwrap_or_else(|| otlp.status.load(Ordering::SeqCst)) {
        200 => next.run(request).await,
        status => (StatusCode::from_u16(status).unwrap(), "because\nof its tenant").into_response(),
    }
}

pub fn names(spans: &[ReceivedSpan]) -> Vec<String> {
    spans.iter().map(|span| format!("{}: {}", span.service, span.span.name)).collect()
}

async fn traces(State(otlp): State<Otlp>, headers: HeaderMap, body: Bytes) -> StatusCode {
    otlp.take_traces(&headers, ExportTraceServiceRequest::decode(plain(&headers, &body).as_slice()).unwrap());
    StatusCode::OK
}

async fn logs(State(otlp): State<Otlp>, headers: HeaderMap, body: Bytes) -> StatusCode {
    otlp.take_logs(&headers, ExportLogsServiceRequest::decode(plain(&headers, &body).as_slice()).unwrap());
    StatusCode::OK
}

async fn metrics(State(otlp): State<Otlp>, headers: HeaderMap, body: Bytes) -> StatusCode {
    otlp.take_metrics(&headers, ExportMetricsServiceRequest::decode(plain(&headers, &body).as_slice()).unwrap());
    StatusCode::OK
}

impl Otlp {
    pub fn take_traces(&self, headers: &HeaderMap, request: ExportTraceServiceRequest) {
        let mut received = self.received.lock().unwrap();
        received.note(headers);
        for resource_spans in request.resource_spans {
            let (service, resource) = received.service("traces", resource_spans.resource);
            for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.spans.push(ReceivedSpan { service: service.clone(), resource: resource.clone(), span });
            }
        }
    }

    pub fn take_logs(&self, headers: &HeaderMap, request: ExportLogsServiceRequest) {
        let mut received = self.received.lock().unwrap();
        received.note(headers);
        for resource_logs in request.resource_logs {
            received.service("logs", resource_logs.resource);
            for scope_logs in resource_logs.scope_logs {
                received.log_targets.insert(scope_logs.scope.unwrap().name);
                received.logs.extend(scope_logs.log_records);
            }
        }
    }

    pub fn take_metrics(&self, headers: &HeaderMap, request: ExportMetricsServiceRequest) {
        let mut received = self.received.lock().unwrap();
        received.note(headers);
        for resource_metrics in request.resource_metrics {
            received.service("metrics", resource_metrics.resource);
            received.metrics.extend(resource_metrics.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
        }
    }
}

impl Received {
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("authorization") {
            self.authorizations.push(value.to_str().unwrap().to_owned());
        }
    }

    fn service(&mut self, signal: &'static str, resource: Option<Resource>) -> (String, HashMap<String, Value>) {
        let resource = attributes(&resource.unwrap().attributes);
        let Value::StringValue(service) = resource["service.name"].clone() else { panic!("{resource:?}") };
        self.services.insert((signal, service.clone()));
        (service, resource)
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
