//! The provider's side: the body to send, and what its answer says.
//!
//! Usage in a stream has to be asked for (`stream_options.include_usage`), so it always is. A caller who didn't ask
//! gets neither the chunk that holds only usage nor the null `usage` of the others: the former is dropped whole, the
//! latter cut out of the frame, whose other bytes stay as they came. Usage that a provider puts on a chunk with choices
//! is forwarded: such providers send it unasked.

use std::borrow::Cow;

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, Event, FinishReason, Request, ToolCallDelta, Usage};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};

use super::super::{rubbish, sse::Frame, upstream_error};

/// The field to replace beside the model, if any: `stream_options` with usage asked for.
pub(in super::super) fn stream_options(request: &Request) -> Option<String> {
    if !request.stream || request.include_usage {
        return None;
    }
    let mut options = request
        .body
        .get("stream_options")
        .and_then(|raw| serde_json::from_str::<serde_json::Map<_, _>>(raw).ok())
        .unwrap_or_default();
    options.insert("include_usage".to_owned(), Value::Bool(true));
    Some(Value::Object(options).to_string())
}

/// Reads the frames of a streamed answer.
#[derive(Debug)]
pub(in super::super) struct Observer {
    include_usage: bool,
    capture: bool,
    started: bool,
    finished: bool,
    complete: bool,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default, deserialize_with = "present")]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Tells null from absent, which an `Option` of its own doesn't.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u64>,
    /// `delta` in a stream, `message` in a body.
    #[serde(borrow, alias = "message")]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

/// Content stays raw JSON text: whether there is any is all that matters unless it is captured, and some providers write
/// it as a list of parts.
#[derive(Default, Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    audio: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

impl Delta<'_> {
    fn has_content(&self) -> bool {
        let parts = [
            self.content,
            self.reasoning_content,
            self.reasoning,
            self.refusal,
            self.audio,
            self.function_call,
            self.tool_calls,
        ];
        parts.into_iter().flatten().any(|part| !matches!(part.get(), "null" | "\"\"" | "[]" | "{}"))
    }
}

impl Observer {
    pub(in super::super) fn new(include_usage: bool, capture: bool) -> Self {
        Self { include_usage, capture, started: false, finished: false, complete: false }
    }

    /// Whether `[DONE]` was seen.
    pub(in super::super) fn complete(&self) -> bool {
        self.complete
    }

    pub(in super::super) fn observe(&mut self, frame: &Frame) -> Result<Vec<Event>, Error> {
        let Some(data) = &frame.data else { return Ok(vec![raw(&frame.raw, false)]) };
        if data.trim_ascii() == b"[DONE]" {
            self.complete = true;
            return Ok(vec![raw(&frame.raw, false)]);
        }
        let chunk: Chunk<'_> = serde_json::from_slice(data).map_err(rubbish)?;
        if chunk.error.is_some()
            && let Some(error) = upstream_error::decode_frame(Dialect::OpenAi, data)
        {
            return Err(error);
        }
        let mut events = Vec::with_capacity(2);
        let usage = chunk.usage.filter(|usage| usage.get() != "null");
        let choices = chunk.choices.as_deref().unwrap_or_default();
        if self.include_usage || usage.is_none() || !choices.is_empty() {
            self.start(&chunk, &mut events);
            let content = choices.iter().filter_map(|choice| choice.delta.as_ref()).any(Delta::has_content);
            let bytes = match chunk.usage {
                Some(null) if usage.is_none() && !self.include_usage => without_usage(frame, data, null),
                _ => frame.raw.clone(),
            };
            events.push(raw(&bytes, content));
        }
        self.read(choices, usage, &mut events);
        Ok(events)
    }

    fn start(&mut self, chunk: &Chunk<'_>, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.started, true) {
            let text = |text: &Option<Cow<'_, str>>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
            events.push(Event::Started { id: text(&chunk.id), model: text(&chunk.model), usage: Usage::default() });
        }
    }

    /// The first choice speaks for the answer; with `n` > 1 the others are forwarded and counted in the usage.
    fn read(&mut self, choices: &[Choice<'_>], usage: Option<&RawValue>, events: &mut Vec<Event>) {
        let first = choices.iter().find(|choice| choice.index.unwrap_or(0) == 0);
        if let Some(delta) = first.and_then(|choice| choice.delta.as_ref())
            && self.capture
            && !self.finished
        {
            capture(delta, events);
        }
        if let Some(usage) = usage {
            events.push(Event::Usage(read_usage(usage)));
            events.push(Event::ReportedUsage(usage.get().into()));
        }
        if let Some(reason) = first.and_then(|choice| choice.finish_reason.as_deref())
            && !std::mem::replace(&mut self.finished, true)
        {
            events.push(Event::Finished { reason: finish_reason(reason), stop_sequence: None });
        }
    }
}

