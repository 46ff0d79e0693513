//! The provider's side: what its answer says. Nothing needs to be asked for: Anthropic's streams carry their usage.
//!
//! `message_delta.usage` is cumulative and repeats fields of `message_start`: per field the largest value counts. Input is
//! reported in three parts (fresh, read from the cache, written to it); the neutral total is their sum.

use std::borrow::Cow;

use mlx_manager_llm::{Event, FinishReason, ServiceTier, ToolCallDelta, Usage};

use super::super::{
    observer::{Seen, raw, reason},
    raw::Raw,
    sse::Frame,
};

/// Reads the frames of a streamed answer.
#[derive(Debug, Default)]
pub(in super::super) struct Observer {
    usage: Counts,
    blocks: Blocks,
}

/// Content blocks that are tool calls: block index by call index.
#[derive(Debug, Default)]
struct Blocks(Vec<u64>);

/// Counts as Anthropic reports them, input in parts.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    fresh: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    /// All else as it is.
    rest: Usage,
}

impl Counts {
    fn update(&mut self, usage: Raw<'_>) {
        let count = |path: &[&str]| {
            let value = path.iter().try_fold(usage, |value, name| value.get(name))?;
            value.count()
        };
        let lifetime = |name: &str| count(&["cache_creation", name]);
        let (minutes, hour) = (lifetime("ephemeral_5m_input_tokens"), lifetime("ephemeral_1h_input_tokens"));
        let written = minutes.or(hour).map(|_| minutes.unwrap_or(0).saturating_add(hour.unwrap_or(0)));
        self.fresh = count(&["input_tokens"]).max(self.fresh);
        self.cache_read = count(&["cache_read_input_tokens"]).max(self.cache_read);
        self.cache_write = count(&["cache_creation_input_tokens"]).or(written).max(self.cache_write);
        self.rest.update(Usage {
            output: count(&["output_tokens"]),
            reasoning: count(&["output_tokens_details", "thinking_tokens"]),
            cache_write_1h: hour,
            web_searches: count(&["server_tool_use", "web_search_requests"]),
            tier: tier(usage),
            ..Usage::default()
        });
    }

    fn neutral(self) -> Usage {
        let sum =
            |fresh: u64| [self.cache_read, self.cache_write].into_iter().flatten().fold(fresh, u64::saturating_add);
        Usage { input: self.fresh.map(sum), cache_read: self.cache_read, cache_write: self.cache_write, ..self.rest }
    }
}

/// What makes the prices of a request others than the listed ones.
fn tier(usage: Raw<'_>) -> Option<ServiceTier> {
    let text = |name: &str| usage.get(name).and_then(Raw::word);
    if text("speed").is_some_and(|speed| speed == "fast") {
        return Some(ServiceTier::Fast);
    }
    // To have it computed in one country costs more, by a factor that no list has.
    if text("inference_geo").is_some_and(|place| !matches!(&*place, "global" | "not_available")) {
        return Some(ServiceTier::Other);
    }
    Some(match &*text("service_tier")? {
        "standard" => ServiceTier::Standard,
        "priority" => ServiceTier::Priority,
        "batch" => ServiceTier::Batch,
        _ => ServiceTier::Other,
    })
}

impl Observer {
    /// Reads one event of this kind.
    pub(in super::super) fn observe(
        &mut self,
        frame: &Frame,
        kind: &str,
        event: Raw<'_>,
        seen: &mut Seen,
        events: &mut Vec<Event>,
    ) {
        match kind {
            "message_start" => {
                let message = event.get("message").unwrap_or(event);
                self.start(message, seen, events);
                events.push(raw(&frame.raw, 0));
            }
            "content_block_start" | "content_block_delta" => {
                let part = event.get("content_block").or_else(|| event.get("delta"));
                events.push(raw(&frame.raw, part.map_or(0, weight)));
                if let Some(part) = part {
                    self.blocks.read(event.get("index").and_then(Raw::count).unwrap_or(0), part, seen, events);
                }
            }
            "message_delta" => {
                events.push(raw(&frame.raw, 0));
                let delta = event.get("delta").unwrap_or(event);
                if let Some(usage) = event.get("usage").or_else(|| delta.get("usage")) {
                    self.count(usage, events);
                }
                finish(delta, seen, events);
            }
            _ => events.push(raw(&frame.raw, 0)),
        }
    }

