//! One client's connection.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A connection for one request at a time.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// What goes with each request beside that which its body needs.
    pub headers: HeaderMap,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn(async move {
            // Its end is seen by the next request.
            connection.await.unwrap_or_default();
        });
        Ok(Self { sender, host: address.to_string(), headers: HeaderMap::new() })
    }

    /// Posts a chat, whose answer has the `expected` status, and hands over each piece of that with the time it came.
    pub async fn post(
        &mut self,
        body: Bytes,
        expected: StatusCode,
        mut piece: impl FnMut(&Bytes, Instant),
    ) -> Result<()> {
        let mut request = Request::post("/v1/chat/completions")
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        request.headers_mut().extend(self.headers.clone());
        self.sender.ready().await?;
        let mut response = self.sender.send_request(request).await?;
        let status = response.status();
        let mut other = Vec::new();
        while let Some(frame) = response.frame().await {
            if let Ok(data) = frame?.into_data() {
                if status == expected {
                    piece(&data, Instant::now());
                } else {
                    other.extend_from_slice(&data);
                }
            }
        }
        ensure!(status == expected, "{status}: {}", String::from_utf8_lossy(&other));
        Ok(())
    }

    /// Reads a page.
    pub async fn get(&mut self, path: &str) -> Result<String> {
        let mut request = Request::get(path).header(header::HOST, &self.host).body(Full::default())?;
        request.headers_mut().extend(self.headers.clone());
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?)
    }
}
