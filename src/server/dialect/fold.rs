//! The events of an answer folded into one: what both dialects need to write a body that isn't streamed.

use bytes::Bytes;

use crate::llm::{Event, FinishReason, ToolCall, ToolCallDelta, Usage};

/// The most tool calls an answer may have; an index beyond it is a defect of the backend, not a reason to allocate.
const MAX_TOOL_CALLS: usize = 1024;

/// Everything an answer has said so far.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// The body as the provider sent it, when there is one; then nothing else counts.
    pub raw: Option<Bytes>,
    pub id: Option<String>,
    pub model: Option<String>,
    pub text: String,
    pub reasoning: String,
    pub tool_calls: Vec<ToolCall>,
    pub usage: Usage,
    pub finish: Option<FinishReason>,
    pub stop_sequence: Option<String>,
    /// A backend sent what can't be folded; then there is no answer.
    pub torn: bool,
}

impl Folded {
    pub(super) fn push(&mut self, event: Event) {
        match event {
            Event::Started { id, model, usage } => {
                (self.id, self.model) = (id, model);
                self.usage.update(usage);
            }
            Event::Queued(_) => {}
            Event::Text(text) => self.text.push_str(&text),
            Event::Reasoning(text) => self.reasoning.push_str(&text),
            Event::ToolCall(delta) => self.push_tool_call(delta),
            Event::Usage(usage) => self.usage.update(usage),
            Event::Finished { reason, stop_sequence } => {
                self.finish = Some(reason);
                self.stop_sequence = stop_sequence;
            }
            Event::Raw { frame, .. } => self.raw = Some(frame),
        }
    }

    fn push_tool_call(&mut self, delta: ToolCallDelta) {
        if delta.index >= MAX_TOOL_CALLS {
            self.torn = true;
            return;
        }
        while self.tool_calls.len() <= delta.index {
            self.tool_calls.push(ToolCall { id: String::new(), name: String::new(), arguments: String::new() });
        }
        let call = &mut self.tool_calls[delta.index];
        if let Some(id) = delta.id {
            call.id = id;
        }
        if let Some(name) = delta.name {
            call.name = name;
        }
        call.arguments.push_str(&delta.arguments);
    }
}