/// Reads a whole body.
pub(in super::super) fn observe_body(body: &Bytes, capture: bool) -> Result<Vec<Event>, Error> {
    let chunk: Chunk<'_> = serde_json::from_slice(body).map_err(rubbish)?;
    if chunk.error.is_some()
        && let Some(error) = upstream_error::decode_frame(Dialect::OpenAi, body)
    {
        return Err(error);
    }
    let mut observer = Observer::new(true, capture);
    let mut events = Vec::with_capacity(4);
    observer.start(&chunk, &mut events);
    events.push(raw(body, true));
    let usage = chunk.usage.filter(|usage| usage.get() != "null");
    observer.read(chunk.choices.as_deref().unwrap_or_default(), usage, &mut events);
    Ok(events)
}

fn raw(frame: &Bytes, content: impl Into<usize>) -> Event {
    Event::Raw { frame: frame.clone(), content: content.into() }
}

/// The frame without its null `usage` field and one comma beside it. A field that is written in a way this doesn't
/// know stays: a null too many harms nobody.
fn without_usage(frame: &Frame, data: &Bytes, null: &RawValue) -> Bytes {
    let raw = &frame.raw;
    let offset = |part: *const u8| (part as usize).checked_sub(raw.as_ptr() as usize).filter(|at| *at < raw.len());
    // Data of several lines was joined elsewhere, and its places are no places of the frame.
    let (Some(_), Some(value)) = (offset(data.as_ptr()), offset(null.get().as_ptr())) else { return raw.clone() };
    let end = value + null.get().len();
    let before = raw[..value].trim_ascii_end().strip_suffix(b":").map(<[u8]>::trim_ascii_end);
    let Some(before) = before.and_then(|before| before.strip_suffix(b"\"usage\"")).map(<[u8]>::trim_ascii_end) else {
        return raw.clone();
    };
    if let Some(before) = before.strip_suffix(b",") {
        return [before, &raw[end..]].concat().into();
    }
    let after = raw[end..].trim_ascii_start();
    [before, after.strip_prefix(b",").unwrap_or(after)].concat().into()
}

fn read_usage(usage: &RawValue) -> Usage {
    // A count that is no number is unknown: accounting must not break an answer that is otherwise whole.
    let usage: Value = serde_json::from_str(usage.get()).unwrap_or_default();
    let count = |path: &str| usage.pointer(path).and_then(Value::as_u64);
    Usage {
        input: count("/prompt_tokens"),
        output: count("/completion_tokens"),
        cache_read: count("/prompt_tokens_details/cached_tokens"),
        cache_write: count("/prompt_tokens_details/cache_write_tokens"),
        reasoning: count("/completion_tokens_details/reasoning_tokens"),
        ..Usage::default()
    }
}

fn finish_reason(reason: &str) -> FinishReason {
    match reason {
        "stop" => FinishReason::Stop,
        "length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}

fn capture(delta: &Delta<'_>, events: &mut Vec<Event>) {
    #[derive(Deserialize)]
    struct Call {
        index: Option<usize>,
        id: Option<String>,
        function: Option<Function>,
    }
    #[derive(Deserialize)]
    struct Function {
        name: Option<String>,
        arguments: Option<String>,
    }
    let text = |raw: Option<&RawValue>| {
        let text: Option<String> = raw.and_then(|raw| serde_json::from_str(raw.get()).ok());
        text.filter(|text| !text.is_empty())
    };
    events.extend(text(delta.reasoning_content).or_else(|| text(delta.reasoning)).map(Event::Reasoning));
    events.extend(text(delta.content).or_else(|| text(delta.refusal)).map(Event::Text));
    let calls: Vec<Call> = delta.tool_calls.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    for (position, call) in calls.into_iter().enumerate() {
        let (name, arguments) = call.function.map_or((None, None), |function| (function.name, function.arguments));
        events.push(Event::ToolCall(ToolCallDelta {
            index: call.index.unwrap_or(position),
            id: call.id,
            name,
            arguments: arguments.unwrap_or_default(),
        }));
    }
}
