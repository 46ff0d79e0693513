//! An OTLP receiver.

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
use tokio::net::TcpListener;

use super::serve::serve;

/// Takes everything and counts what it took.
#[derive(Debug, Clone, Default)]
pub struct Collector {
    bytes: Arc<AtomicUsize>,
}

impl Collector {
    /// Starts one; returns it with its address.
    pub async fn start() -> Result<(Self, SocketAddr)> {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let bytes = Arc::clone(&collector.bytes);
        tokio::task::spawn(serve(listener, move |request: Request<Incoming>| {
            let bytes = Arc::clone(&bytes);
            async move {
                let body = request.into_body().collect().await?.to_bytes();
                bytes.fetch_add(body.len(), Ordering::Relaxed);
                Ok(Response::builder()
                    .header(header::CONTENT_TYPE, "application/x-protobuf")
                    .body(Full::<Bytes>::default())?)
            }
        }));
        Ok((collector, address))
    }

    /// Bytes received so far, as they came over the wire.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