    /// Takes a report of the usage.
    pub(in super::super) fn count(&mut self, usage: Raw<'_>, events: &mut Vec<Event>) {
        self.usage.update(usage);
        events.push(Event::Usage(self.usage.neutral()));
        events.push(Event::ReportedUsage(usage.json().into()));
    }

    fn start(&mut self, message: Raw<'_>, seen: &mut Seen, events: &mut Vec<Event>) {
        let usage = message.get("usage");
        if let Some(usage) = usage {
            self.usage.update(usage);
        }
        seen.started(message.get("id"), message.get("model"), self.usage.neutral(), events);
        events.extend(usage.map(|usage| Event::ReportedUsage(usage.json().into())));
    }
}

/// Reads a whole body; how much content it holds.
pub(in super::super) fn observe_body(message: Raw<'_>, seen: &mut Seen, events: &mut Vec<Event>) -> usize {
    let mut observer = Observer::default();
    observer.start(message, seen, events);
    let mut content = 0;
    for (index, part) in (0..).zip(message.get("content").into_iter().flat_map(Raw::items)) {
        content += weight(part);
        observer.blocks.read(index, part, seen, events);
    }
    if message.get("usage").is_some() {
        events.push(Event::Usage(observer.usage.neutral()));
    }
    finish(message, seen, events);
    content
}

fn finish(of: Raw<'_>, seen: &mut Seen, events: &mut Vec<Event>) {
    if let Some(reason) = reason(of.get("stop_reason")) {
        let stop_sequence = of.get("stop_sequence").and_then(Raw::text).map(Cow::into_owned);
        seen.finished(finish_reason(&reason), stop_sequence, events);
    }
}

/// How much content a block, or a piece of one, holds, in bytes as they are written.
fn weight(part: Raw<'_>) -> usize {
    let length = |name: &str| part.get(name).filter(|value| !value.is_blank()).map_or(0, |value| value.json().len());
    let texts: usize = ["text", "thinking", "partial_json", "input"].iter().map(|name| length(name)).sum();
    let kind = part.get("type").and_then(Raw::word).unwrap_or_default();
    // Their beginning is content, though nothing may be in it yet.
    texts + usize::from(kind.ends_with("tool_use") || kind.starts_with("redacted"))
}

impl Blocks {
    fn read(&mut self, block: u64, part: Raw<'_>, seen: &mut Seen, events: &mut Vec<Event>) {
        let is_call = part.get("type").and_then(Raw::text).is_some_and(|kind| kind == "tool_use");
        seen.calls |= is_call;
        if !seen.capture {
            return;
        }
        let word = |name: &str| part.get(name).and_then(Raw::word).map(Cow::into_owned);
        events.extend(word("thinking").map(Event::Reasoning));
        events.extend(word("text").map(Event::Text));
        if is_call {
            self.0.push(block);
            events.push(Event::ToolCall(ToolCallDelta {
                index: self.0.len() - 1,
                id: word("id"),
                name: word("name"),
                // In a stream the block begins with `{}` and the input follows in deltas.
                arguments: part.get("input").filter(|input| !input.is_blank()).map_or("", Raw::json).to_owned(),
            }));
        }
        if let Some(arguments) = word("partial_json")
            && let Some(index) = self.0.iter().position(|call| *call == block)
        {
            events.push(Event::ToolCall(ToolCallDelta { index, arguments, ..ToolCallDelta::default() }));
        }
    }
}

fn finish_reason(reason: &str) -> FinishReason {
    match reason {
        "end_turn" | "stop_sequence" | "stop" => FinishReason::Stop,
        "max_tokens" | "model_context_window_exceeded" | "length" => FinishReason::Length,
        "tool_use" => FinishReason::ToolCalls,
        "refusal" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}
