//! An answer as one `chat.completion` body.

use bytes::Bytes;
use mlx_manager_llm::{FinishReason, Usage};
use serde::Serialize;

use super::super::{Identity, fold::Folded, json};

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<WireUsage>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: WireMessage<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct WireMessage<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning_content: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireToolCall<'a>>,
}

#[derive(Serialize)]
struct WireToolCall<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// Token counts as OpenAI writes them; a count that is unknown is left out, or 0 where clients rely on it.
#[derive(Serialize)]
pub(super) struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
}

impl WireUsage {
    /// `None` when nothing is known.
    pub(super) fn new(usage: Usage) -> Option<Self> {
        if usage.input.is_none() && usage.output.is_none() {
            return None;
        }
        let (input, output) = (usage.input.unwrap_or(0), usage.output.unwrap_or(0));
        Some(Self {
            prompt_tokens: input,
            completion_tokens: output,
            total_tokens: input.saturating_add(output),
            prompt_tokens_details: usage.cache_read.map(|cached_tokens| PromptDetails { cached_tokens }),
            completion_tokens_details: usage.reasoning.map(|reasoning_tokens| CompletionDetails { reasoning_tokens }),
        })
    }
}

/// The name of a reason on the wire; what OpenAI has no word for is a plain stop.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::Other => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    }
}

/// Writes a finished answer.
pub(in super::super) fn encode(answer: &Folded, reason: FinishReason, identity: &Identity) -> Bytes {
    let tool_calls: Vec<_> = answer
        .tool_calls
        .iter()
        .map(|call| WireToolCall {
            id: &call.id,
            r#type: "function",
            function: Function { name: &call.name, arguments: &call.arguments },
        })
        .collect();
    let content = if answer.text.is_empty() && !tool_calls.is_empty() { None } else { Some(answer.text.as_str()) };
    let own_id = id(identity);
    json::bytes(&Completion {
        id: answer.id.as_deref().unwrap_or(&own_id),
        object: "chat.completion",
        created: identity.created.as_second(),
        model: answer.model.as_deref().unwrap_or(&identity.model),
        choices: [Choice {
            index: 0,
            message: WireMessage {
                role: "assistant",
                content,
                refusal: None,
                reasoning_content: &answer.reasoning,
                tool_calls,
            },
            logprobs: None,
            finish_reason: finish_reason(reason),
        }],
        usage: WireUsage::new(answer.usage),
    })
}

/// The id of an answer whose backend gave none.
pub(super) fn id(identity: &Identity) -> String {
    format!("chatcmpl-{}", identity.id)
}
