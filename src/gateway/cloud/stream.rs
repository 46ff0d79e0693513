//! From an answer's bytes to events, under time limits.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http_body::Body;
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::{Observer, sse};
use mlx_manager_llm::{Error, ErrorKind, Event, EventStream, Request};
use mlx_manager_signal::{event::FrameUnreadable, span};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Provider, Secrets,
    body::{BoxError, decoded},
    connections::Answering,
    without_secrets,
};

/// The largest frame of a stream, in bytes; a frame holds a few tokens, or one tool call.
const MAX_FRAME: usize = 16 * 1024 * 1024;
/// The largest answer that is not streamed, in bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// How much of a stream is held back before its first content, in bytes.
const MAX_HELD: usize = 1024 * 1024;
/// How long a finished stream may take to close, so that its connection can be used again and nothing after the end is lost.
const LINGER: Duration = Duration::from_millis(100);

/// When an answer has taken too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of silence before the first generated content. Whatever comes, be it a comment, proves life.
    pub(super) first_token: Duration,
    /// Of silence between two chunks.
    pub(super) idle: Duration,
    /// For everything.
    pub(super) deadline: Instant,
}

impl Limits {
    /// When a silence that begins now has lasted too long.
    pub(super) fn until(&self, silence: Duration) -> Instant {
        Instant::now().checked_add(silence).map_or(self.deadline, |end| end.min(self.deadline))
    }

    /// The error of an answer that took too long, after its first content or before.
    pub(super) fn exceeded(&self, provider: &str, content: bool) -> Error {
        let (kind, message) = if Instant::now() >= self.deadline {
            (ErrorKind::TimeoutTotal, "did not finish in time (cloud.total_timeout)")
        } else if content {
            (ErrorKind::TimeoutIdle, "paused for too long (cloud.idle_timeout)")
        } else {
            (ErrorKind::TimeoutFirstToken, "sent nothing in time (cloud.first_token_timeout)")
        };
        Error::new(kind, format!("the provider {provider:?} {message}"))
    }
}

/// Reads an answer up to its first generated content, and one that isn't a stream to its end, so that whatever fails before
/// can still be tried elsewhere. Returns all its events, those already read included.
///
/// What kind of answer it is says its first byte, and not its `content-type`, which some providers leave out or get wrong:
/// JSON is a whole answer or an error even where a stream was asked for.
pub(super) async fn begin(
    provider: &Provider,
    request: &Request,
    response: Answering,
    limits: Limits,
    usage_injected: bool,
) -> Result<EventStream, Error> {
    let (name, secrets) = (provider.name.clone(), Arc::clone(&provider.secrets));
    let ends_with_connection = response.ends_with_connection();
    let patience = Patience::new(&limits);
    let body = decoded(response);
    let mut source = Source { provider: name, secrets, ends_with_connection, body, limits, patience };
    let mut head = BytesMut::new();
    if request.stream && is_stream(&mut source, &mut head).await? {
        return stream(source, request, head, usage_injected).await;
    }
    loop {
        let silence = if head.is_empty() { limits.first_token } else { limits.idle };
        let Some(chunk) = source.next(silence, !head.is_empty()).await? else { break };
        head.extend_from_slice(&chunk);
        if head.len() > MAX_BODY {
            let message = format!("the provider {:?} answered more than {MAX_BODY} bytes", provider.name);
            return Err(bought(Error::new(ErrorKind::Upstream, message)));
        }
    }
    let is_empty = head.trim_ascii().is_empty();
    let events = dialect::observe_body(request, &head.freeze(), usage_injected, span::captures_content());
    let is_error = |error: &Error| is_empty || error.upstream.is_some();
    let events = events.map_err(|error| if is_error(&error) { error } else { bought(error) })?;
    Ok(stream::iter(events.into_iter().map(Ok)).boxed())
}

/// An answer that is of no use was generated all the same, and would be paid for again.
fn bought(mut error: Error) -> Error {
    error.should_retry = Some(false);
    error
}

/// Whether what comes is an event stream, by its first byte that says anything.
async fn is_stream<B: Bytewise>(source: &mut Source<B>, head: &mut BytesMut) -> Result<bool, Error> {
    loop {
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        // The beginning of a byte order mark says nothing either.
        if let Some(first) = text.first().filter(|first| **first != 0xef) {
            return Ok(!matches!(first, b'{' | b'[' | b'<' | b'"'));
        }
        if head.len() > MAX_HELD {
            return Ok(true);
        }
        match source.next(source.limits.first_token, false).await? {
            Some(chunk) => head.extend_from_slice(&chunk),
            None => return Ok(false),
        }
    }
}

async fn stream<B: Bytewise + Send + 'static>(
    source: Source<B>,
    request: &Request,
    head: BytesMut,
    usage_injected: bool,
) -> Result<EventStream, Error> {
    let mut parser = sse::Parser::new(MAX_FRAME);
    parser.push(&head);
    let mut reader = Reader {
        source,
        parser,
        observer: Observer::new(request, usage_injected, span::captures_content()),
        read: VecDeque::new(),
        failed: None,
        held: 0,
        content: false,
        ended: false,
    };
    while !reader.content && !reader.ended && reader.held < MAX_HELD {
        reader.read_more().await?;
    }
    if !reader.content
        && let Some(error) = reader.failed.take()
    {
        return Err(error);
    }
    Ok(stream::unfold(reader, |mut reader| async move { reader.next().await.map(|event| (event, reader)) }).boxed())
}

