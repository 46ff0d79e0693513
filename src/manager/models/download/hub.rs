//! HTTP calls to the hub, and to where it sends us. Each physical one has a span and a measurement.
//!
//! The token goes to the hub alone. Files live elsewhere: the hub redirects to a link that is signed for an hour or so, so
//! every try begins at the hub again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use mlx_manager_config::HubConfig;
use mlx_manager_llm as llm;
use mlx_manager_signal::{
    event::{DownloadFinished, HttpCall},
    span,
};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE},
    redirect,
};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::{PullError, Repository, Source, partial::Partial};

/// Retries of the list of files, for which somebody waits, and of a file since bytes last came.
pub(super) const LISTING_TRIES: usize = 2;
pub(super) const FILE_TRIES: usize = 5;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS: usize = 5;
/// A repository with ten thousand files takes a fifth of it.
const LONGEST_LISTING: usize = 16 << 20;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// The hub counts calls per five minutes.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// The hub.
pub(super) struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<HeaderValue>,
}

/// One resource, for as many calls as it takes.
pub(super) struct Get<'a> {
    parent: &'a Span,
    url: Url,
    /// Calls made.
    sent: u32,
}

impl<'a> Get<'a> {
    pub(super) fn new(parent: &'a Span, url: Url) -> Self {
        Self { parent, url, sent: 0 }
    }
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: PullError,
    /// Absent when another try would end the same.
    pub(super) retry: Option<Again>,
}

/// Why another try may help.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    /// One of a closed set.
    pub(super) reason: &'static str,
    /// What the server asks us to wait.
    pub(super) after: Option<Duration>,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self { error, retry: None }
    }
}

/// The waits between tries.
pub(super) struct Retry(ExponentialBackoff);

impl Retry {
    pub(super) fn new(times: usize) -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(times)
            .with_jitter();
        Self(delays.build())
    }

    /// How long to wait before the next try; `None` when there is none.
    pub(super) fn next(&mut self, after: Option<Duration>) -> Option<Duration> {
        let delay = self.0.next()?;
        // A server that says 0 again and again must not be called in a tight loop.
        Some(after.map_or(delay, |after| after.max(delay))).filter(|delay| *delay <= LONGEST_RETRY_AFTER)
    }
}

/// An answer with a span that lasts until its body's end.
struct Answer {
    response: Response,
    call: Call,
}

/// How a call looks from outside: its span, its metric.
struct Call {
    span: Span,
    url: Url,
    started: Instant,
    /// The status, and when it came.
    answered: Option<(StatusCode, Duration)>,
    bytes: u64,
    finished: bool,
}

impl Call {
    fn finish(&mut self, error_type: Option<&str>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let duration = match (self.answered, error_type) {
            (Some((_, duration)), None) => duration,
            _ => self.started.elapsed(),
        };
        let status = self.answered.map(|(status, _)| status.as_u16());
        let refused = status.filter(|status| *status >= 400).map(|status| status.to_string());
        let error_type = error_type.or(refused.as_deref());
        span::download_finished(&self.span, status, error_type, self.bytes);
        let address = host(&self.url);
        let port = self.url.port_or_known_default().unwrap_or_default();
        let call = HttpCall { address, port, status, error_type, duration };
        DownloadFinished { call, bytes: self.bytes }.emit();
    }
}

