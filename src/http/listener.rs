//! Listeners: bind, serve, and drain when told to stop.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use axum::extract::ConnectInfo;
use bytes::Bytes;
use http_body::Body;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use mlx_manager_signal::event::{AcceptFailed, ConnectionFailed, NoDelayRefused};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service, ServiceExt};

/// How long a client may take to send a request's head. The clock also runs while a kept connection is idle, so this must
/// be longer than clients keep theirs (90 s is common), or they would send into a closed one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// The most headers of a request: more than any client sends, through however many proxies.
const MAX_HEADERS: usize = 256;
/// After a failed accept, most often for want of file descriptors, which others must give back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why an address can't be listened on. One line that names the address and its key in the config.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program has it.
    #[error("{address} is already in use: stop the other program, or set {key} to a free address")]
    InUse {
        /// The address.
        address: SocketAddr,
        /// The key that names it.
        key: &'static str,
    },
    /// Anything else.
    #[error("can't listen on {address}, set by {key}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// The key that names it.
        key: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Binds an address; `key` is where the config names it.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address, key },
        _ => ListenError::Other { address, key, source },
    })
}

/// Serves `routes` until `stop` is cancelled, then takes no new connections and lets open requests go on for at most
/// `drain`. What is open then is dropped, after `cut_off` was cancelled, by which it can tell that no client left. Returns
/// whether all of them ended by themselves.
pub async fn serve<S, B>(
    listener: TcpListener,
    routes: S,
    stop: CancellationToken,
    drain: Duration,
    cut_off: CancellationToken,
) -> bool
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, peer, routes.clone(), &graceful);
                let cut_off = cut_off.clone();
                connections.spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = cut_off.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                AcceptFailed { error: &error }.emit();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the socket first tells a load balancer at once; connections waiting in its backlog are refused.
    drop(listener);
    connections.close();
    let drained = timeout(drain, graceful.shutdown()).await.is_ok();
    cut_off.cancel();
    connections.wait().await;
    drained
}

fn connection<S, B>(
    stream: TcpStream,
    peer: SocketAddr,
    routes: S,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    // Tokens are small frames that someone waits for.
    if let Err(error) = stream.set_nodelay(true) {
        NoDelayRefused { error: &error }.emit();
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        routes.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(MAX_HEADERS);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let watched = graceful.watch(connection);
    async move {
        if let Err(error) = watched.await {
            // The peer's doing as a rule: a reset, or bytes that are no HTTP.
            ConnectionFailed { peer, error: &*error }.emit();
        }
    }
}
