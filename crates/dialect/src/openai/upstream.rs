//! The provider's side: the body to send, and what its answer says.
//!
//! Usage in a stream has to be asked for (`stream_options.include_usage`), so it is. A caller who didn't ask gets neither the
//! chunk that holds only usage nor the null `usage` of the others: the former is dropped whole, the latter cut out of the
//! frame, whose other bytes stay as they came. Usage that a provider puts on a chunk with choices is forwarded: such providers
//! send it unasked.

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, ErrorKind, Event, FinishReason, Request, ServiceTier, ToolCallDelta, Usage};

use super::{
    super::{
        observer::{Seen, raw, reason},
        raw::Raw,
        sse::Frame,
        upstream_error,
    },
    replay::Object,
};

/// The caller's `stream_options`, with usage asked for; `None` where they are such that only the provider can say what is wrong
/// with them.
pub(in super::super) fn stream_options(request: &Request) -> Option<String> {
    let given = request.body.get("stream_options").and_then(Raw::parse).filter(|given| !given.is_null());
    let mut options = Object::default();
    for (name, value) in given.into_iter().flat_map(Raw::members).filter(|(name, _)| name != "include_usage") {
        options.add(&name, value.json());
    }
    options.add("include_usage", "true");
    given.is_none_or(Raw::is_object).then(|| options.finish())
}

/// Reads the frames of a streamed answer.
#[derive(Debug)]
pub(in super::super) struct Observer {
    usage_injected: bool,
}

/// The members of a chunk, or of a whole body, that mean something.
#[derive(Default)]
struct Chunk<'a> {
    id: Option<Raw<'a>>,
    model: Option<Raw<'a>>,
    choices: Vec<Choice<'a>>,
    /// Null or not: a null that we caused has to go.
    usage: Option<Raw<'a>>,
    tier: Option<Raw<'a>>,
    /// Groq's own place for the usage.
    x_groq: Option<Raw<'a>>,
    /// Whether anything else is there than what each chunk has.
    has_more: bool,
}

#[derive(Default)]
struct Choice<'a> {
    index: Option<u64>,
    /// `delta` in a stream.
    delta: Option<Raw<'a>>,
    /// What was said: the delta, or the `message` of a body. Some providers send both, one of them empty.
    said: Option<Raw<'a>>,
    /// How much content it holds, in bytes as they are written.
    weight: usize,
    /// Of the older completions.
    text: Option<Raw<'a>>,
    finish_reason: Option<Raw<'a>>,
    /// Moonshot's own place for the usage.
    usage: Option<Raw<'a>>,
    error: Option<Raw<'a>>,
}

impl<'a> Chunk<'a> {
    fn read(object: Raw<'a>) -> Self {
        let mut chunk = Self::default();
        for (key, value) in object.members() {
            match &*key {
                "id" => chunk.id = Some(value),
                "model" => chunk.model = Some(value),
                "choices" => chunk.choices = value.items().map(Choice::read).collect(),
                "usage" => chunk.usage = Some(value),
                "service_tier" => chunk.tier = Some(value),
                "x_groq" => chunk.x_groq = Some(value),
                "object" | "created" | "system_fingerprint" | "provider" | "obfuscation" => {}
                _ => chunk.has_more = true,
            }
        }
        chunk
    }

    /// Wherever providers put it.
    fn usage(&self) -> Option<Raw<'a>> {
        let places = [self.usage, self.x_groq.and_then(|groq| groq.get("usage"))];
        let of_choices = self.choices.iter().map(|choice| choice.usage.or_else(|| choice.delta?.get("usage")));
        places.into_iter().chain(of_choices).flatten().find(|usage| usage.is_object() && !usage.is_blank())
    }

    /// The first choice speaks for the answer; with `n` > 1 the others are forwarded and counted in the usage.
    fn first(&self) -> Option<&Choice<'a>> {
        self.choices.iter().find(|choice| choice.index.unwrap_or(0) == 0)
    }

    fn weight(&self) -> usize {
        self.choices.iter().map(|choice| choice.weight).sum()
    }
}

impl<'a> Choice<'a> {
    fn read(object: Raw<'a>) -> Self {
        let mut choice = Self::default();
        let mut message = None;
        for (key, value) in object.members() {
            match &*key {
                "index" => choice.index = value.count(),
                "delta" => choice.delta = Some(value),
                "message" => message = Some(value),
                "text" => choice.text = Some(value),
                "finish_reason" => choice.finish_reason = Some(value),
                "usage" => choice.usage = Some(value),
                "error" => choice.error = Some(value).filter(|error| !error.is_false()),
                _ => {}
            }
        }
        for said in [choice.delta, message].into_iter().flatten() {
            let weight = weight(said);
            if choice.said.is_none() || choice.weight == 0 && weight > 0 {
                (choice.said, choice.weight) = (Some(said), weight);
            }
        }
        choice.weight += choice.text.map_or(0, length);
        choice
    }
}

