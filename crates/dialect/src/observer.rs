//! Watching an answer go by.
//!
//! The observer can't fail: what it doesn't understand is forwarded to the byte and counted, for the client that the frames
//! are for may well understand it. Only what the provider itself calls an error is one, and an answer of which nothing at all
//! was readable.

use std::borrow::Cow;

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, ErrorKind, Event, FinishReason, Request, Usage};

use super::{
    anthropic, openai,
    raw::{Node, Raw, lossy},
    refusal,
    sse::{self, Frame},
    upstream_error,
};

/// Reads the frames of a provider's streamed answer: what to forward, and what it means.
#[derive(Debug)]
pub struct Observer {
    wire: Wire,
    /// For the index of a frame.
    room: Vec<Node>,
    seen: Seen,
    /// Frames that were forwarded without being understood.
    unreadable: u64,
    /// Whether any frame was a piece of an answer.
    answered: bool,
    /// What was said last that is no piece of an answer, and an error only where nothing comes after it.
    said: Option<Bytes>,
    /// Whether a terminator was seen.
    complete: bool,
}

#[derive(Debug)]
enum Wire {
    OpenAi(openai::upstream::Observer),
    Anthropic(Box<anthropic::upstream::Observer>),
}

/// What an answer has said so far, in either dialect.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether the content is wanted beside the frames.
    pub capture: bool,
    id: bool,
    model: bool,
    finished: bool,
    /// Whether it made tool calls.
    pub calls: bool,
}

impl Seen {
    fn new(capture: bool) -> Self {
        Self { capture, ..Self::default() }
    }

    /// Tells of id and model what wasn't told before. Some providers begin with a frame in which both are empty.
    pub(super) fn started(
        &mut self,
        id: Option<Raw<'_>>,
        model: Option<Raw<'_>>,
        usage: Usage,
        events: &mut Vec<Event>,
    ) {
        let word = |told: &mut bool, value: Option<Raw<'_>>| {
            let word = value.filter(|_| !*told).and_then(Raw::word).map(|word| word.into_owned());
            *told |= word.is_some();
            word
        };
        let (id, model) = (word(&mut self.id, id), word(&mut self.model, model));
        if id.is_some() || model.is_some() || usage != Usage::default() {
            events.push(Event::Started { id, model, usage });
        }
    }

    pub(super) fn finished(&mut self, reason: FinishReason, stop_sequence: Option<String>, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.finished, true) {
            events.push(Event::Finished { reason, stop_sequence });
        }
    }

    /// Whether the content that comes is wanted, and part of the answer.
    pub(super) fn captures(&self) -> bool {
        self.capture && !self.finished
    }
}

impl Observer {
    /// An observer for the answer to `request` from a provider of the same dialect. With `usage_injected` it was us who asked
    /// for usage, and the caller gets none of what came of it. With `capture` the generated content is given as neutral
    /// events too, which costs a copy of it.
    pub fn new(request: &Request, usage_injected: bool, capture: bool) -> Self {
        let wire = match request.api.dialect() {
            Dialect::OpenAi => Wire::OpenAi(openai::upstream::Observer::new(usage_injected)),
            Dialect::Anthropic => Wire::Anthropic(Box::default()),
        };
        Self {
            wire,
            room: Vec::new(),
            seen: Seen::new(capture),
            unreadable: 0,
            answered: false,
            said: None,
            complete: false,
        }
    }

    fn dialect(&self) -> Dialect {
        match self.wire {
            Wire::OpenAi(_) => Dialect::OpenAi,
            Wire::Anthropic(_) => Dialect::Anthropic,
        }
    }

