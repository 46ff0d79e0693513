//! The provider's side: what its answer says. Nothing needs to be asked for: Anthropic's streams carry their usage.
//!
//! `message_delta.usage` is cumulative and repeats fields of `message_start`: per field the last value wins. Input is
//! reported in three parts (fresh, read from the cache, written to it); the neutral total is their sum.

use std::borrow::Cow;

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, Event, FinishReason, ToolCallDelta, Usage};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::{rubbish, sse::Frame, upstream_error};

/// Reads the frames of a streamed answer.
#[derive(Debug)]
pub(in super::super) struct Observer {
    capture: bool,
    usage: Counts,
    started: bool,
    finished: bool,
    complete: bool,
    /// Content blocks that are tool calls: block index by call index.
    calls: Vec<u64>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    message: Option<WireMessage<'a>>,
    index: Option<u64>,
    #[serde(borrow)]
    content_block: Option<Part<'a>>,
    #[serde(borrow)]
    delta: Option<Part<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireMessage<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<Vec<Part<'a>>>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    stop_sequence: Option<String>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

/// A content block, or a delta of one, or of the message.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
    #[serde(borrow)]
    partial_json: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    stop_sequence: Option<String>,
}

impl Part<'_> {
    fn has_content(&self) -> bool {
        let texts = [&self.text, &self.thinking, &self.partial_json];
        texts.into_iter().flatten().any(|text| !text.is_empty())
            || self.r#type.as_deref().is_some_and(|kind| kind.ends_with("tool_use") || kind.starts_with("redacted"))
    }
}

/// Counts as Anthropic reports them.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Counts {
    #[serde(default, deserialize_with = "count")]
    input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_read_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    output_tokens: Option<u64>,
}

/// A count that is no number is unknown: accounting must not break an answer that is otherwise whole.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(serde_json::Value::deserialize(deserializer)?.as_u64())
}

impl Counts {
    fn update(&mut self, newer: Self) {
        self.input_tokens = newer.input_tokens.or(self.input_tokens);
        self.cache_read_input_tokens = newer.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation_input_tokens = newer.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.output_tokens = newer.output_tokens.or(self.output_tokens);
    }

    fn neutral(self) -> Usage {
        let cached = [self.cache_read_input_tokens, self.cache_creation_input_tokens];
        let sum = |fresh: u64| cached.into_iter().flatten().fold(fresh, u64::saturating_add);
        Usage {
            input: self.input_tokens.map(sum),
            output: self.output_tokens,
            cache_read: self.cache_read_input_tokens,
            cache_write: self.cache_creation_input_tokens,
            reasoning: None,
            ..Usage::default()
        }
    }
}

impl Observer {
    pub(in super::super) fn new(capture: bool) -> Self {
        let (started, finished, complete) = (false, false, false);
        Self { capture, usage: Counts::default(), started, finished, complete, calls: Vec::new() }
    }

    /// Whether `message_stop` was seen.
    pub(in super::super) fn complete(&self) -> bool {
        self.complete
    }

