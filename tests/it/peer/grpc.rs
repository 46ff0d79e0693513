//! The three services of an OTLP receiver, served by tonic beside its HTTP routes.

use axum::{
    Router,
    extract::{Request, State},
    routing::post,
};
use http::{HeaderMap, Response};
use opentelemetry_proto::tonic::collector::{
    logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
    metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
};
use prost::Message;
use tonic::{Code, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::otlp::Otlp;

/// What callers get to hear, and how many of them called.
#[derive(Debug)]
pub struct Calls {
    /// The answer to every call; unless it is OK nothing is taken.
    pub code: Code,
    /// How many spans of every call are rejected though the call succeeds.
    pub rejected_spans: i64,
    /// Calls that were answered.
    pub answered: u64,
    /// Spans in the calls that were turned away.
    pub spans_turned_away: u64,
}

impl Default for Calls {
    fn default() -> Self {
        Self { code: Code::Ok, rejected_spans: 0, answered: 0, spans_turned_away: 0 }
    }
}

impl Otlp {
    /// From now on answers calls with a status.
    pub fn answer_calls(&self, code: Code) {
        self.grpc.lock().unwrap().code = code;
    }

    /// Counts a call and says how many spans to reject.
    fn called(&self, spans: usize) -> Result<i64, Status> {
        let mut calls = self.grpc.lock().unwrap();
        calls.answered += 1;
        if calls.code == Code::Ok {
            return Ok(calls.rejected_spans);
        }
        calls.spans_turned_away += spans as u64;
        Err(Status::new(calls.code, "words that may repeat what was sent"))
    }
}

pub fn routes() -> Router<Otlp> {
    Router::new()
        .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post(traces))
        .route("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", post(metrics))
        .route("/opentelemetry.proto.collector.logs.v1.LogsService/Export", post(logs))
}

/// Serves a call; `take` gets its metadata and its message.
async fn serve<I, O>(request: Request, take: impl Fn(&HeaderMap, I) -> Result<O, Status>) -> Response<Body>
where
    I: Message + Default + 'static,
    O: Message + Default + 'static,
{
    let service = service_fn(async |request: tonic::Request<I>| {
        let (metadata, _, message) = request.into_parts();
        take(&metadata.into_headers(), message).map(tonic::Response::new)
    });
    Grpc::new(ProstCodec::<O, I>::default()).unary(service, request).await
}

async fn traces(State(otlp): State<Otlp>, request: Request) -> Response<Body> {
    serve(request, |headers, request: ExportTraceServiceRequest| {
        let spans = request.resource_spans.iter().flat_map(|spans| &spans.scope_spans).map(|scope| scope.spans.len());
        let rejected_spans = otlp.called(spans.sum())?;
        otlp.take_traces(headers, request);
        let partial_success = ExportTracePartialSuccess { rejected_spans, error_message: "too many".to_owned() };
        Ok(ExportTraceServiceResponse { partial_success: (rejected_spans > 0).then_some(partial_success) })
    })
    .await
}

async fn metrics(State(otlp): State<Otlp>, request: Request) -> Response<Body> {
    serve(request, |headers, request: ExportMetricsServiceRequest| {
        otlp.called(0)?;
        otlp.take_metrics(headers, request);
        Ok(ExportMetricsServiceResponse::default())
    })
    .await
}

async fn logs(State(otlp): State<Otlp>, request: Request) -> Response<Body> {
    serve(request, |headers, request: ExportLogsServiceRequest| {
        otlp.called(0)?;
        otlp.take_logs(headers, request);
        Ok(ExportLogsServiceResponse::default())
    })
    .await
}
