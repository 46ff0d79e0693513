//! From an answer's bytes to events, under three time limits.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::{Observer, sse};
use mlx_manager_llm::{Error, ErrorKind, Event, EventStream, Request};
use mlx_manager_signal::span;
use reqwest::Response;
use tokio::time::{Instant, timeout, timeout_at};

/// The largest frame of a stream, in bytes; a frame holds a few tokens, or one tool call.
const MAX_FRAME: usize = 16 * 1024 * 1024;
/// The largest answer that is not streamed, in bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// How long a finished stream may take to close, so that its connection can be used again.
const LINGER: Duration = Duration::from_millis(100);

/// When a stream has taken too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For the first generated content.
    pub(super) first_token: Instant,
    /// Between two chunks.
    pub(super) idle: Duration,
    /// For everything.
    pub(super) deadline: Instant,
}

/// Reads a stream up to its first generated content and returns all its events, those already read included.
pub(super) async fn begin(
    provider: &str,
    request: &Request,
    response: Response,
    limits: Limits,
) -> Result<EventStream, Error> {
    let mut reader = Reader {
        provider: provider.to_owned(),
        body: Box::pin(response.bytes_stream()),
        parser: sse::Parser::new(MAX_FRAME),
        observer: Observer::new(request, span::captures_content()),
        read: VecDeque::new(),
        content: false,
        limits,
        ended: false,
    };
    while !reader.content && !reader.ended {
        reader.read_more().await?;
    }
    Ok(stream::unfold(reader, |mut reader| async move { reader.next().await.map(|event| (event, reader)) }).boxed())
}

/// Reads an answer that is not streamed.
pub(super) async fn whole(
    provider: &str,
    request: &Request,
    response: Response,
    limits: Limits,
) -> Result<EventStream, Error> {
    let mut chunks = response.bytes_stream();
    let mut body = BytesMut::new();
    loop {
        let limit = limits.deadline.min(Instant::now() + limits.idle);
        match timeout_at(limit, chunks.next()).await {
            Err(_) => return Err(timed_out(provider, limit, &limits, true)),
            Ok(Some(Err(error))) => return Err(broken(provider, error)),
            Ok(None) => break,
            Ok(Some(Ok(chunk))) => body.extend_from_slice(&chunk),
        }
        if body.len() > MAX_BODY {
            let message = format!("the provider {provider:?} answered more than {MAX_BODY} bytes");
            return Err(Error::new(ErrorKind::Upstream, message));
        }
    }
    let events = dialect::observe_body(request.api.dialect(), &body.freeze(), span::captures_content())?;
    Ok(stream::iter(events.into_iter().map(Ok)).boxed())
}

/// A stream being read.
struct Reader {
    provider: String,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    parser: sse::Parser,
    observer: Observer,
    /// Read but not handed on.
    read: VecDeque<Event>,
    /// Whether generated content has come.
    content: bool,
    limits: Limits,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        while self.read.is_empty() && !self.ended {
            if let Err(error) = self.read_more().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
        self.read.pop_front().map(Ok)
    }

    /// Takes the next frame, from what has arrived or from the connection.
    async fn read_more(&mut self) -> Result<(), Error> {
        if let Some(frame) = self.parser.next_frame().map_err(|error| self.rubbish(error))? {
            let events = self.observer.observe(&frame)?;
            self.content |=
                events.iter().any(|event| matches!(event, Event::Raw { content: 1.., .. } | Event::Finished { .. }));
            self.read.extend(events);
            return Ok(());
        }
        if self.observer.complete() {
            // A connection whose body was read to its end goes back to the pool.
            drop(timeout(LINGER, self.body.next()).await);
            self.ended = true;
            return Ok(());
        }
        let limit = if self.content { Instant::now() + self.limits.idle } else { self.limits.first_token };
        let limit = limit.min(self.limits.deadline);
        match timeout_at(limit, self.body.next()).await {
            Err(_) => Err(timed_out(&self.provider, limit, &self.limits, self.content)),
            Ok(Some(Ok(chunk))) => {
                self.parser.push(&chunk);
                Ok(())
            }
            Ok(Some(Err(error))) => Err(broken(&self.provider, error)),
            Ok(None) => {
                let message = format!("the provider {:?} cut its answer off", self.provider);
                Err(Error::new(ErrorKind::Upstream, message))
            }
        }
    }

    fn rubbish(&self, error: sse::SseError) -> Error {
        let message = format!("the provider {:?} sent what is no event stream", self.provider);
        Error::new(ErrorKind::Upstream, message).with_source(error)
    }
}

fn timed_out(provider: &str, limit: Instant, limits: &Limits, content: bool) -> Error {
    let (kind, message) = if limit >= limits.deadline {
        (ErrorKind::TimeoutTotal, "did not finish in time (cloud.total_timeout)")
    } else if content {
        (ErrorKind::TimeoutIdle, "paused for too long (cloud.idle_timeout)")
    } else {
        (ErrorKind::TimeoutFirstToken, "generated nothing in time (cloud.first_token_timeout)")
    };
    Error::new(kind, format!("the provider {provider:?} {message}"))
}

fn broken(provider: &str, error: reqwest::Error) -> Error {
    let message = format!("the connection to the provider {provider:?} broke in the middle of its answer");
    Error::new(ErrorKind::Upstream, message).with_source(error.without_url())
}