    /// Adds the events of one frame: the raw frame unless it is not for the caller, and what it says.
    ///
    /// # Errors
    /// What a frame says that is an error. The answer ends with it.
    pub fn observe(&mut self, frame: &Frame, events: &mut Vec<Event>) -> Result<(), Error> {
        if let Some(error) = frame.error.clone() {
            return Err(upstream_error::decode(self.dialect(), None, error));
        }
        let data = frame.data.as_ref().filter(|data| !data.trim_ascii().is_empty());
        if frame.event == "error" {
            return Err(upstream_error::decode(self.dialect(), None, data.cloned().unwrap_or_default()));
        }
        let Some(data) = data else {
            if frame.is_foreign {
                self.said = Some(frame.raw.clone());
            }
            events.push(raw(&frame.raw, 0));
            return Ok(());
        };
        // Clients look no further.
        if data.trim_ascii_start().starts_with(b"[DONE]") {
            self.end(frame, events);
            return Ok(());
        }
        let mut room = std::mem::take(&mut self.room);
        let observed = self.observe_data(frame, data, &mut room, events);
        self.room = room;
        observed
    }

    fn observe_data(
        &mut self,
        frame: &Frame,
        data: &Bytes,
        room: &mut Vec<Node>,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let text = lossy(data);
        let Some(object) = Raw::indexed(&text, room).filter(|value| value.is_object() || value.is_list()) else {
            self.unreadable += 1;
            events.push(raw(&frame.raw, 0));
            return Ok(());
        };
        // Google's servers put a list around an error.
        if refusal::is_error(object.items().next().unwrap_or(object)) {
            return Err(upstream_error::decode(self.dialect(), None, data.clone()));
        }
        if !object.is_object() {
            self.unreadable += 1;
            events.push(raw(&frame.raw, 0));
            return Ok(());
        }
        if refusal::has_only_words(object) {
            self.said = Some(data.clone());
            events.push(raw(&frame.raw, 0));
            return Ok(());
        }
        // What comes after the end makes no answer of what came before it.
        if !self.complete {
            self.answered = true;
            self.said = None;
        }
        let kind = object.get("type").and_then(Raw::word);
        let kind = kind.unwrap_or_else(|| String::from_utf8_lossy(&frame.event));
        if kind == "message_stop" {
            if let (Wire::Anthropic(observer), Some(usage)) = (&mut self.wire, object.get("usage")) {
                observer.count(usage, events);
            }
            self.end(frame, events);
            return Ok(());
        }
        match &mut self.wire {
            Wire::OpenAi(observer) => observer.observe(frame, data, object, &mut self.seen, events),
            Wire::Anthropic(observer) => {
                observer.observe(frame, &kind, object, &mut self.seen, events);
                Ok(())
            }
        }
    }

    /// A terminator of either dialect ends an answer, for some providers send that of the other.
    fn end(&mut self, frame: &Frame, events: &mut Vec<Event>) {
        self.complete = true;
        events.push(raw(&frame.raw, 0));
        if self.answered || self.unreadable == 0 && self.said.is_none() {
            let reason = if self.seen.calls { FinishReason::ToolCalls } else { FinishReason::Stop };
            self.seen.finished(reason, None, events);
        }
    }

    /// Whether a terminator was seen (`[DONE]`, `message_stop`).
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// How many frames were forwarded without being understood.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Whether the answer is whole, now that the stream has ended as streams should: it said that it is done, or why the
    /// model stopped.
    ///
    /// # Errors
    /// [`ErrorKind::Upstream`] when it isn't.
    pub fn finish(&self) -> Result<(), Error> {
        let is_whole = self.complete || self.seen.finished;
        if let Some(said) = self.said.as_ref().filter(|_| !is_whole || !self.answered) {
            return Err(upstream_error::decode(self.dialect(), None, said.clone()));
        }
        let problem = match (is_whole, self.unreadable > 0 && !self.answered) {
            (_, true) => "sent nothing that can be read",
            (false, false) => "cut its answer off",
            (true, false) => return Ok(()),
        };
        Err(Error::new(ErrorKind::Upstream, format!("the provider {problem}")))
    }
}

