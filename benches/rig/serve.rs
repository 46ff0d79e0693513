//! A server for the peers.

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;

/// Answers every request on `listener` by `answer`.
pub async fn serve<F, A, B>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Result<Response<B>>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    while let Ok((stream, _)) = listener.accept().await {
        // Without it the figures get worse, not wrong.
        stream.set_nodelay(true).unwrap_or_default();
        let answer = answer.clone();
        tokio::task::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                // hyper wants an error type that it can box; anyhow's is none.
                async move { answer.await.map_err(|error| std::io::Error::other(format!("{error:#}"))) }
            });
            let connection = auto::Builder::new(TokioExecutor::new());
            let connection = connection.serve_connection(TokioIo::new(stream), service);
            // The client sees a broken connection, and the benchmark ends with its error.
            connection.await.unwrap_or_default();
        });
    }
}
