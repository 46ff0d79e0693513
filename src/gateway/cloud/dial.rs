//! Makes connections to one provider: by way of the system's proxy if there is one, with TLS where the URL wants it, and in the
//! version of HTTP that both sides agree on.

use std::{io, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Uri,
    header::USER_AGENT,
    uri::{PathAndQuery, Scheme},
};
use hyper::rt::{Read, Write};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use rustls::{ClientConfig, crypto::CryptoProvider, pki_types::ServerName};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::{Service, service_fn};

use super::ProviderError;

/// What a daemon calls itself to a provider.
pub(super) const AGENT: HeaderValue = HeaderValue::from_static(concat!("mlx-manager/", env!("CARGO_PKG_VERSION")));
/// How long a connection is silent before TCP asks whether the other side is there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What bytes go over.
pub(super) trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection that was made.
pub(super) struct Dialed {
    pub(super) io: Box<dyn Io>,
    /// Whether it is spoken over in HTTP/2, else in HTTP/1.1.
    pub(super) is_http2: bool,
}

/// Why none could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no connection came about within {0:?} (cloud.connect_timeout)")]
    TookTooLong(Duration),
    #[error("no connection came about")]
    Failed(#[source] BoxError),
}

/// Makes connections to one place.
#[derive(Debug)]
pub(super) struct Dialer {
    /// Scheme and authority, with a path that says nothing.
    place: Uri,
    http: HttpConnector,
    tls: Arc<ClientConfig>,
    /// The same where HTTP/1.1 is to be spoken, as with a proxy.
    plain_tls: Arc<ClientConfig>,
    proxy: Option<Intercept>,
    timeout: Duration,
}

impl Dialer {
    /// For the place that a URL names.
    ///
    /// # Errors
    /// When the system's certificates can't be used.
    pub(super) fn new(url: &Uri, timeout: Duration) -> Result<Self, ProviderError> {
        let mut parts = url.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        let place = Uri::from_parts(parts).map_err(|_| ProviderError::Url(url.to_string()))?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(TCP_KEEPALIVE));
        http.set_connect_timeout(Some(timeout));
        let mut tls = client_config()?;
        let plain_tls = Arc::new(tls.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let proxy = Matcher::from_system().intercept(&place);
        Ok(Self { place, http, tls: Arc::new(tls), plain_tls, proxy, timeout })
    }

    /// Whether HTTP/2 may be agreed on.
    pub(super) fn may_speak_http2(&self) -> bool {
        self.is_secure()
    }

    /// The proxy that takes requests in place of the provider, and what it wants to see of us.
    pub(super) fn forwards(&self) -> Option<Option<&HeaderValue>> {
        self.proxy.as_ref().filter(|_| !self.is_secure()).map(Intercept::basic_auth)
    }

    fn is_secure(&self) -> bool {
        self.place.scheme() == Some(&Scheme::HTTPS)
    }

    /// Makes one, over which HTTP/2 is spoken only if it `may` be.
    ///
    /// # Errors
    /// When none comes about, in time or at all.
    pub(super) async fn dial(&self, may: bool) -> Result<Dialed, DialError> {
        let tls = if may { &self.tls } else { &self.plain_tls };
        match timeout(self.timeout, self.connect(Arc::clone(tls))).await {
            Ok(dialed) => dialed.map_err(DialError::Failed),
            Err(_) => Err(DialError::TookTooLong(self.timeout)),
        }
    }

    async fn connect(&self, tls: Arc<ClientConfig>) -> Result<Dialed, BoxError> {
        let over = match &self.proxy {
            None => self.http.clone().call(self.place.clone()).await.map(boxed)?,
            Some(proxy) if self.is_secure() => self.tunnel(proxy).await?,
            Some(proxy) => to_proxy(self.http.clone(), Arc::clone(&self.plain_tls), proxy.uri().clone()).await?,
        };
        match self.is_secure() {
            true => secured(over, &self.place, tls).await,
            false => Ok(Dialed { io: over, is_http2: false }),
        }
    }

    async fn tunnel(&self, proxy: &Intercept) -> Result<Box<dyn Io>, BoxError> {
        let (http, tls) = (self.http.clone(), Arc::clone(&self.plain_tls));
        let dial = service_fn(move |place| to_proxy(http.clone(), Arc::clone(&tls), place));
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, AGENT);
        let mut tunnel = Tunnel::new(proxy.uri().clone(), dial).with_headers(headers);
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        Ok(tunnel.call(self.place.clone()).await?)
    }
}

fn client_config() -> Result<ClientConfig, ProviderError> {
    let provider = CryptoProvider::get_default().cloned().ok_or(ProviderError::Tls(None))?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.and_then(BuilderVerifierExt::with_platform_verifier);
    Ok(config.map_err(|error| ProviderError::Tls(Some(error)))?.with_no_client_auth())
}

async fn to_proxy(mut http: HttpConnector, tls: Arc<ClientConfig>, place: Uri) -> Result<Box<dyn Io>, BoxError> {
    let over = http.call(place.clone()).await.map(boxed)?;
    match place.scheme() == Some(&Scheme::HTTPS) {
        true => Ok(secured(over, &place, tls).await?.io),
        false => Ok(over),
    }
}

async fn secured(over: Box<dyn Io>, place: &Uri, tls: Arc<ClientConfig>) -> Result<Dialed, BoxError> {
    let host = place.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())?;
    let stream = TlsConnector::from(tls).connect(name, TokioIo::new(over)).await.map_err(io::Error::other)?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Dialed { io: boxed(TokioIo::new(stream)), is_http2 })
}

fn boxed(io: impl Io + 'static) -> Box<dyn Io> {
    Box::new(io)
}
