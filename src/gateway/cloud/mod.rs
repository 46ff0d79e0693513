//! Cloud providers: a [`Provider`] answers calls over HTTPS in the caller's own dialect.
//!
//! [`attempt`] is one physical call, [`connections`] what it may go by, [`stream`] turns the answer's bytes into events, and
//! each file in [`provider`] knows one API's paths and headers. What the bytes mean is for [`dialect`] to say; nothing here
//! measures, routes or decides whether to try again.

mod attempt;
mod body;
mod connections;
mod dial;
mod lanes;
mod provider;
mod stream;
mod wire;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, Uri};
use mlx_manager_config as config;
use mlx_manager_config::{Calls, ProviderKind, Secret};
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Call, Dialect, Error, ErrorKind};
use mlx_manager_signal::{
    event::{AttemptFailed, UsageRefused},
    price::PriceList,
    provider as vendor,
};
use url::Url;

use self::connections::Connections;

pub use provider::Passed;

/// Chooses the process's one TLS implementation. Called once, before the first [`Provider`] is made.
pub fn install_tls() {
    // It fails only if a provider was chosen before, and then there is one.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// Why a provider can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Its base URL is none, or has no host.
    #[error("base_url {0:?} is not an http or https URL with a host")]
    Url(String),
    /// Its key can't stand in a header.
    #[error("its api_key has characters that an HTTP header can't carry")]
    Key,
    /// No certificate can be checked.
    #[error("there is no TLS to reach it by")]
    Tls(#[source] Option<rustls::Error>),
}

/// One `[[providers]]` entry, ready to be called.
#[derive(Debug)]
pub struct Provider {
    name: String,
    kind: ProviderKind,
    prices: Arc<PriceList>,
    url: Url,
    /// The same, without credentials.
    uri: Uri,
    /// What every request has.
    headers: HeaderMap,
    secrets: Secrets,
    api_key: Option<Secret>,
    api_key_path: String,
    send_trace_context: bool,
    calls: Calls,
    connections: Connections,
    /// Whether it was found to refuse that a stream is asked for its usage.
    refuses_usage: AtomicBool,
}

impl Provider {
    /// Prepares a provider; connects to nothing. `prices` are the operator's, for whichever provider.
    ///
    /// # Errors
    /// When its URL or key can't be used.
    pub fn new(config: &config::Provider, prices: &[config::Price]) -> Result<Self, ProviderError> {
        let mut url = Url::parse(&config.base_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| ProviderError::Url(shown(&config.base_url)))?;
        let path = format!("{}{}", url.path().trim_end_matches('/'), provider::path(config.kind));
        url.set_path(&path);
        if let Some(key) = &config.api_key {
            http::HeaderValue::from_str(key.expose()).map_err(|_| ProviderError::Key)?;
        }
        let key = config.api_key.as_ref().map(|key| (&config.auth, key));
        let headers = provider::own_headers(&url, key);
        let uri = without_credentials(&url).as_str().parse::<Uri>();
        let uri = uri.map_err(|_| ProviderError::Url(shown(&config.base_url)))?;
        let connections = Connections::new(&uri, config.calls.connect_timeout)?;
        let secrets = config.api_key.clone().into_iter().chain(provider::secrets(&url));
        let secrets = secrets.filter(|secret| !secret.is_empty()).collect();
        Ok(Self {
            secrets,
            name: config.name.clone(),
            kind: config.kind,
            prices: Arc::new(PriceList::new(vendor::dialect(config.kind), &config.base_url, &config.name, prices)),
            url,
            uri,
            headers,
            api_key: config.api_key.clone(),
            api_key_path: config.api_key_path.clone(),
            send_trace_context: config.send_trace_context,
            calls: config.calls.clone(),
            connections,
            refuses_usage: AtomicBool::new(false),
        })
    }

    /// The `[[providers]]` name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of API it is.
    pub fn kind(&self) -> ProviderKind {
        self.kind
    }

    /// The dialect it speaks.
    pub fn dialect(&self) -> Dialect {
        vendor::dialect(self.kind)
    }

    /// What its calls cost.
    pub fn prices(&self) -> &Arc<PriceList> {
        &self.prices
    }

    /// `server.address` of its spans.
    pub fn address(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// `server.port` of its spans.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// The refusal of every call, when the provider is off because its key is empty.
    pub fn is_off(&self) -> Option<Error> {
        self.api_key.as_ref().filter(|key| key.is_empty()).map(|_| {
            let message =
                format!("the provider {:?} is off: set {} in the configuration", self.name, self.api_key_path);
            Error::new(ErrorKind::Unavailable, message)
        })
    }

    /// Closes connections that were not used for long.
    pub fn prune(&self) {
        self.connections.prune();
    }

    /// How it is to be called.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Answers a call. Resolves once the answer has begun or can't begin any more.
    ///
    /// # Errors
    /// Why it can't.
    pub async fn answer(&self, call: Call) -> Result<Answer, Error> {
        let asks_usage = !self.refuses_usage.load(Ordering::Relaxed) && dialect::injects_usage(&call.request);
        let error = match self.attempt(&call, asks_usage).await {
            Err(error) if asks_usage && refuses_usage(&error) => error,
            answered => return answered,
        };
        // It was us who put it there, so what the provider has against it is not the caller's to hear.
        AttemptFailed { provider: &self.name, error: &error }.emit();
        UsageRefused { provider: &self.name }.emit();
        let again = Call { resend: call.resend + 1, ..call };
        match Box::pin(self.attempt(&again, false)).await {
            Ok(mut answer) => {
                self.refuses_usage.store(true, Ordering::Relaxed);
                answer.retries += 1;
                Ok(answer)
            }
            // It may have quoted all of a request that was wrong in another way.
            Err(mut error) => {
                error.retries += 1;
                Err(error)
            }
        }
    }
}

/// What may be shown of a URL, whose query may hold a key.
fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

fn without_credentials(url: &Url) -> Url {
    let mut url = url.clone();
    // It has a host, so both can be taken away.
    let taken = url.set_username("").and_then(|()| url.set_password(None));
    taken.unwrap_or_default();
    url.set_fragment(None);
    url
}

/// What must not come back in an answer of a provider's.
type Secrets = Arc<[Secret]>;

/// Blots out a provider's secrets, should an error of its echo them.
fn without_secrets(secrets: &[Secret], error: Error) -> Error {
    secrets.iter().fold(error, |error, secret| error.without(secret.expose()))
}

/// Whether a provider has something against being asked for the usage of a stream.
fn refuses_usage(error: &Error) -> bool {
    let Some(upstream) = error.upstream.as_ref().filter(|upstream| upstream.status < 500) else { return false };
    let body = upstream.body.as_deref().map(String::from_utf8_lossy);
    let said = [upstream.words.as_deref(), body.as_deref()];
    said.into_iter().flatten().any(|said| said.contains("stream_options") || said.contains("include_usage"))
}
