//! Where batches are posted: an address, what goes along with every call, and the client that makes it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mlx_manager_config::{OtlpConfig, OtlpKind, Protocol, Secret, Signal};

use super::TraceError;

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Base URL without a trailing slash.
    pub address: String,
    pub protocol: Protocol,
    pub headers: HeaderMap,
    pub client: reqwest::Client,
    pub timeout: Duration,
}

impl Endpoint {
    pub(super) fn new(config: &OtlpConfig) -> Result<Self, TraceError> {
        // Without a process-wide provider reqwest panics; if the daemon has installed one already, that one is as good.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("mlx-manager/", env!("CARGO_PKG_VERSION")));
        let client = match config.protocol {
            Protocol::HttpProtobuf => client,
            Protocol::Grpc => fit_for_grpc(client, config),
        };
        let client =
            client.build().map_err(|source| TraceError::Client { destination: config.name.clone(), source })?;
        Ok(Self {
            address: config.endpoint.trim_end_matches('/').to_owned(),
            protocol: config.protocol,
            headers: headers(config)?,
            client,
            timeout: config.timeout,
        })
    }

    /// Where a signal's batches go by HTTP.
    pub(super) fn url(&self, signal: Signal) -> String {
        format!("{}/v1/{}", self.address, signal.as_str())
    }
}

fn headers(config: &OtlpConfig) -> Result<HeaderMap, TraceError> {
    let mut headers = HeaderMap::new();
    let mut insert = |name: &str, value: &Secret| {
        let refused = || TraceError::Header { destination: config.name.clone(), header: name.to_owned() };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| refused())?;
        value.set_sensitive(true);
        headers.insert(header, value);
        Ok(())
    };
    if config.kind == OtlpKind::Logfire && !config.token.is_empty() {
        // Logfire takes the bare token.
        insert(header::AUTHORIZATION.as_str(), &config.token)?;
    }
    config.headers.iter().try_for_each(|(name, value)| insert(name, value))?;
    Ok(headers)
}

/// Makes a client fit to carry gRPC: HTTP/2 from the first byte.
fn fit_for_grpc(client: reqwest::ClientBuilder, config: &OtlpConfig) -> reqwest::ClientBuilder {
    let client = client
        .http2_prior_knowledge()
        .no_gzip()
        // A dead connection would swallow one call after the other, because a call that ran out of time leaves it open.
        // So a call that waits has it pinged; few pings per call, as servers turn away who pings too often.
        .http2_keep_alive_interval(config.timeout / 2)
        .http2_keep_alive_timeout(config.timeout);
    // Proxies forward HTTP/1.1 only; what is encrypted goes through them unread.
    if config.endpoint.starts_with("https:") { client } else { client.no_proxy() }
}