/// How much content a delta or message holds, in bytes as they are written.
fn weight(said: Raw<'_>) -> usize {
    let of = |(key, value): (std::borrow::Cow<'_, str>, Raw<'_>)| match &*key {
        "tool_calls" => value.items().map(|call| call.get("function").map_or(1, function)).sum(),
        "function_call" => function(value),
        "content" | "reasoning_content" | "reasoning" | "reasoning_details" | "refusal" | "audio" | "images" => {
            length(value)
        }
        _ => 0,
    };
    said.members().map(of).sum()
}

fn function(call: Raw<'_>) -> usize {
    // A piece of a call is content though nothing may be in it yet.
    1 + call.members().map(|(_, value)| length(value)).sum::<usize>()
}

fn length(value: Raw<'_>) -> usize {
    match value.json().len() {
        _ if value.is_blank() => 0,
        quoted if value.is_text() => quoted - 2,
        bytes => bytes,
    }
}

impl Observer {
    pub(in super::super) fn new(usage_injected: bool) -> Self {
        Self { usage_injected }
    }

    /// Reads one chunk, which is `object` in the `data` of the frame.
    pub(in super::super) fn observe(
        &mut self,
        frame: &Frame,
        data: &Bytes,
        object: Raw<'_>,
        seen: &mut Seen,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let chunk = Chunk::read(object);
        let has_usage = chunk.usage.is_some_and(|usage| !usage.is_null());
        let nothing_else = has_usage && chunk.choices.is_empty() && !chunk.has_more;
        if !(self.usage_injected && nothing_else) {
            seen.started(chunk.id, chunk.model, Usage::default(), events);
            let bytes = match chunk.usage {
                Some(null) if null.is_null() && self.usage_injected => without_usage(frame, data, null),
                _ => frame.raw.clone(),
            };
            events.push(raw(&bytes, chunk.weight()));
        }
        read(&chunk, seen, events).map_or(Ok(()), Err)
    }
}

/// What a chunk says; an error where it says that the model failed.
fn read(chunk: &Chunk<'_>, seen: &mut Seen, events: &mut Vec<Event>) -> Option<Error> {
    let first = chunk.first();
    if let Some(said) = first.and_then(|choice| choice.said) {
        seen.calls |= said.pick(["tool_calls", "function_call"]).into_iter().flatten().any(|calls| !calls.is_blank());
        if seen.captures() {
            capture(said, events);
        }
    }
    if let Some(text) = first.and_then(|choice| choice.text?.word()).filter(|_| seen.captures()) {
        events.push(Event::Text(text.into_owned()));
    }
    let usage = chunk.usage();
    let tier = chunk.tier.and_then(Raw::text).and_then(|tier| service_tier(&tier));
    if usage.is_some() || tier.is_some() {
        events.push(Event::Usage(Usage { tier, ..usage.map(read_usage).unwrap_or_default() }));
    }
    events.extend(usage.map(|usage| Event::ReportedUsage(usage.json().into())));
    if let Some(error) = chunk.choices.iter().find_map(|choice| choice.error) {
        // As it would stand had the provider told it of the whole answer.
        let body = format!("{{\"error\":{}}}", error.json());
        return Some(upstream_error::decode(Dialect::OpenAi, None, body.into()));
    }
    let reason = reason(first.and_then(|choice| choice.finish_reason))?;
    if reason == "error" {
        let message = "the provider ended its answer with the finish_reason \"error\"";
        return Some(Error::new(ErrorKind::Upstream, message));
    }
    seen.finished(finish_reason(&reason), None, events);
    None
}

/// Reads a whole body: how much content it holds, and the error that it may be.
pub(in super::super) fn observe_body(
    body: Raw<'_>,
    seen: &mut Seen,
    events: &mut Vec<Event>,
) -> (usize, Option<Error>) {
    let chunk = Chunk::read(body);
    seen.started(chunk.id, chunk.model, Usage::default(), events);
    let failed = read(&chunk, seen, events);
    (chunk.weight(), failed)
}

