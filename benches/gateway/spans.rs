//! An OTLP receiver that reads what it gets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tokio::net::TcpListener;

use crate::rig::serve::serve;

/// The span that stands for a whole request in LiteLLM.
const REQUEST: &str = "Received Proxy Server Request";

/// Counts requests by their spans, and all spans.
#[derive(Debug, Clone, Default)]
pub struct Spans {
    pub requests: Arc<AtomicUsize>,
    pub all: Arc<AtomicUsize>,
}

impl Spans {
    /// Starts a receiver; returns it with its address.
    pub async fn start() -> Result<(Self, SocketAddr)> {
        let spans = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let taking = spans.clone();
        tokio::task::spawn(serve(listener, move |request: Request<Incoming>| {
            let spans = taking.clone();
            async move {
                let traces = request.uri().path() == "/v1/traces";
                let body = request.into_body().collect().await?.to_bytes();
                if traces {
                    spans.count(&ExportTraceServiceRequest::decode(body)?);
                }
                let answer = Response::builder().header(header::CONTENT_TYPE, "application/x-protobuf");
                Ok(answer.body(Full::<Bytes>::default())?)
            }
        }));
        Ok((spans, address))
    }

    fn count(&self, export: &ExportTraceServiceRequest) {
        let scopes = export.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        for span in scopes.flat_map(|scope| &scope.spans) {
            self.all.fetch_add(1, Ordering::Relaxed);
            if span.name == REQUEST {
                self.requests.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
