//! Identity, server span and HTTP metrics of every request.
//!
//! A request is over when the last byte of its body was handed to the connection, when it failed, or when its client
//! went away, whichever comes first; an [`Exchange`] lives exactly that long.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
};

use axum::{body::Body, extract::ConnectInfo};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use mlx_manager_llm::Context;
use mlx_manager_signal::{
    event::{HttpRequestFinished, HttpRequestStarted},
    propagate, span,
};
use tokio::time::Instant;
use tracing::{Instrument, Span};
use uuid::Uuid;

use crate::route::{Kind, Route};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id taken over from a client.
const MAX_REQUEST_ID: usize = 128;
/// The label of a request that matches no route.
const OTHER: &str = "_other";

/// The routes that there are, as labels, and what is made of their requests.
pub struct Labels(matchit::Router<(&'static str, Kind)>);

impl Labels {
    /// The labels of these routes.
    pub fn of(routes: &[Route]) -> Self {
        let mut labels = matchit::Router::new();
        for route in routes {
            // Whoever serves them refuses a path that is none, or that is there twice.
            labels.insert(route.path, (route.path, route.kind)).unwrap_or_default();
        }
        Self(labels)
    }

    fn find(&self, path: &str) -> Option<(&'static str, Kind)> {
        self.0.at(path).ok().map(|found| *found.value)
    }
}

/// Gives a request its [`Context`], runs it inside its server span and sees it to its end.
pub async fn observe<B, A>(
    labels: Arc<Labels>,
    mut request: Request<B>,
    answer: impl FnOnce(Request<B>) -> A,
) -> Response<ObservedBody>
where
    A: Future<Output = Response<Body>>,
{
    let known = labels.find(request.uri().path());
    let matched = known.map(|(path, _)| path);
    let (route, kind) = known.unwrap_or((OTHER, Kind::Question));
    let method = method_label(request.method());
    let request_id = request_id(request.headers());
    let span = if kind == Kind::Probe {
        Span::none()
    } else {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let span = span::http_server(kind, method, matched, peer, &request_id);
        span::http_server_request(&span, matched, &request);
        propagate::extract(&span, request.headers());
        span
    };
    let mut exchange = Exchange::begin(span.clone(), method, route, kind);
    // From here on the span is started, and nothing can be its parent any more.
    let trace = propagate::ids(&span).map(Arc::new);
    let context = Context::new(Arc::clone(&request_id), span.clone());
    request.extensions_mut().insert(Context { arrived: exchange.started, trace: trace.clone(), ..context });
    let mut response = answer(request).instrument(span.clone()).await;
    exchange.status = Some(response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    trace.iter().for_each(|ids| propagate::write(ids, response.headers_mut()));
    response.map(|body| ObservedBody { body, exchange })
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}

/// The client's own id if it can stand in a log line, else a new one, which sorts by time.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| Uuid::now_v7().to_string().into(), Into::into)
}

/// One request and its answer, from the first byte in to the last byte out.
struct Exchange {
    span: Span,
    method: &'static str,
    route: &'static str,
    kind: Kind,
    started: Instant,
    /// Known once the handler answered.
    status: Option<u16>,
    ending: Ending,
}

/// How far an exchange came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It is going on; dropped like this, the client went away.
    Open,
    /// Every byte was handed over.
    Complete,
    /// The body failed.
    Failed,
}

impl Exchange {
    fn begin(span: Span, method: &'static str, route: &'static str, kind: Kind) -> Self {
        HttpRequestStarted { method, route, kind }.emit();
        Self { span, method, route, kind, started: Instant::now(), status: None, ending: Ending::Open }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let error_type = match (self.ending, self.status) {
            (Ending::Failed, _) => Some("body"),
            (Ending::Complete, Some(status @ 500..)) => Some(status_label(status)),
            _ => None,
        };
        let status = self.status;
        span::http_server_finished(&self.span, status, error_type);
        let _entered = self.span.enter();
        let (method, route, kind, duration) = (self.method, self.route, self.kind, self.started.elapsed());
        HttpRequestFinished { method, route, kind, status, error_type, duration }.emit();
    }
}

/// `error.type` of a server error is its status, by the semantic conventions.
fn status_label(status: u16) -> &'static str {
    match status {
        500 => "500",
        501 => "501",
        502 => "502",
        503 => "503",
        504 => "504",
        529 => "529",
        _ => "5xx",
    }
}

/// A response body that ends its exchange with its last frame.
pub struct ObservedBody {
    body: Body,
    exchange: Exchange,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let _entered = this.exchange.span.enter();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(task));
        this.exchange.ending = match &frame {
            Some(Err(_)) => Ending::Failed,
            None => Ending::Complete,
            // A body of known length is not polled again after its last frame.
            Some(Ok(_)) if this.body.is_end_stream() => Ending::Complete,
            Some(Ok(_)) => Ending::Open,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
