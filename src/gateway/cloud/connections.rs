//! Ways to one provider: connections that are kept and made, in the version of HTTP that it speaks.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, TRANSFER_ENCODING},
    response::Parts,
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::{
    ProviderError,
    body::Outgoing,
    dial::{DialError, Dialed, Dialer},
    lanes::{LaneGuard, Lanes, Made},
    wire::{Idle, Wire},
};

/// After how many pieces that were there already an answer over HTTP/2 lets others go first. What reads a connection may stand
/// behind who takes an answer from it, and with it the answers of all others there.
const PIECES: usize = 16;
/// The largest head of an answer, in bytes. The client itself gives up somewhat above it over HTTP/1.1, and at four times that
/// over HTTP/2.
const MAX_HEAD: usize = 256 * 1024;

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// No head of one came in time.
    TookTooLong,
    /// Its head has more than [`MAX_HEAD`] bytes.
    HeadTooLarge,
    /// No connection came about.
    NotConnected(DialError),
    /// The connection broke.
    Failed(hyper::Error),
}

/// A request on its way to a provider.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    /// Where it goes, scheme and authority included.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// The body.
    pub(super) pieces: Vec<Bytes>,
}

impl Letter {
    /// The request that it is, with a body of its pieces.
    pub(super) fn with(self, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// All connections to one provider.
#[derive(Debug)]
pub(super) struct Connections {
    dialer: Dialer,
    /// What the provider is called by.
    host: HeaderValue,
    idle: Arc<Idle>,
    lanes: Arc<Lanes>,
    /// Whether the provider chose HTTP/2 last, or may yet.
    speaks_http2: AtomicBool,
}

impl Connections {
    /// To the place that a URL names; connects to nothing.
    ///
    /// # Errors
    /// When no connection could be made there.
    pub(super) fn new(url: &Uri, connect_timeout: Duration) -> Result<Self, ProviderError> {
        let dialer = Dialer::new(url, connect_timeout)?;
        let speaks_http2 = AtomicBool::new(dialer.may_speak_http2());
        let host = url.authority().map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default());
        let host = HeaderValue::from_str(host.unwrap_or_default()).map_err(|_| ProviderError::Url(url.to_string()))?;
        Ok(Self { dialer, host, idle: Arc::default(), lanes: Arc::default(), speaks_http2 })
    }

    /// Closes what nobody has used for long.
    pub(super) fn prune(&self) {
        self.idle.prune();
        self.lanes.prune();
    }

    /// Posts a request, and waits until `limit` for the head of its answer.
    ///
    /// # Errors
    /// When none came.
    pub(super) async fn send(&self, letter: Letter, limit: Instant) -> Result<Answering, Unanswered> {
        let answering = if self.speaks_http2.load(Ordering::Relaxed) {
            match self.lanes.send(&self.dialer, &letter, limit).await? {
                Made::Answered(response, place) => Answering::new(response, Way::Shared { _place: place, taken: 0 }),
                Made::Otherwise(io) => {
                    self.speaks_http2.store(false, Ordering::Relaxed);
                    let wire = Wire::open(io).await.map_err(Unanswered::Failed)?;
                    self.alone(letter, Some(wire), limit).await?
                }
            }
        } else {
            self.alone(letter, None, limit).await?
        };
        let head: usize = answering.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if head > MAX_HEAD { Err(Unanswered::HeadTooLarge) } else { Ok(answering) }
    }

    /// The same over a connection that nobody else uses.
    async fn alone(&self, letter: Letter, wire: Option<Wire>, limit: Instant) -> Result<Answering, Unanswered> {
        timeout_at(limit, self.over_http1(letter, wire)).await.unwrap_or(Err(Unanswered::TookTooLong))
    }

    async fn over_http1(&self, letter: Letter, mut made: Option<Wire>) -> Result<Answering, Unanswered> {
        let mut request = self.for_http1(letter);
        loop {
            let kept = if made.is_none() { self.idle.take().await } else { None };
            let may_be_closed = kept.is_some();
            let mut wire = match kept.or_else(|| made.take()) {
                Some(wire) => wire,
                None => {
                    // In a box, since it is seldom needed and would be most of what each call carries about.
                    let Dialed { io, .. } =
                        Box::pin(self.dialer.dial(false)).await.map_err(Unanswered::NotConnected)?;
                    Wire::open(io).await.map_err(Unanswered::Failed)?
                }
            };
            match wire.send(request).await {
                Ok(response) => {
                    return Ok(Answering::new(response, Way::Own { wire: Some(wire), idle: Arc::clone(&self.idle) }));
                }
                Err(mut error) => match error.take_message().filter(|_| may_be_closed) {
                    Some(unsent) => request = unsent,
                    None => return Err(Unanswered::Failed(error.into_error())),
                },
            }
        }
    }

    /// Without what HTTP/1.1 says by the connection, unless there is a proxy that has to be told.
    fn for_http1(&self, letter: Letter) -> Request<Outgoing> {
        let body = Outgoing::new(&letter.pieces);
        let mut request = letter.with(body);
        request.headers_mut().insert(HOST, self.host.clone());
        match self.dialer.forwards() {
            None => {
                let path = request.uri().path_and_query().cloned();
                *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
            }
            Some(auth) => {
                let auth = auth.map(|auth| (PROXY_AUTHORIZATION, auth.clone()));
                request.headers_mut().extend(auth);
            }
        }
        request
    }
}

/// An answer whose head has come, and its body as it comes.
#[derive(Debug)]
pub(super) struct Answering {
    head: Parts,
    body: Incoming,
    way: Way,
}

/// What its bytes come by.
enum Way {
    /// A connection of its own, which is kept once they have all come.
    Own { wire: Option<Wire>, idle: Arc<Idle> },
    /// A place among others, and how many pieces came since they had their turn.
    Shared { _place: LaneGuard, taken: usize },
}

impl Answering {
    fn new(response: Response<Incoming>, way: Way) -> Self {
        let (head, body) = response.into_parts();
        Self { head, body, way }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.head.status
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Whether its body ends with its connection, and nothing says how long it is.
    pub(super) fn ends_with_connection(&self) -> bool {
        let has = |name| self.head.headers.contains_key(name);
        self.head.version < Version::HTTP_2 && !has(CONTENT_LENGTH) && !has(TRANSFER_ENCODING)
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Self { body, way, .. } = &mut *self;
        match way {
            Way::Own { wire: None, .. } => Pin::new(body).poll_frame(task),
            Way::Own { wire: kept @ Some(_), idle } => {
                let Some(wire) = kept else { return Poll::Ready(None) };
                let frame = ready!(wire.poll_frame(body, task));
                if frame.is_none() || body.is_end_stream() {
                    kept.take().into_iter().for_each(|wire| idle.keep(wire, task));
                }
                Poll::Ready(frame)
            }
            Way::Shared { taken, .. } => {
                if *taken == PIECES {
                    *taken = 0;
                    task.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let frame = ready!(Pin::new(body).poll_frame(task));
                *taken += 1;
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Own { .. } => "Own",
            Self::Shared { .. } => "Shared",
        })
    }
}