/// What an answer's bytes come from.
trait Bytewise: Body<Data = Bytes, Error = BoxError> + Unpin {}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Bytewise for B {}

/// An answer's bytes.
struct Source<B> {
    provider: String,
    /// What must not come back in an error.
    secrets: Secrets,
    /// Whether nothing but the end of the connection says where they end.
    ends_with_connection: bool,
    body: B,
    limits: Limits,
    patience: Patience,
}

/// What became of waiting for bytes.
enum Waited {
    Came(Bytes),
    Ended,
    Broke(BoxError),
    InVain,
}

impl<B: Bytewise> Source<B> {
    /// More of them, within `silence`; `None` when they ended as they should.
    async fn next(&mut self, silence: Duration, content: bool) -> Result<Option<Bytes>, Error> {
        match self.wait(self.limits.until(silence)).await {
            // Where there is always more, nobody ever waits.
            Waited::Came(_) if Instant::now() >= self.limits.deadline => {
                Err(self.limits.exceeded(&self.provider, content))
            }
            Waited::Came(bytes) => Ok(Some(bytes)),
            Waited::Ended => Ok(None),
            Waited::InVain => Err(self.limits.exceeded(&self.provider, content)),
            // As an end it is as good as closing a connection without TLS.
            Waited::Broke(error) if self.ends_with_connection && is_bare_close(&error) => Ok(None),
            Waited::Broke(error) => {
                let message =
                    format!("the connection to the provider {:?} broke in the middle of its answer", self.provider);
                Err(Error::new(ErrorKind::Upstream, message).with_source(error))
            }
        }
    }

    /// Waits for more until `end`.
    async fn wait(&mut self, end: Instant) -> Waited {
        poll_fn(|task| {
            loop {
                return match Pin::new(&mut self.body).poll_frame(task) {
                    Poll::Pending => self.patience.poll(end, task).map(|()| Waited::InVain),
                    Poll::Ready(None) => Poll::Ready(Waited::Ended),
                    Poll::Ready(Some(Err(error))) => Poll::Ready(Waited::Broke(error)),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(bytes) => Poll::Ready(Waited::Came(bytes)),
                        // Trailers say nothing.
                        Err(_) => continue,
                    },
                };
            }
        })
        .await
    }
}

/// A timer whose end is moved with each piece that comes. Moving it away costs nothing: that is seen to when it is over.
struct Patience(Pin<Box<Sleep>>);

impl Patience {
    fn new(limits: &Limits) -> Self {
        Self(Box::pin(sleep_until(limits.deadline)))
    }

