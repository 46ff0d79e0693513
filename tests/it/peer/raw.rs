//! A provider that writes its answers to the byte, so that HTTP itself can be odd.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

/// What is written for every request, one after the other; then the connection is closed.
#[derive(Debug, Clone)]
pub enum Bytes {
    Once(Vec<u8>),
    /// Until nobody reads any more.
    ForEver(Vec<u8>),
}

/// Starts it.
pub async fn start(answer: Vec<Bytes>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tasks.spawn(serve(stream, Arc::clone(&answer)));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, answer: Arc<Vec<Bytes>>) {
    let mut request = Vec::new();
    // Requests of these tests end with the end of a JSON object.
    while !request.ends_with(b"}") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    for bytes in &*answer {
        let (bytes, again) = match bytes {
            Bytes::Once(bytes) => (bytes, false),
            Bytes::ForEver(bytes) => (bytes, true),
        };
        while stream.write_all(bytes).await.is_ok() && again {}
    }
    drop(stream.shutdown().await);
}
