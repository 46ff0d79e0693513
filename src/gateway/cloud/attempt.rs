//! One physical call, with its span: from the request to an answer that has begun.

use std::{error::Error as StdError, time::Duration};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use jiff::Timestamp;
use mlx_manager_config::Secret;
use mlx_manager_dialect as dialect;
use mlx_manager_llm as llm;
use mlx_manager_llm::{Answer, Call, Error, ErrorKind, Fault};
use mlx_manager_signal::{
    event::{AttemptFinished, ErrorBodyTimedOut},
    propagate, span,
};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use super::{
    Provider,
    body::decoded,
    connections::{Answering, Letter, Unanswered},
    dial::DialError,
    provider, stream, without_secrets,
};

/// The largest error body that is read, and how long for.
const MAX_ERROR_BODY: usize = 1024 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How an attempt looks from outside: its span, its metric. It goes on until an answer has begun, since until then it may
/// be tried again.
struct Observed<'a> {
    provider: &'a Provider,
    span: Span,
    started: Instant,
    finished: bool,
}

impl Observed<'_> {
    fn finish(&mut self, status: Option<u16>, error_type: Option<&str>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        span::attempt_finished(&self.span, status, error_type);
        AttemptFinished {
            provider: &self.provider.name,
            address: self.provider.address(),
            port: self.provider.port(),
            status,
            error_type,
            duration: self.started.elapsed(),
        }
        .emit();
    }
}

impl Drop for Observed<'_> {
    /// The client went away before an answer began.
    fn drop(&mut self) {
        self.finish(None, None);
    }
}

impl Provider {
    /// Calls once. With `asks_usage` the answer's usage is asked for though the caller doesn't.
    pub(super) async fn attempt(&self, call: &Call, asks_usage: bool) -> Result<Answer, Error> {
        let span = span::attempt(&call.span, &self.url, call.resend);
        let mut observed = Observed { provider: self, span: span.clone(), started: Instant::now(), finished: false };
        let mut headers = provider::request_headers(self.kind, &self.headers, &call.headers);
        if self.send_trace_context {
            propagate::inject(&span, &mut headers);
        }
        let pieces = dialect::prepare(&call.request, &call.model, asks_usage);
        // A call that is not streamed shows nothing before its end, so only its deadline can judge it.
        let silence = if call.request.stream { self.calls.first_token_timeout } else { Duration::MAX };
        let limits = stream::Limits { first_token: silence, idle: self.calls.idle_timeout, deadline: call.deadline };
        let letter = Letter { uri: provider::uri(&self.uri, call.query.as_deref()), headers, pieces };
        let answer = self.connections.send(letter, limits.until(silence)).instrument(span.clone()).await;
        let response = match answer {
            Ok(response) => response,
            Err(Unanswered::TookTooLong) => {
                observed.finish(None, Some("timeout"));
                return Err(limits.exceeded(&self.name, false));
            }
            Err(Unanswered::HeadTooLarge) => {
                observed.finish(None, Some("decode"));
                return Err(Error::new(
                    ErrorKind::Upstream,
                    format!("the provider {:?} sent a head that is too large", self.name),
                ));
            }
            Err(Unanswered::NotConnected(error)) => {
                let is_late = matches!(error, DialError::TookTooLong(_));
                observed.finish(None, Some(if is_late { "timeout" } else { "connect" }));
                return Err(self.unreachable(error));
            }
            Err(Unanswered::Failed(error)) => {
                observed.finish(None, Some("connect"));
                return Err(self.unreachable(error));
            }
        };
        let status = response.status().as_u16();
        let said = Said::of(response.headers(), &self.secrets);
        provider::note_rate_limits(self.kind, &self.name, response.headers());
        if !response.status().is_success() {
            observed.finish(Some(status), Some(response.status().as_str()));
            return Err(said.add_to(Box::pin(self.refused(response).instrument(span)).await));
        }
        let begun = stream::begin(self, &call.request, response, limits, asks_usage).instrument(span).await;
        match begun {
            Ok(events) => {
                observed.finish(Some(status), None);
                Ok(Answer { headers: said.headers, events, retries: 0 })
            }
            Err(error) => {
                let told = error.upstream.as_ref().map(|upstream| upstream.status.to_string());
                let error_type = match error.kind {
                    _ if told.is_some() => told.as_deref().unwrap_or_default(),
                    ErrorKind::TimeoutFirstToken | ErrorKind::TimeoutIdle | ErrorKind::TimeoutTotal => "timeout",
                    _ => "decode",
                };
                observed.finish(Some(status), Some(error_type));
                Err(said.add_to(self.named(error)))
            }
        }
    }

    fn unreachable(&self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        let message = format!("the provider {:?} can't be reached", self.name);
        Error::new(ErrorKind::Upstream, message).with_source(cause).with_fault(Fault::Network)
    }

    /// An answer that is an error by its status.
    async fn refused(&self, response: Answering) -> Error {
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get("location")
            .and_then(|value| value.to_str().ok())
            .and_then(|location| self.url.join(location).ok())
            .and_then(|url| url.host_str().map(ToOwned::to_owned));
        let body = error_body(response).await;
        let error = match status {
            400.. => dialect::decode_error(self.dialect(), status, body),
            _ => {
                let to = location.map(|host| format!(" to {host:?}")).unwrap_or_default();
                let message = format!("answered {status}{to}, which is not followed: correct its base_url");
                let mut error = Error::new(ErrorKind::Upstream, message);
                // It would say the same the next time.
                error.should_retry = Some(false);
                error
            }
        };
        self.named(error)
    }

    /// An error of this provider's, which says so and keeps its key to itself.
    fn named(&self, mut error: Error) -> Error {
        if !error.message.contains(&format!("{:?}", self.name)) {
            error.message = format!("provider {:?}: {}", self.name, error.message);
        }
        without_secrets(&self.secrets, error)
    }
}

/// What an answer's head says beside its status.
struct Said {
    /// Headers that the caller should see.
    headers: HeaderMap,
    should_retry: Option<bool>,
    retry_after: Option<Duration>,
}

impl Said {
    fn of(headers: &HeaderMap, secrets: &[Secret]) -> Self {
        let should_retry = headers.get("x-should-retry").and_then(|value| match value.as_bytes().trim_ascii() {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        });
        let retry_after = llm::retry_after(headers, Timestamp::now());
        Self { headers: provider::response_headers(headers, secrets), should_retry, retry_after }
    }

    fn add_to(self, mut error: Error) -> Error {
        *error.headers = self.headers;
        error.should_retry = self.should_retry.or(error.should_retry);
        error.retry_after = self.retry_after;
        error
    }
}

async fn error_body(response: Answering) -> Bytes {
    let mut body = BytesMut::new();
    let mut frames = decoded(response);
    let read = async {
        while let Some(Ok(frame)) = frames.frame().await {
            body.extend_from_slice(&frame.into_data().unwrap_or_default());
            if body.len() > MAX_ERROR_BODY {
                body.truncate(MAX_ERROR_BODY);
                break;
            }
        }
    };
    // What arrived in time is enough to say what went wrong.
    if timeout(ERROR_BODY_TIMEOUT, read).await.is_err() {
        ErrorBodyTimedOut.emit();
    }
    body.freeze()
}
