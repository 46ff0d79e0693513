//! Why a request failed: what the client may know, and what only the log may.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use strum::IntoStaticStr;

use super::{Dialect, Outcome};

/// The closed set of failures; a metric label and the `error_kind` of an audit row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ErrorKind {
    /// The request is malformed or asks for what can't be done.
    InvalidRequest,
    /// The prompt does not fit the model's context.
    #[strum(serialize = "context_length_exceeded")]
    ContextLength,
    /// The body is larger than `server.max_body`.
    BodyTooLarge,
    /// The body is encoded in a way that isn't read here.
    UnsupportedMediaType,
    /// Missing or wrong credentials.
    Unauthorized,
    /// The provider doesn't let us have this: a region, a model, content that it moderates.
    Forbidden,
    /// Our account at the provider has no money or no quota left.
    InsufficientQuota,
    /// No such model.
    ModelNotFound,
    /// The provider limits our rate.
    RateLimited,
    /// We are too busy.
    Overloaded,
    /// The provider is off, the breaker is open, or the engine is away.
    Unavailable,
    /// The provider could not be reached, failed, or sent rubbish.
    #[strum(serialize = "upstream_error")]
    Upstream,
    /// The provider refused the request as the caller's fault; its answer is passed on.
    UpstreamRefused,
    /// The local engine failed.
    #[strum(serialize = "engine_error")]
    Engine,
    /// No first token in time.
    TimeoutFirstToken,
    /// Too long a pause between chunks.
    TimeoutIdle,
    /// The whole request took too long.
    TimeoutTotal,
    /// A defect of ours.
    #[strum(serialize = "internal_error")]
    Internal,
}

impl ErrorKind {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The HTTP status when nothing was sent yet. An upstream's refusal carries its own.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLength | Self::UpstreamRefused => 400,
            Self::Unauthorized => 401,
            Self::InsufficientQuota => 402,
            Self::Forbidden => 403,
            Self::ModelNotFound => 404,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RateLimited => 429,
            Self::Engine | Self::Internal => 500,
            Self::Upstream => 502,
            Self::Overloaded | Self::Unavailable => 503,
            Self::TimeoutFirstToken | Self::TimeoutIdle | Self::TimeoutTotal => 504,
        }
    }

    /// How a request that fails this way is counted.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::InvalidRequest
            | Self::ContextLength
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType
            | Self::UpstreamRefused => Outcome::InvalidRequest,
            Self::Unauthorized => Outcome::Unauthorized,
            Self::Forbidden => Outcome::Forbidden,
            Self::ModelNotFound => Outcome::NotFound,
            Self::RateLimited => Outcome::RateLimited,
            Self::Overloaded => Outcome::Shed,
            Self::Unavailable => Outcome::Unavailable,
            Self::Upstream | Self::InsufficientQuota => Outcome::UpstreamError,
            Self::Engine | Self::Internal => Outcome::EngineError,
            Self::TimeoutFirstToken => Outcome::TimeoutFirstToken,
            Self::TimeoutIdle => Outcome::TimeoutIdle,
            Self::TimeoutTotal => Outcome::TimeoutTotal,
        }
    }

    /// Whose doing it is, as far as the kind alone says.
    fn fault(self) -> Fault {
        match self {
            Self::InvalidRequest
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType
            | Self::UpstreamRefused
            | Self::Internal => Fault::Caller,
            Self::ContextLength => Fault::Target,
            Self::Unauthorized | Self::InsufficientQuota => Fault::Account,
            Self::Forbidden | Self::ModelNotFound | Self::RateLimited => Fault::Model,
            Self::Overloaded
            | Self::Unavailable
            | Self::Upstream
            | Self::Engine
            | Self::TimeoutFirstToken
            | Self::TimeoutIdle
            | Self::TimeoutTotal => Fault::Provider,
        }
    }
}

/// Whose doing a failure is, by which it is decided who is asked next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong, whoever gets it.
    Caller,
    /// The target can't carry out what others can: it has another API, too small a context, no images.
    Target,
    /// Our account at the provider: its key, its money.
    Account,
    /// This model at this provider: it isn't there, or not for us, or not now.
    Model,
    /// The provider failed at it.
    Provider,
    /// The provider wasn't reached.
    Network,
}

/// A failed request. `Display` is what the client may read; [`std::error::Error::source`] is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What class of failure it is.
    pub kind: ErrorKind,
    /// For the client: names the field or key, the value and the remedy; never content or a secret.
    pub message: String,
    /// The request field at fault, as a path (`messages[2].content`).
    pub param: Option<String>,
    /// The provider's own error answer, for the caller alone.
    pub upstream: Option<Box<UpstreamAnswer>>,
    /// Headers the client should see (`retry-after`, rate limits). Boxed, since errors are returned everywhere and mostly
    /// have none.
    pub headers: Box<HeaderMap>,
    /// What really happened, for the log.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// Physical calls made beyond the first.
    pub retries: u32,
    /// Where it isn't what the kind says.
    fault: Option<Fault>,
    /// Whether another try can help, as the provider says (`x-should-retry`).
    pub should_retry: Option<bool>,
    /// How long the provider asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// An error answer of a provider's.
#[derive(Debug, Clone)]
pub struct UpstreamAnswer {
    /// The dialect that the provider speaks.
    pub dialect: Dialect,
    /// Its HTTP status, or the one that it names.
    pub status: u16,
    /// Its JSON body, if clients of the dialect can read it as an error.
    pub body: Option<Bytes>,
    /// Its words, if it has any.
    pub words: Option<String>,
}

impl UpstreamAnswer {
    /// Blots out a secret that it may echo.
    fn blot_out(&mut self, secret: &str) {
        if let Some(words) = &mut self.words {
            *words = words.replace(secret, BLOT);
        }
        let Some(body) = self.body.take() else { return };
        let text = String::from_utf8_lossy(&body);
        self.body = if text.contains(secret) {
            Some(text.replace(secret, BLOT).into())
        } else {
            // Escaped it looks otherwise, and its words are enough.
            let value = serde_json::from_str(&text).ok();
            Some(body).filter(|_| value.is_some_and(|value: serde_json::Value| !mentions(&value, secret)))
        };
    }
}

/// What stands for a secret.
const BLOT: &str = "***";

fn mentions(value: &serde_json::Value, secret: &str) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains(secret),
        serde_json::Value::Array(items) => items.iter().any(|item| mentions(item, secret)),
        serde_json::Value::Object(members) => {
            members.iter().any(|(name, value)| name.contains(secret) || mentions(value, secret))
        }
        _ => false,
    }
}

impl Error {
    /// An error with a message for the client.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            upstream: None,
            headers: Box::default(),
            source: None,
            retries: 0,
            fault: None,
            should_retry: None,
            retry_after: None,
        }
    }

    /// Says whose doing it is, where the kind alone doesn't.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Whose doing it is.
    pub fn fault(&self) -> Fault {
        self.fault.unwrap_or_else(|| self.kind.fault())
    }

    /// Names the request field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Tells the client when to come back, in whole seconds.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        self.retry_after = Some(after);
        self
    }

    /// Blots out a secret that the provider may have echoed, wherever a caller or a log would read it.
    #[must_use]
    pub fn without(mut self, secret: &str) -> Self {
        if self.message.contains(secret) {
            self.message = self.message.replace(secret, BLOT);
        }
        if let Some(upstream) = &mut self.upstream {
            upstream.blot_out(secret);
        }
        self
    }

    /// The status to send when nothing was sent yet.
    pub fn status(&self) -> u16 {
        self.upstream.as_ref().map_or_else(|| self.kind.status(), |upstream| upstream.status)
    }
}
