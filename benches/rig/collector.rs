//! An OTLP receiver.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::net::TcpListener;

use super::serve::serve;

/// Takes everything, unless it is told to answer otherwise, and counts what it took.
#[derive(Debug, Clone)]
pub struct Collector {
    bytes: Arc<AtomicUsize>,
    /// What it answers.
    pub status: Arc<AtomicU16>,
}

impl Collector {
    /// Starts one; returns it with its address.
    pub async fn start() -> Result<(Self, SocketAddr)> {
        let collector = Self { bytes: Arc::default(), status: Arc::new(StatusCode::OK.as_u16().into()) };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let taking = collector.clone();
        tokio::task::spawn(serve(listener, move |request: Request<Incoming>| {
            let collector = taking.clone();
            async move {
                let body = request.into_body().collect().await?.to_bytes();
                let status = StatusCode::from_u16(collector.status.load(Ordering::Relaxed))?;
                if status.is_success() {
                    collector.bytes.fetch_add(body.len(), Ordering::Relaxed);
                }
                Ok(Response::builder()
                    .status(status)
                    .header(header::CONTENT_TYPE, "application/x-protobuf")
                    .body(Full::<Bytes>::default())?)
            }
        }));
        Ok((collector, address))
    }

    /// Bytes taken so far, as they came over the wire.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