    pub(in super::super) fn observe(&mut self, frame: &Frame) -> Result<Vec<Event>, Error> {
        let Some(data) = &frame.data else { return Ok(vec![raw(&frame.raw, false)]) };
        let payload: Payload<'_> = serde_json::from_slice(data).map_err(rubbish)?;
        let mut events = Vec::with_capacity(2);
        match &*payload.r#type {
            "error" => {
                let error = upstream_error::decode_frame(Dialect::Anthropic, data);
                return Err(error.unwrap_or_else(|| upstream_error::decode(Dialect::Anthropic, 500, data.clone())));
            }
            "message_start" => {
                if let Some(message) = &payload.message {
                    self.start(message, &mut events);
                }
                events.push(raw(&frame.raw, false));
            }
            "content_block_start" | "content_block_delta" => {
                let part = payload.content_block.as_ref().or(payload.delta.as_ref());
                events.push(raw(&frame.raw, part.is_some_and(Part::has_content)));
                if let Some(part) = part
                    && self.capture
                {
                    self.capture(payload.index.unwrap_or(0), part, &mut events);
                }
            }
            "message_delta" => {
                events.push(raw(&frame.raw, false));
                if let Some(usage) = payload.usage {
                    self.usage.update(read_usage(usage));
                    events.push(Event::Usage(self.usage.neutral()));
                    events.push(Event::ReportedUsage(usage.get().into()));
                }
                if let Some(delta) = payload.delta
                    && let Some(reason) = delta.stop_reason
                {
                    self.finish(&reason, delta.stop_sequence, &mut events);
                }
            }
            kind => {
                self.complete |= kind == "message_stop";
                events.push(raw(&frame.raw, false));
            }
        }
        Ok(events)
    }

    fn start(&mut self, message: &WireMessage<'_>, events: &mut Vec<Event>) {
        self.usage.update(message.usage.map(read_usage).unwrap_or_default());
        if !std::mem::replace(&mut self.started, true) {
            let text = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
            let usage = self.usage.neutral();
            events.push(Event::Started { id: text(&message.id), model: text(&message.model), usage });
            events.extend(message.usage.map(|usage| Event::ReportedUsage(usage.get().into())));
        }
    }

    fn finish(&mut self, reason: &str, stop_sequence: Option<String>, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.finished, true) {
            events.push(Event::Finished { reason: finish_reason(reason), stop_sequence });
        }
    }

    fn capture(&mut self, block: u64, part: &Part<'_>, events: &mut Vec<Event>) {
        let full = |text: &Option<Cow<'_, str>>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        events.extend(full(&part.thinking).map(Event::Reasoning));
        events.extend(full(&part.text).map(Event::Text));
        if part.r#type.as_deref() == Some("tool_use") {
            self.calls.push(block);
            events.push(Event::ToolCall(ToolCallDelta {
                index: self.calls.len() - 1,
                id: full(&part.id),
                name: full(&part.name),
                // In a stream the block begins with `{}` and the input follows in deltas.
                arguments: part
                    .input
                    .map(|input| input.get())
                    .filter(|text| *text != "{}")
                    .unwrap_or_default()
                    .to_owned(),
            }));
        }
        if let Some(arguments) = full(&part.partial_json)
            && let Some(index) = self.calls.iter().position(|call| *call == block)
        {
            events.push(Event::ToolCall(ToolCallDelta { index, arguments, ..ToolCallDelta::default() }));
        }
    }
}

/// Reads a whole body.
pub(in super::super) fn observe_body(body: &Bytes, capture: bool) -> Result<Vec<Event>, Error> {
    let message: WireMessage<'_> = serde_json::from_slice(body).map_err(rubbish)?;
    if message.content.is_none()
        && let Some(error) = upstream_error::decode_frame(Dialect::Anthropic, body)
    {
        return Err(error);
    }
    let mut observer = Observer::new(capture);
    let mut events = Vec::with_capacity(4);
    observer.start(&message, &mut events);
    events.push(raw(body, true));
    if capture {
        for (index, part) in (0..).zip(message.content.iter().flatten()) {
            observer.capture(index, part, &mut events);
        }
    }
    if message.usage.is_some() {
        events.push(Event::Usage(observer.usage.neutral()));
    }
    if let Some(reason) = &message.stop_reason {
        observer.finish(reason, message.stop_sequence, &mut events);
    }
    Ok(events)
}

fn raw(frame: &Bytes, content: impl Into<usize>) -> Event {
    Event::Raw { frame: frame.clone(), content: content.into() }
}

/// Usage that is no object counts nothing: accounting must not break an answer that is otherwise whole.
fn read_usage(usage: &RawValue) -> Counts {
    serde_json::from_str(usage.get()).unwrap_or_default()
}

fn finish_reason(reason: &str) -> FinishReason {
    match reason {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" => FinishReason::ToolCalls,
        "refusal" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}
