//! An answer as a stream of message events.

use mlx_manager_llm::{Error, Event, FinishReason, ToolCallDelta, Usage};
use serde_json::json;

use super::{
    super::{Identity, broken_off, sse},
    error,
    response::{Block, WireMessage, WireUsage, id, stop_reason},
};

/// Writes neutral events; raw frames never come here.
#[derive(Debug)]
pub(in super::super) struct Encoder {
    id: String,
    model: String,
    request_id: String,
    usage: Usage,
    started: bool,
    /// The kind of the open block.
    open: Option<Open>,
    /// Blocks begun so far.
    blocks: usize,
    /// The next tool call that has no block yet.
    next_call: usize,
    finish: Option<(FinishReason, Option<String>)>,
    /// A backend came back to a call whose block is closed, which this wire can't say.
    torn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Open {
    Thinking,
    Text,
    Call(usize),
}

impl Encoder {
    pub(in super::super) fn new(identity: Identity) -> Self {
        Self {
            id: id(&identity),
            request_id: identity.id,
            model: identity.model,
            usage: Usage::default(),
            started: false,
            open: None,
            blocks: 0,
            next_call: 0,
            finish: None,
            torn: false,
        }
    }

    pub(in super::super) fn encode(&mut self, event: &Event, out: &mut Vec<u8>) {
        match event {
            Event::Started { id, model, usage } => {
                if let Some(id) = id {
                    self.id.clone_from(id);
                }
                if let Some(model) = model {
                    self.model.clone_from(model);
                }
                self.usage.update(*usage);
            }
            Event::Usage(usage) => self.usage.update(*usage),
            Event::Text(text) => {
                self.open(Open::Text, &Block::Text { text: "" }, out);
                self.delta(&json!({"type": "text_delta", "text": text}), out);
            }
            Event::Reasoning(text) => {
                self.open(Open::Thinking, &Block::Thinking { thinking: "", signature: "" }, out);
                self.delta(&json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Event::ToolCall(call) => self.tool_call(call, out),
            Event::Finished { reason, stop_sequence } => {
                self.start(out);
                self.close(out);
                self.finish = Some((*reason, stop_sequence.clone()));
            }
            Event::LateHeader(name, value) => sse::write_comment(out, &format!("{name}: {value}")),
            Event::ToolCallDropped(_) | Event::Queued(_) | Event::ReportedUsage(_) | Event::Raw { .. } => {}
        }
    }

    /// The event that the API itself sends while nothing else comes.
    pub(in super::super) fn keep_alive(out: &mut Vec<u8>) {
        sse::write(out, Some("ping"), &json!({"type": "ping"}));
    }

    /// The reason, the final usage and the end; or an error when the answer has no end.
    pub(in super::super) fn finish(&mut self, out: &mut Vec<u8>) {
        let Some((reason, stop_sequence)) = self.finish.take().filter(|_| !self.torn) else {
            return self.error(&broken_off(), out);
        };
        let reason = stop_reason(reason, stop_sequence.as_deref());
        let delta = json!({"stop_reason": reason, "stop_sequence": stop_sequence});
        let end = json!({"type": "message_delta", "delta": delta, "usage": WireUsage::new(self.usage)});
        sse::write(out, Some("message_delta"), &end);
        sse::write(out, Some("message_stop"), &json!({"type": "message_stop"}));
    }

    pub(in super::super) fn error(&self, failure: &Error, out: &mut Vec<u8>) {
        sse::write_text(out, Some("error"), &error::encode(failure, &self.request_id));
    }

    fn tool_call(&mut self, call: &ToolCallDelta, out: &mut Vec<u8>) {
        if self.open != Some(Open::Call(call.index)) {
            if call.index < self.next_call {
                self.torn = true;
                return;
            }
            self.next_call = call.index + 1;
            let (id, name) = (call.id.as_deref().unwrap_or_default(), call.name.as_deref().unwrap_or_default());
            self.open(Open::Call(call.index), &Block::ToolUse { id, name, input: json!({}) }, out);
        }
        if !call.arguments.is_empty() {
            self.delta(&json!({"type": "input_json_delta", "partial_json": call.arguments}), out);
        }
    }

    /// `message_start` goes out with the first content, so that frames of a provider, which bring their own, never meet
    /// a second one. By then the input tokens are known.
    fn start(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let message = WireMessage {
            id: &self.id,
            r#type: "message",
            role: "assistant",
            model: &self.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: WireUsage::new(self.usage),
        };
        sse::write(out, Some("message_start"), &json!({"type": "message_start", "message": message}));
    }

    fn open(&mut self, kind: Open, block: &Block<'_>, out: &mut Vec<u8>) {
        if self.open == Some(kind) {
            return;
        }
        self.start(out);
        self.close(out);
        let begin = json!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        sse::write(out, Some("content_block_start"), &begin);
        self.open = Some(kind);
        self.blocks += 1;
    }

    fn delta(&self, delta: &serde_json::Value, out: &mut Vec<u8>) {
        let index = self.blocks.saturating_sub(1);
        let event = json!({"type": "content_block_delta", "index": index, "delta": delta});
        sse::write(out, Some("content_block_delta"), &event);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            let index = self.blocks.saturating_sub(1);
            sse::write(out, Some("content_block_stop"), &json!({"type": "content_block_stop", "index": index}));
        }
    }
}
