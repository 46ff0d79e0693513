//! The events of an answer folded into one: what both dialects need to write a body that isn't streamed.

use bytes::Bytes;
use mlx_manager_llm::{Event, FinishReason, ToolCall, Usage};

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
    /// The indexes of calls that were none. The others' stay as they are until all is told.
    dropped: Vec<usize>,
}

impl Folded {
    pub(super) fn push(&mut self, event: Event) {
        match event {
            Event::Started { id, model, usage } => {
                self.id = self.id.take().or(id);
                self.model = self.model.take().or(model);
                self.usage.update(usage);
            }
            Event::LateHeader(..) | Event::Queued(_) | Event::ReportedUsage(_) => {}
            Event::Text(text) => self.text.push_str(&text),
            Event::Reasoning(text) => self.reasoning.push_str(&text),
            Event::ToolCall(delta) => self.torn |= !delta.add_to(&mut self.tool_calls),
            Event::ToolCallDropped(index) => self.dropped.push(index),
            Event::Usage(usage) => self.usage.update(usage),
            Event::Finished { reason, stop_sequence } => {
                self.finish = Some(reason);
                let mut index = 0..;
                self.tool_calls.retain(|_| index.next().is_some_and(|index| !self.dropped.contains(&index)));
                self.stop_sequence = stop_sequence;
            }
            Event::Raw { frame, .. } => self.raw = Some(frame),
        }
    }
}