impl Drop for Call {
    /// The pull was interrupted.
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl Hub {
    pub(super) fn new(config: &HubConfig) -> Result<Self, PullError> {
        let unusable =
            |error: &dyn std::fmt::Display| PullError::Answer { reason: format!("no call can be made: {error}") };
        let endpoint = Url::parse(&config.endpoint).map_err(|error| unusable(&error))?;
        let token = config.token.as_ref().map(|token| HeaderValue::try_from(format!("Bearer {}", token.expose())));
        let mut token = token.transpose().map_err(|error| unusable(&error))?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        let client = Client::builder()
            .user_agent(concat!("mlx-manager/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(config.read_timeout)
            .tcp_nodelay(true)
            // Each redirect is a call of its own, and without our token if it leads elsewhere.
            .redirect(redirect::Policy::none())
            // A range of a compressed file would be another one.
            .no_gzip()
            .build()
            .map_err(|error| unusable(&error))?;
        Ok(Self { client, endpoint, token })
    }

    /// Where the list of files is.
    pub(super) fn listing_url(&self, source: &Source) -> Result<Url, PullError> {
        let Repository { organisation, name } = &source.repository;
        let mut url = self.url(&["api", "models", organisation, name, "revision", &source.revision])?;
        url.set_query(Some("blobs=true"));
        Ok(url)
    }

    /// Where a file is.
    pub(super) fn file_url(&self, repository: &Repository, commit: &str, file: &str) -> Result<Url, PullError> {
        let Repository { organisation, name } = repository;
        self.url(&[organisation, name, "resolve", commit, file])
    }

    fn url(&self, path: &[&str]) -> Result<Url, PullError> {
        let mut url = self.endpoint.clone();
        // A slash within a revision doesn't divide the path.
        url.path_segments_mut()
            .map_err(|()| PullError::Answer { reason: format!("{} has no paths", self.endpoint) })?
            .pop_if_empty()
            .extend(path);
        Ok(url)
    }

    /// The API's answer about a model.
    pub(super) async fn listing(&self, get: &mut Get<'_>, source: &Source) -> Result<Vec<u8>, Failure> {
        let mut answer = self.open(get, source, 0).await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST_LISTING {
                let reason = format!("its list of files is longer than {LONGEST_LISTING} bytes");
                return Err(PullError::Answer { reason }.into());
            }
        }
        answer.call.finish(None);
        Ok(body)
    }

    /// Downloads what a file lacks. `arrived` is told of each piece: its bytes, and how many there are now.
    pub(super) async fn download(
        &self,
        get: &mut Get<'_>,
        source: &Source,
        partial: &mut Partial<'_>,
        mut arrived: impl FnMut(u64, u64),
    ) -> Result<(), Failure> {
        let mut answer = self.open(get, source, partial.length()).await?;
        if partial.length() > 0 && !answer.continues(partial.length()) {
            // The server sends all of it, or another part.
            partial.clear()?;
            if answer.response.status() == StatusCode::PARTIAL_CONTENT {
                let reason = format!("{} sent another range than it was asked for", host(&answer.call.url));
                return Err(PullError::Answer { reason }.into());
            }
        }
        while let Some(chunk) = answer.chunk().await? {
            if let Err(error) = partial.write(&chunk) {
                answer.call.finish(Some(error.kind()));
                return Err(error.into());
            }
            arrived(chunk.len() as u64, partial.length());
        }
        if partial.is_whole() {
            answer.call.finish(None);
            return Ok(());
        }
        answer.call.finish(Some("body"));
        let reason = format!("{} ended a file before its end", host(&answer.call.url));
        Err(Failure { error: PullError::Answer { reason }, retry: Some(Again { reason: "body", after: None }) })
    }

    /// Asks for a resource, from a byte on, and follows where that leads.
    async fn open(&self, get: &mut Get<'_>, source: &Source, from: u64) -> Result<Answer, Failure> {
        let mut url = get.url.clone();
        for _ in 0..=REDIRECTS {
            let answer = self.call(get, &url, from).await?;
            let status = answer.response.status();
            if status.is_success() {
                return Ok(answer);
            }
            if !status.is_redirection() {
                return Err(self.refusal(&answer, source));
            }
            let location = answer.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            // What was asked for over TLS is not to be had without.
            let next =
                next.filter(|next| next.scheme() == "https" || (next.scheme() == "http" && url.scheme() == "http"));
            url = next.ok_or_else(|| PullError::Answer { reason: format!("{} sends us nowhere", host(&url)) })?;
        }
        Err(PullError::Answer { reason: format!("{} sends us in a circle", host(&get.url)) }.into())
    }

    /// Calls once.
    async fn call(&self, get: &mut Get<'_>, url: &Url, from: u64) -> Result<Answer, Failure> {
        let span = span::download(get.parent, url, get.sent);
        get.sent += 1;
        let mut call = Call {
            span: span.clone(),
            url: url.clone(),
            started: Instant::now(),
            answered: None,
            bytes: 0,
            finished: false,
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if from > 0 {
            // The address names a commit, so that the file can't have changed.
            headers.insert(RANGE, HeaderValue::try_from(format!("bytes={from}-")).map_err(|_| unreadable(url))?);
        }
        if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
            headers.insert(AUTHORIZATION, token.clone());
        }
        // No trace context: it is nobody's business on the other side.
        match self.client.get(url.clone()).headers(headers).send().instrument(span).await {
            Ok(response) => {
                call.answered = Some((response.status(), call.started.elapsed()));
                Ok(Answer { response, call })
            }
            Err(error) => Err(call.broken(error, "connect")),
        }
    }

    /// What a refusal means. The hub gives its reason in a header.
    fn refusal(&self, answer: &Answer, source: &Source) -> Failure {
        let (status, headers) = (answer.response.status(), answer.response.headers());
        let url = &answer.call.url;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let repository = source.repository.to_string();
        let refused = PullError::Refused { host: host(url).to_owned(), status: status.as_u16() };
        let again = |reason| Some(Again { reason, after: retry_after(headers) });
        let retry = match status.as_u16() {
            408 => again("timeout"),
            429 => again("rate_limited"),
            500.. => again("server_error"),
            _ => None,
        };
        if retry.is_some() {
            return Failure { error: refused, retry };
        }
        if url.origin() != self.endpoint.origin() {
            // The link was signed for a time that is over; the hub gives a new one.
            let retry = (status == StatusCode::FORBIDDEN).then_some(Again { reason: "expired", after: None });
            return Failure { error: refused, retry };
        }
        let error = match (status.as_u16(), header("x-error-code")) {
            (_, "RevisionNotFound") => PullError::UnknownRevision { repository, revision: source.revision.clone() },
            (_, "RepoNotFound") => PullError::UnknownModel { repository },
            (status, "GatedRepo") | (status @ 403, _) => {
                let page = format!("{}/{repository}", self.endpoint.as_str().trim_end_matches('/'));
                PullError::Gated { repository, page, status }
            }
            // So that nobody learns of private ones, the hub answers this for models that don't exist too.
            (401, _) if header("x-error-message") != "Invalid credentials in Authorization header" => {
                PullError::UnknownModel { repository }
            }
            (404, code) if code != "EntryNotFound" => PullError::UnknownModel { repository },
            _ => refused,
        };
        error.into()
    }
}

impl Answer {
    /// Whether the body goes on where we stopped.
    fn continues(&self, from: u64) -> bool {
        let range = self.response.headers().get("content-range").and_then(|value| value.to_str().ok());
        self.response.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
    }

    async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        match self.response.chunk().await {
            Ok(chunk) => {
                self.call.bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                Ok(chunk)
            }
            Err(error) => Err(self.call.broken(error, "body")),
        }
    }
}

impl Call {
    /// Ends with a connection that failed.
    fn broken(&mut self, error: reqwest::Error, kind: &'static str) -> Failure {
        let reason = if error.is_timeout() { "timeout" } else { kind };
        self.finish(Some(reason));
        // The address may be signed.
        let error = PullError::Unreachable { host: host(&self.url).to_owned(), source: error.without_url() };
        Failure { error, retry: Some(Again { reason, after: None }) }
    }
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

fn unreadable(url: &Url) -> PullError {
    PullError::Answer { reason: format!("{} can't be asked for a part", host(url)) }
}

/// How long to wait: by `Retry-After`, or by the end of the window in `RateLimit: "api";r=0;t=55`, which is the hub's way.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    llm::retry_after(headers, Timestamp::now()).or_else(|| {
        let limit = headers.get("ratelimit")?.to_str().ok()?;
        let window = limit.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
        let used_up = limit.split(';').any(|part| part.trim() == "r=0");
        window.parse().ok().filter(|_| used_up).map(Duration::from_secs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(endpoint: &str) -> Hub {
        drop(rustls::crypto::ring::default_provider().install_default());
        let read_timeout = Duration::from_secs(1);
        Hub::new(&HubConfig { endpoint: endpoint.to_owned(), token: None, read_timeout }).unwrap()
    }

    #[test]
    fn addresses_are_those_of_the_hub() {
        let source: Source = "org/model@refs/pr/1".parse().unwrap();
        let hub = hub("https://mirror.example/hf");
        assert_eq!(
            hub.listing_url(&source).unwrap().as_str(),
            "https://mirror.example/hf/api/models/org/model/revision/refs%2Fpr%2F1?blobs=true"
        );
        assert_eq!(
            hub.file_url(&source.repository, "abc", "a b?.json").unwrap().as_str(),
            "https://mirror.example/hf/org/model/resolve/abc/a%20b%3F.json"
        );
    }

    #[test]
    fn the_hub_says_how_long_to_wait_in_two_ways() {
        let wait = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("retry-after", "7"), Some(7));
        assert_eq!(wait("ratelimit", "\"api\";r=0;t=55"), Some(55));
        // It is on every answer, and only at 0 the reason for one.
        assert_eq!(wait("ratelimit", "\"api\";r=10;t=55"), None);
        assert_eq!(wait("retry-after", "soon"), None);
    }

    #[tokio::test]
    async fn tries_end_and_waits_are_bounded() {
        let mut retry = Retry::new(2);
        assert_eq!(retry.next(Some(Duration::from_secs(100))), Some(Duration::from_secs(100)));
        assert!(retry.next(Some(Duration::ZERO)).unwrap() >= FIRST_DELAY);
        assert_eq!(retry.next(None), None);
        assert_eq!(Retry::new(9).next(Some(Duration::from_hours(1))), None);
    }
}
