//! What a backend answers, piece by piece.

use bytes::Bytes;
use strum::IntoStaticStr;

use super::ToolCall;

/// One step of an answer. In a stream of events that is well-formed nothing follows `Finished` but `Usage`, `ReportedUsage`
/// and `Raw`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The answer begins. Carries the input tokens where they are known, so that a stream cut short still has a count. What a
    /// provider tells of itself later comes in another one.
    Started {
        /// The provider's id of the answer, if it gave one.
        id: Option<String>,
        /// The model that answers, as the provider names it.
        model: Option<String>,
        /// What is known of the usage so far.
        usage: Usage,
    },
    /// Time the request waited for the engine before its prompt was computed.
    Queued(std::time::Duration),
    /// What would stand in a header, had it been known when the headers went out: name and value. In a stream it is a comment,
    /// which clients pass over.
    LateHeader(&'static str, String),
    /// Text of the answer.
    Text(String),
    /// Text of the reasoning before the answer.
    Reasoning(String),
    /// A tool call, in pieces.
    ToolCall(ToolCallDelta),
    /// The tool call of this index, told in part, is none: what the model wrote follows as text. A stream that showed the
    /// pieces can't take them back; everyone else forgets the call.
    ToolCallDropped(usize),
    /// Cumulative usage; per field the largest value that came wins.
    Usage(Usage),
    /// What a provider reports as usage, as the JSON text it wrote; a later report takes the place of the fields it has.
    /// The neutral counts come beside it, and callers get it in a raw frame: this one is for telemetry.
    ReportedUsage(Box<str>),
    /// The model is done.
    Finished {
        /// Why it stopped.
        reason: FinishReason,
        /// The stop sequence that matched, if one did.
        stop_sequence: Option<String>,
    },
    /// A frame (streaming) or the whole body (not streaming) as a provider of the caller's own dialect sent it. The
    /// neutral events around it say what it means; the caller gets the bytes.
    Raw {
        /// Bytes to forward unchanged.
        frame: Bytes,
        /// How many bytes of generated content it holds, as they are written; the first frame that holds any ends the time
        /// to first token.
        content: usize,
    },
}

/// A piece of a tool call. The first piece of an index carries `id` and `name`; later ones only `arguments`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolCallDelta {
    /// Position among the calls of this answer, from 0.
    pub index: usize,
    /// The call's id, in its first piece.
    pub id: Option<String>,
    /// The function's name, in its first piece.
    pub name: Option<String>,
    /// More of the arguments' JSON text.
    pub arguments: String,
}

/// The most tool calls an answer may have; an index beyond it is a defect of the backend, not a reason to allocate.
const MAX_TOOL_CALLS: usize = 1024;

impl ToolCallDelta {
    /// Adds this piece to the calls gathered so far. `false`: its index is out of bounds, and nothing was added.
    pub fn add_to(&self, calls: &mut Vec<ToolCall>) -> bool {
        if self.index >= MAX_TOOL_CALLS {
            return false;
        }
        while calls.len() <= self.index {
            calls.push(ToolCall { id: String::new(), name: String::new(), arguments: String::new() });
        }
        let call = &mut calls[self.index];
        if let Some(id) = &self.id {
            call.id.clone_from(id);
        }
        if let Some(name) = &self.name {
            call.name.clone_from(name);
        }
        call.arguments.push_str(&self.arguments);
        true
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum FinishReason {
    /// The model was done, or a stop sequence matched.
    Stop,
    /// The token limit was reached.
    Length,
    /// The model wants tools called.
    ToolCalls,
    /// The provider withheld the answer.
    ContentFilter,
    /// A reason that this vocabulary has no word for.
    Other,
}

impl FinishReason {
    /// The name in `gen_ai.response.finish_reasons`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Token counts. Input and output are totals: cache tokens are inside `input`, reasoning is inside `output`.
/// `None` means unknown, which is not 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All tokens of the prompt.
    pub input: Option<u64>,
    /// All tokens generated.
    pub output: Option<u64>,
    /// Prompt tokens read from a cache.
    pub cache_read: Option<u64>,
    /// Prompt tokens written to a cache.
    pub cache_write: Option<u64>,
    /// Generated tokens that were reasoning.
    pub reasoning: Option<u64>,
    /// Those of `cache_write` that stay for an hour, which costs more.
    pub cache_write_1h: Option<u64>,
    /// Tokens of either side that are sound, which have prices of their own.
    pub audio: Option<u64>,
    /// Searches of the web that the provider made for the answer, and bills.
    pub web_searches: Option<u64>,
    /// The tier that the provider served the request at.
    pub tier: Option<ServiceTier>,
}

impl Usage {
    /// Takes what `newer` knows: usage is cumulative, so nothing is ever added up, and a count that shrinks is one that its
    /// report left out.
    pub fn update(&mut self, newer: Self) {
        self.input = newer.input.max(self.input);
        self.output = newer.output.max(self.output);
        self.cache_read = newer.cache_read.max(self.cache_read);
        self.cache_write = newer.cache_write.max(self.cache_write);
        self.reasoning = newer.reasoning.max(self.reasoning);
        self.cache_write_1h = newer.cache_write_1h.max(self.cache_write_1h);
        self.audio = newer.audio.max(self.audio);
        self.web_searches = newer.web_searches.max(self.web_searches);
        self.tier = newer.tier.or(self.tier);
    }
}

/// The tier at which a provider served a request, which has prices of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ServiceTier {
    /// The usual one: OpenAI's `default`, Anthropic's `standard`.
    Standard,
    /// Later for less.
    Flex,
    /// Sooner for more.
    Priority,
    /// Sooner still, at Anthropic and OpenAI.
    Fast,
    /// As part of a batch.
    Batch,
    /// One that this vocabulary has no word for.
    Other,
}

impl ServiceTier {
    /// The name in telemetry.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
