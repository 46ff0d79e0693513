//! One physical call, with its span: from the request to an answer that has begun.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use jiff::Timestamp;
use mlx_manager_dialect as dialect;
use mlx_manager_llm as llm;
use mlx_manager_llm::{Answer, Call, Error, ErrorKind};
use mlx_manager_signal::{
    event::{AttemptFinished, ErrorBodyTimedOut},
    propagate, span,
};
use reqwest::{Response, header::CONTENT_TYPE};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument, Span};

use super::{Provider, provider, retry, stream};

/// The largest error body that is read, and how long for.
const MAX_ERROR_BODY: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A call that failed before anything was sent to the client.
pub(super) struct Failure {
    pub(super) error: Error,
    /// Why another try may help; `None` when it may not.
    pub(super) reason: Option<&'static str>,
    /// What the provider asks us to wait.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    fn new(error: Error, reason: Option<&'static str>) -> Self {
        Self { error, reason, retry_after: None }
    }

    pub(super) fn total_timeout(provider: &Provider) -> Self {
        let message = format!("the provider {:?} did not finish in time (cloud.total_timeout)", provider.name);
        Self::new(Error::new(ErrorKind::TimeoutTotal, message), None)
    }
}

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
    /// The client went away, or the total timeout struck, before an answer began.
    fn drop(&mut self) {
        self.finish(None, None);
    }
}

impl Provider {
    /// Calls once. `resend` is 0 for the first try.
    pub(super) async fn attempt(
        &self,
        call: &Call,
        body: Bytes,
        resend: u32,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let span = span::attempt(&call.span, &self.url, resend);
        let mut observed = Observed { provider: self, span: span.clone(), started: Instant::now(), finished: false };
        let first_token = first_token_limit(self, call, deadline);
        let mut headers =
            provider::request_headers(self.kind, self.api_key.as_ref().map(|key| (&self.auth, key)), &call.headers);
        if self.send_trace_context {
            propagate::inject(&span, &mut headers);
        }
        let request = self
            .client
            .post(provider::url(&self.url, call.query.as_deref()))
            .headers(headers)
            .body(body)
            .send()
            .instrument(span.clone());
        let response = match timeout_at(first_token, request).await {
            Err(_) => {
                observed.finish(None, Some("timeout"));
                return Err(self.no_first_token(first_token, deadline));
            }
            Ok(Err(error)) => {
                let error_type = if error.is_timeout() { "timeout" } else { "connect" };
                observed.finish(None, Some(error_type));
                let message = format!("the provider {:?} can't be reached", self.name);
                // The URL has no secret, but it says nothing that the message doesn't.
                let error = Error::new(ErrorKind::Upstream, message).with_source(error.without_url());
                return Err(Failure::new(error, Some(error_type)));
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status().as_u16();
        provider::note_rate_limits(self.kind, &self.name, response.headers());
        if !response.status().is_success() {
            observed.finish(Some(status), Some(response.status().as_str()));
            return Err(self.refused(response).instrument(span).await);
        }
        let headers = provider::response_headers(response.headers());
        let begun = self.begin(call, response, first_token, deadline).instrument(span).await;
        match begun {
            Ok(events) => {
                observed.finish(Some(status), None);
                Ok(Answer { headers, events, retries: resend, keep_alive: false })
            }
            Err(error) => {
                let error_type = if error.kind == ErrorKind::Upstream { "decode" } else { "timeout" };
                observed.finish(Some(status), Some(error_type));
                let reason = (error.kind == ErrorKind::Upstream).then_some("server_error");
                Err(Failure::new(error, reason))
            }
        }
    }

    /// Reads on until generated content, so that whatever fails before can still be tried again or elsewhere.
    async fn begin(
        &self,
        call: &Call,
        response: Response,
        first_token: Instant,
        deadline: Instant,
    ) -> Result<llm::EventStream, Error> {
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if call.request.stream && !content_type.starts_with("text/event-stream") {
            let message = format!("the provider {:?} was asked for a stream and answered {content_type:?}", self.name);
            return Err(Error::new(ErrorKind::Upstream, message));
        }
        let limits = stream::Limits { first_token, idle: self.calls.idle_timeout, deadline };
        if call.request.stream {
            stream::begin(&self.name, &call.request, response, limits).await
        } else {
            stream::whole(&self.name, &call.request, response, limits).await
        }
    }

    fn no_first_token(&self, first_token: Instant, deadline: Instant) -> Failure {
        if first_token >= deadline {
            return Failure::total_timeout(self);
        }
        let message = format!("the provider {:?} sent nothing in time (cloud.first_token_timeout)", self.name);
        Failure::new(Error::new(ErrorKind::TimeoutFirstToken, message), None)
    }

    /// An answer that is an error.
    async fn refused(&self, response: Response) -> Failure {
        let status = response.status().as_u16();
        let retry_after = llm::retry_after(response.headers(), Timestamp::now());
        let headers = provider::response_headers(response.headers());
        let location = response
            .headers()
            .get("location")
            .and_then(|value| value.to_str().ok())
            .and_then(|location| self.url.join(location).ok())
            .and_then(|url| url.host_str().map(ToOwned::to_owned));
        let body = self.without_key(error_body(response).await);
        let mut error = match status {
            400.. => dialect::decode_error(self.dialect(), status, body),
            _ => {
                let to = location.map(|host| format!(" to {host:?}")).unwrap_or_default();
                let message = format!("answered {status}{to}, which is not followed: correct its base_url");
                Error::new(ErrorKind::Upstream, message)
            }
        };
        error.message = format!("provider {:?}: {}", self.name, error.message);
        *error.headers = headers;
        Failure { error, reason: retry::reason(status), retry_after }
    }
}

/// A call that is not streamed shows nothing before its end, so only the total timeout can judge it.
fn first_token_limit(provider: &Provider, call: &Call, deadline: Instant) -> Instant {
    if call.request.stream { deadline.min(Instant::now() + provider.calls.first_token_timeout) } else { deadline }
}

async fn error_body(response: Response) -> Bytes {
    let mut body = BytesMut::new();
    let mut chunks = response.bytes_stream();
    let read = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            body.extend_from_slice(&chunk);
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
