//! How a simulated provider is spoken to: over plain HTTP/1.1, or as real ones are, over HTTP/2 within TLS.

use std::{fs, path::PathBuf, sync::Arc};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Http1,
    /// With so many streams a connection.
    Http2 {
        streams: u32,
    },
}

/// An authority of its own, which a daemon has to be told of.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
    pub acceptor: Acceptor,
}

/// Wrapped for its name.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Acceptor")
    }
}

impl Authority {
    pub fn new() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("authority.pem"), cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let mut config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { folder, acceptor: Acceptor(TlsAcceptor::from(Arc::new(config))) }
    }

    /// Lets a daemon trust it.
    pub fn trust(&self, command: &mut Command) {
        let path: PathBuf = self.folder.path().join("authority.pem");
        command.env("SSL_CERT_FILE", path);
    }
}

/// Serves every connection over TLS and HTTP/2, of each of which `came` hears. It says that it takes no further call when the
/// token is cancelled that it got by that.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    streams: u32,
    routes: Router,
    came: impl Fn() -> CancellationToken,
) {
    let tasks = TaskTracker::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (acceptor, service, leaving) = (acceptor.0.clone(), TowerToHyperService::new(routes.clone()), came());
        tasks.spawn(async move {
            socket.set_nodelay(true).unwrap();
            // The client may have thought better of it: it makes several connections at first and keeps one.
            let Ok(socket) = acceptor.accept(socket).await else { return };
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(streams);
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
            tokio::select! {
                done = connection.as_mut() => return drop(done),
                () = leaving.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            drop(connection.await);
        });
    }
}

/// A relay whose open connections can be made to swallow everything without a word, as a stuck balancer does.
pub struct Relay {
    pub address: std::net::SocketAddr,
    stuck: watch::Sender<u64>,
}

impl Relay {
    pub async fn start(to: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stuck, watched) = watch::channel(0);
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(to).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                let mut watched = watched.clone();
                watched.mark_unchanged();
                for (mut from, mut into) in [(near_in, far_out), (far_in, near_out)] {
                    let mut watched = watched.clone();
                    tasks.spawn(async move {
                        let mut buffer = vec![0; 65_536];
                        loop {
                            let read = tokio::select! {
                                // Both ends stay open, and hear nothing.
                                _ = watched.changed() => std::future::pending().await,
                                read = from.read(&mut buffer) => read,
                            };
                            match read {
                                Ok(1..)
                                    if into.write_all(&buffer[..read.as_ref().copied().unwrap_or(0)]).await.is_ok() => {
                                }
                                _ => return,
                            }
                        }
                    });
                }
            }
        });
        Self { address, stuck }
    }

    /// From now on the connections that are open swallow everything; later ones work.
    pub fn stick(&self) {
        self.stuck.send_modify(|times| *times += 1);
    }
}