/// The events of a provider's whole body: what to forward, and what it says. To a caller who asked for a stream it is
/// forwarded as one, and a stream to a caller who didn't as the body that it amounts to.
///
/// # Errors
/// What it says when it is an error after all, or [`ErrorKind::Upstream`] when it can't be read.
pub fn observe_body(request: &Request, body: &Bytes, usage_injected: bool, capture: bool) -> Result<Vec<Event>, Error> {
    let dialect = request.api.dialect();
    let text = lossy(body);
    let text = text.trim_start_matches('\u{feff}');
    let mut room = Vec::new();
    let value = Raw::indexed(text, &mut room).filter(|value| value.is_object() || value.is_list());
    let answer = match (value, dialect) {
        (None, _) if !request.stream && sse::begins(text) => return observe_whole_stream(request, text.as_bytes()),
        (None, _) => {
            let problem = if text.trim().is_empty() { "answered nothing" } else { "sent something that can't be read" };
            return Err(Error::new(ErrorKind::Upstream, format!("the provider {problem}")));
        }
        (Some(value), Dialect::OpenAi) => Some(value).filter(|value| is_answer(*value, "choices", request.stream)),
        (Some(value), Dialect::Anthropic) => Some(value).filter(|value| is_answer(*value, "content", request.stream)),
    };
    // An object with choices may be an error nevertheless, and one without any of it is no answer whatever it says.
    let Some(answer) = answer.filter(|answer| !refusal::is_error(*answer)) else {
        return Err(upstream_error::decode(dialect, None, body.clone()));
    };
    let mut seen = Seen::new(capture);
    let mut events = Vec::with_capacity(8);
    let (content, failed) = match dialect {
        Dialect::OpenAi => openai::upstream::observe_body(answer, &mut seen, &mut events),
        Dialect::Anthropic => (anthropic::upstream::observe_body(answer, &mut seen, &mut events), None),
    };
    if let Some(error) = failed {
        return Err(error);
    }
    let frame = match (request.stream, dialect) {
        (false, _) => body.clone(),
        (true, Dialect::OpenAi) => openai::replay::stream(answer, !usage_injected && request.include_usage),
        (true, Dialect::Anthropic) => anthropic::replay::stream(answer),
    };
    // Before what it says, or an encoder would tell it twice.
    let begin = events.iter().take_while(|event| matches!(event, Event::Started { .. })).count();
    events.insert(begin, raw(&frame, content.max(1)));
    let reason = if seen.calls { FinishReason::ToolCalls } else { FinishReason::Stop };
    seen.finished(reason, None, &mut events);
    Ok(events)
}

/// Whether an object is an answer, by the member that holds what was said. What was counted was generated, in whatever shape it
/// comes; but of another shape no stream can be made.
fn is_answer(value: Raw<'_>, content: &str, stream: bool) -> bool {
    let content = value.get(content);
    if stream { content.is_some_and(Raw::is_list) } else { content.is_some() || value.get("usage").is_some() }
}

/// A stream that nobody asked for, read to its end. Its frames are not for the caller, who gets what they say.
fn observe_whole_stream(request: &Request, stream: &[u8]) -> Result<Vec<Event>, Error> {
    let mut observer = Observer::new(request, false, true);
    let mut parser = sse::Parser::new(stream.len());
    parser.push(stream);
    let mut events = Vec::new();
    while let Some(frame) = parser.next_frame().ok().flatten().or_else(|| parser.finish()) {
        observer.observe(&frame, &mut events)?;
    }
    observer.finish()?;
    events.retain(|event| !matches!(event, Event::Raw { .. }));
    Ok(events)
}

/// Why an answer ended; an empty text is no reason, nor is one that says null.
pub(super) fn reason(value: Option<Raw<'_>>) -> Option<Cow<'_, str>> {
    value.and_then(Raw::word).filter(|reason| reason != "null")
}

pub(super) fn raw(frame: &Bytes, content: usize) -> Event {
    Event::Raw { frame: frame.clone(), content }
}