    fn poll(&mut self, end: Instant, task: &mut Context<'_>) -> Poll<()> {
        // A timer is given no turn by a task whose turns went all to bytes that never end.
        if Instant::now() >= end {
            return Poll::Ready(());
        }
        if end < self.0.deadline() {
            self.0.as_mut().reset(end);
        }
        loop {
            ready!(self.0.as_mut().poll(task));
            if self.0.deadline() >= end {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(end);
        }
    }
}

/// Whether a connection was closed without telling TLS, as some servers close all of theirs.
fn is_bare_close(error: &BoxError) -> bool {
    let mut cause: Option<&dyn StdError> = Some(&**error);
    while let Some(error) = cause {
        if error.source().is_none() && error.to_string().contains("close_notify") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A stream being read.
struct Reader<B> {
    source: Source<B>,
    parser: sse::Parser,
    observer: Observer,
    /// Read but not handed on.
    read: VecDeque<Event>,
    /// What ended it, once all that was read is handed on.
    failed: Option<Error>,
    /// Bytes of all frames so far, of which those before the first content are kept.
    held: usize,
    /// Whether generated content has come.
    content: bool,
    ended: bool,
}

impl<B: Bytewise> Reader<B> {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        while self.read.is_empty() && !self.ended {
            if let Err(error) = self.read_more().await {
                self.ended = true;
                self.failed = Some(error);
            }
        }
        self.read.pop_front().map(Ok).or_else(|| self.failed.take().map(Err))
    }

    /// Takes the next frame, from what has arrived or from the connection.
    async fn read_more(&mut self) -> Result<(), Error> {
        if let Some(frame) = self.parser.next_frame().map_err(|error| self.rubbish(error))? {
            self.observe(&frame);
            if self.observer.complete() && !self.ended {
                self.linger().await;
            }
            return Ok(());
        }
        let Limits { first_token, idle, .. } = self.source.limits;
        let silence = if self.content { idle } else { first_token };
        if let Some(chunk) = self.source.next(silence, self.content).await? {
            self.parser.push(&chunk);
            return Ok(());
        }
        // A body that ended well may owe the blank line after its last frame.
        if let Some(frame) = self.parser.finish() {
            self.observe(&frame);
        }
        if !self.ended {
            self.ended = true;
            self.failed = self.lacking();
        }
        Ok(())
    }

    /// What keeps the answer from being whole, now that it has ended.
    fn lacking(&self) -> Option<Error> {
        self.observer.finish().err().map(|error| without_secrets(&self.source.secrets, error))
    }

    /// Reads what comes after the end: some clients read on, and a connection whose body was read to its end goes back to the
    /// pool. The end is handed on only after it, as other clients leave with it, and leave nothing behind that isn't ended.
    async fn linger(&mut self) {
        // Whether the answer is whole, whatever comes after it.
        let failed = self.lacking();
        let end = Instant::now() + LINGER;
        loop {
            while !self.ended
                && let Ok(Some(frame)) = self.parser.next_frame()
            {
                self.observe(&frame);
            }
            match self.source.wait(end).await {
                Waited::Came(chunk) if !self.ended => self.parser.push(&chunk),
                Waited::Came(_) => {}
                _ => break,
            }
        }
        if !self.ended
            && let Some(frame) = self.parser.finish()
        {
            self.observe(&frame);
        }
        self.ended = true;
        self.failed = failed;
    }

    fn observe(&mut self, frame: &sse::Frame) {
        self.held += frame.raw.len();
        let unreadable = self.observer.unreadable();
        let mut events = Vec::with_capacity(2);
        if let Err(error) = self.observer.observe(frame, &mut events) {
            self.ended = true;
            self.failed = Some(without_secrets(&self.source.secrets, error));
        }
        if self.observer.unreadable() > unreadable {
            FrameUnreadable { provider: &self.source.provider, is_first: unreadable == 0 }.emit();
        }
        self.content |=
            events.iter().any(|event| matches!(event, Event::Raw { content: 1.., .. } | Event::Finished { .. }));
        self.read.extend(events);
    }

    fn rubbish(&self, error: sse::SseError) -> Error {
        let message = format!("the provider {:?} sent what is no event stream", self.source.provider);
        bought(Error::new(ErrorKind::Upstream, message).with_source(error))
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;
    use mlx_manager_config::Secret;
    use mlx_manager_llm::Api;

    use super::*;

    /// What a caller gets of chunks that come after so many milliseconds each, and how long it takes.
    async fn read(chunks: &'static [(u64, &'static str)]) -> (Vec<Bytes>, Option<Error>, Duration) {
        let body = stream::iter(chunks).then(|(wait, text)| async move {
            tokio::time::sleep(Duration::from_millis(*wait)).await;
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(text.as_bytes())))
        });
        let (minute, began) = (Duration::from_secs(60), Instant::now());
        let limits = Limits { first_token: minute, idle: minute, deadline: began + minute };
        let head = br#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
        let request = dialect::decode_head(Api::ChatCompletions, Bytes::from_static(head)).unwrap();
        let mut reader = Reader {
            source: Source {
                provider: "p".to_owned(),
                secrets: Arc::new([Secret::new("sk-secret")]),
                ends_with_connection: true,
                body: StreamBody::new(Box::pin(body)),
                patience: Patience::new(&limits),
                limits,
            },
            parser: sse::Parser::new(MAX_FRAME),
            observer: Observer::new(&request, false, false),
            read: VecDeque::new(),
            failed: None,
            held: 0,
            content: false,
            ended: false,
        };
        let (mut frames, mut failed) = (Vec::new(), None);
        while let Some(event) = reader.next().await {
            match event {
                Ok(Event::Raw { frame, .. }) => frames.push(frame),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        (frames, failed, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_shows_only_at_the_end_keeps_secrets_too() {
        const CHUNKS: &[(u64, &str)] = &[
            (0, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"),
            (0, "data: {\"detail\":\"no sk-secret\"}\n\n"),
        ];
        let (_, failed, _) = read(CHUNKS).await;
        assert_eq!(failed.unwrap().upstream.unwrap().words.as_deref(), Some("no ***"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_handed_on_with_what_comes_after_it_and_not_later_than_it_may() {
        let (frames, failed, took) = read(&[(0, "data: {}\n\ndata: [DONE]\n\n"), (50, ": late\n\n"), (40, "x")]).await;
        assert!(failed.is_none() && took < LINGER, "{took:?}");
        assert_eq!(frames, ["data: {}\n\n", "data: [DONE]\n\n", ": late\n\n", "x"]);
        let (frames, failed, took) = read(&[(0, "data: [DONE]\n\n"), (500, "data: {}\n\n")]).await;
        assert!(failed.is_none() && took < 2 * LINGER, "{took:?}");
        assert_eq!(frames, ["data: [DONE]\n\n"]);
        let (frames, failed, _) =
            read(&[(0, "data: [DONE]\n\n"), (9, "data: {\"error\":\"no\"}\n\ndata: {}\n\n")]).await;
        assert!(failed.is_none() && frames.len() == 1, "an error after the end is none");
        let (_, failed, _) = read(&[(0, "data: rubbish\n\ndata: [DONE]\n\n"), (9, "data: {}\n\n")]).await;
        assert!(failed.is_some(), "nothing of it was an answer");
    }
}
