//! An answer as one message body.

use bytes::Bytes;
use mlx_manager_llm::{FinishReason, Usage};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::{Identity, fold::Folded, json};

#[derive(Serialize)]
pub(super) struct WireMessage<'a> {
    pub id: &'a str,
    pub r#type: &'static str,
    pub role: &'static str,
    pub model: &'a str,
    pub content: Vec<Block<'a>>,
    pub stop_reason: Option<&'static str>,
    pub stop_sequence: Option<&'a str>,
    pub usage: WireUsage,
}

/// A part of an answer.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    /// Clients expect a signature; only Anthropic can give one, and nobody checks an empty one but Anthropic.
    Thinking {
        thinking: &'a str,
        signature: &'static str,
    },
    Text {
        text: &'a str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: Value,
    },
}

/// Token counts as Anthropic writes them: `input_tokens` is what no cache took part in. Clients rely on both counts
/// being numbers, so unknown is 0 on this wire.
#[derive(Serialize)]
pub(super) struct WireUsage {
    input_tokens: u64,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: u64,
}

impl WireUsage {
    pub(super) fn new(usage: Usage) -> Self {
        let cached = usage.cache_read.unwrap_or(0).saturating_add(usage.cache_write.unwrap_or(0));
        Self {
            input_tokens: usage.input.unwrap_or(0).saturating_sub(cached),
            cache_creation_input_tokens: usage.cache_write,
            cache_read_input_tokens: usage.cache_read,
            output_tokens: usage.output.unwrap_or(0),
        }
    }
}

/// The name of a reason on the wire.
pub(super) fn stop_reason(reason: FinishReason, stop_sequence: Option<&str>) -> &'static str {
    match reason {
        FinishReason::Stop if stop_sequence.is_some() => "stop_sequence",
        FinishReason::Stop | FinishReason::Other => "end_turn",
        FinishReason::Length => "max_tokens",
        FinishReason::ToolCalls => "tool_use",
        FinishReason::ContentFilter => "refusal",
    }
}

/// Writes a finished answer.
pub(in super::super) fn encode(answer: &Folded, reason: FinishReason, identity: &Identity) -> Bytes {
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        content.push(Block::Thinking { thinking: &answer.reasoning, signature: "" });
    }
    if !answer.text.is_empty() {
        content.push(Block::Text { text: &answer.text });
    }
    for call in &answer.tool_calls {
        content.push(Block::ToolUse { id: &call.id, name: &call.name, input: input(&call.arguments) });
    }
    let own_id = id(identity);
    json::bytes(&WireMessage {
        id: answer.id.as_deref().unwrap_or(&own_id),
        r#type: "message",
        role: "assistant",
        model: answer.model.as_deref().unwrap_or(&identity.model),
        content,
        stop_reason: Some(stop_reason(reason, answer.stop_sequence.as_deref())),
        stop_sequence: answer.stop_sequence.as_deref(),
        usage: WireUsage::new(answer.usage),
    })
}

/// A call's input must be an object. What a model wrote badly, or was cut off in, is kept as text under the name that
/// Anthropic's documentation suggests for it, so that the caller can see it and the turn can be sent back.
fn input(arguments: &str) -> Value {
    if arguments.trim().is_empty() {
        return json!({});
    }
    match serde_json::from_str(arguments) {
        Ok(input @ Value::Object(_)) => input,
        _ => json!({ "INVALID_JSON": arguments }),
    }
}

/// The id of an answer whose backend gave none.
pub(super) fn id(identity: &Identity) -> String {
    format!("msg_{}", identity.id)
}