/// The frame without its null `usage` field and one comma beside it. A field that is written in a way this doesn't
/// know stays: a null too many harms nobody.
fn without_usage(frame: &Frame, data: &Bytes, null: Raw<'_>) -> Bytes {
    let raw = &frame.raw;
    let offset = |part: *const u8| (part as usize).checked_sub(raw.as_ptr() as usize).filter(|at| *at < raw.len());
    // Data of several lines was joined elsewhere, and its places are no places of the frame.
    let (Some(_), Some(value)) = (offset(data.as_ptr()), offset(null.json().as_ptr())) else { return raw.clone() };
    let end = value + null.json().len();
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

fn read_usage(usage: Raw<'_>) -> Usage {
    fn of<'a>(details: Option<Raw<'a>>, name: &str) -> Option<Raw<'a>> {
        details?.get(name)
    }
    let [prompt, input, completion, output, total] =
        usage.pick(["prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens"]);
    let [prompt_details, input_details, completion_details, output_details, server_tools] = usage.pick([
        "prompt_tokens_details",
        "input_tokens_details",
        "completion_tokens_details",
        "output_tokens_details",
        "server_tool_use",
    ]);
    let [hit, cached, written, thought, searches] = usage.pick([
        "prompt_cache_hit_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "num_search_queries",
    ]);
    // A count that is no number is unknown: accounting must not break an answer that is otherwise whole.
    let any = |places: &[Option<Raw<'_>>]| places.iter().flatten().find_map(|count| count.count());
    let input = any(&[prompt, input]);
    let reasoning = any(&[of(completion_details, "reasoning_tokens"), of(output_details, "reasoning_tokens"), thought]);
    let audio = |details| of(details, "audio_tokens").and_then(Raw::count);
    Usage {
        input,
        output: any(&[completion, output]).map(|output| with_reasoning(input, output, reasoning, any(&[total]))),
        cache_read: any(&[of(prompt_details, "cached_tokens"), of(input_details, "cached_tokens"), hit, cached]),
        cache_write: any(&[of(prompt_details, "cache_write_tokens"), written]),
        reasoning,
        audio: match (audio(prompt_details), audio(completion_details)) {
            (None, None) => None,
            (heard, said) => Some(heard.unwrap_or(0).saturating_add(said.unwrap_or(0))),
        },
        web_searches: any(&[searches, of(server_tools, "web_search_requests")]),
        ..Usage::default()
    }
}

/// xAI and Google count reasoning beside the completion; only the total tells.
fn with_reasoning(input: Option<u64>, output: u64, reasoning: Option<u64>, total: Option<u64>) -> u64 {
    let whole = reasoning.filter(|reasoning| *reasoning > 0).and_then(|reasoning| output.checked_add(reasoning));
    let beside =
        input.zip(whole).zip(total).filter(|((input, whole), total)| input.checked_add(*whole) == Some(*total));
    beside.map_or(output, |((_, whole), _)| whole)
}

fn service_tier(tier: &str) -> Option<ServiceTier> {
    Some(match tier {
        // What was asked for, and no tier yet.
        "" | "auto" => return None,
        "default" | "standard" | "on_demand" => ServiceTier::Standard,
        "flex" => ServiceTier::Flex,
        "priority" => ServiceTier::Priority,
        "fast" => ServiceTier::Fast,
        "batch" => ServiceTier::Batch,
        _ => ServiceTier::Other,
    })
}

fn finish_reason(reason: &str) -> FinishReason {
    match reason {
        "stop" | "eos" | "end_turn" | "stop_sequence" => FinishReason::Stop,
        "length" | "max_tokens" => FinishReason::Length,
        "tool_calls" | "function_call" | "tool_use" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}

fn capture(said: Raw<'_>, events: &mut Vec<Event>) {
    let member = |name: &str| said.get(name).and_then(|value| text_of(value, "text"));
    let content = said.get("content");
    // Mistral writes thoughts as parts of the content.
    let thoughts = || content.filter(|content| content.is_list()).and_then(|content| text_of(content, "thinking"));
    let reasoning = member("reasoning_content").or_else(|| member("reasoning")).or_else(thoughts);
    events.extend(reasoning.map(Event::Reasoning));
    events.extend(member("content").or_else(|| member("refusal")).map(Event::Text));
    for (position, call) in said.get("tool_calls").into_iter().flat_map(Raw::items).enumerate() {
        let function = call.get("function");
        let word = |value: Option<Raw<'_>>| value.and_then(Raw::text).map(|text| text.into_owned());
        let arguments = function.and_then(|function| function.get("arguments"));
        events.push(Event::ToolCall(ToolCallDelta {
            index: call.get("index").and_then(Raw::count).map_or(position, |index| index as usize),
            id: word(call.get("id")),
            name: word(function.and_then(|function| function.get("name"))),
            // Some write them as an object, which is what their text would say.
            arguments: word(arguments).or_else(|| Some(arguments?.json().to_owned())).unwrap_or_default(),
        }));
    }
}

/// A text, or those of the parts that have one by this name, joined. A thought is a list of parts of its own.
fn text_of(value: Raw<'_>, name: &str) -> Option<String> {
    let text = match value.text() {
        Some(text) => text.into_owned(),
        None => {
            let named = value.items().filter_map(|part| part.get(name));
            let inner =
                named.flat_map(|part| std::iter::once(part).chain(part.items().filter_map(|part| part.get("text"))));
            inner.filter_map(Raw::text).collect()
        }
    };
    Some(text).filter(|text| !text.is_empty())
}
