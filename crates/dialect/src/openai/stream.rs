//! An answer as a stream of `chat.completion.chunk`s.

use mlx_manager_llm::{Error, Event, FinishReason, ToolCallDelta, Usage};
use serde::Serialize;

use super::{
    super::{Identity, sse},
    error,
    response::{WireUsage, finish_reason, id},
};

/// Writes neutral events; raw frames never come here.
#[derive(Debug)]
pub(in super::super) struct Encoder {
    id: String,
    model: String,
    created: i64,
    include_usage: bool,
    usage: Usage,
    role_sent: bool,
    finished: bool,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    /// With `include_usage` every chunk has the field, null but in the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<WireUsage>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[WireToolCall<'a>; 1]>,
}

#[derive(Serialize)]
struct WireToolCall<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl Encoder {
    pub(in super::super) fn new(identity: Identity, include_usage: bool) -> Self {
        Self {
            id: id(&identity),
            created: identity.created.as_second(),
            model: identity.model,
            include_usage,
            usage: Usage::default(),
            role_sent: false,
            finished: false,
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
            Event::Text(text) => self.delta(Delta { content: Some(text), ..Delta::default() }, out),
            Event::Reasoning(text) => self.delta(Delta { reasoning_content: Some(text), ..Delta::default() }, out),
            Event::ToolCall(call) => {
                self.delta(Delta { tool_calls: Some([wire_tool_call(call)]), ..Delta::default() }, out);
            }
            Event::Finished { reason, .. } => self.end(*reason, out),
            Event::LateHeader(name, value) => sse::write_comment(out, &format!("{name}: {value}")),
            Event::ToolCallDropped(_) | Event::Queued(_) | Event::ReportedUsage(_) | Event::Raw { .. } => {}
        }
    }

    /// A comment, which clients pass over.
    pub(in super::super) fn keep_alive(out: &mut Vec<u8>) {
        sse::write_comment(out, "keep-alive");
    }

    /// The usage, if it was asked for, and the end; or an error when the answer has no end.
    pub(in super::super) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.finished {
            return self.error(&super::super::broken_off(), out);
        }
        if self.include_usage {
            self.chunk(&[], WireUsage::new(self.usage), out);
        }
        sse::write_text(out, None, b"[DONE]");
    }

    /// The error as a frame. OpenAI's own streams end after it without `[DONE]`, and clients raise at once.
    pub(in super::super) fn error(&self, failure: &Error, out: &mut Vec<u8>) {
        sse::write_text(out, None, &error::encode(failure));
    }

    fn delta(&mut self, delta: Delta<'_>, out: &mut Vec<u8>) {
        self.role(out);
        self.choice(delta, None, out);
    }

    /// The first chunk says who speaks; it goes out with the first content, so that frames of a provider, which bring
    /// their own, never meet a second one.
    fn role(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.role_sent, true) {
            return;
        }
        self.choice(Delta { role: Some("assistant"), content: Some(""), ..Delta::default() }, None, out);
    }

    fn end(&mut self, reason: FinishReason, out: &mut Vec<u8>) {
        self.role(out);
        self.finished = true;
        self.choice(Delta::default(), Some(finish_reason(reason)), out);
    }

    fn choice(&self, delta: Delta<'_>, finish_reason: Option<&'static str>, out: &mut Vec<u8>) {
        self.chunk(&[Choice { index: 0, delta, logprobs: None, finish_reason }], None, out);
    }

    fn chunk(&self, choices: &[Choice<'_>], usage: Option<WireUsage>, out: &mut Vec<u8>) {
        let chunk = Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage: self.include_usage.then_some(usage),
        };
        sse::write(out, None, &chunk);
    }
}

fn wire_tool_call(call: &ToolCallDelta) -> WireToolCall<'_> {
    WireToolCall {
        index: call.index,
        id: call.id.as_deref(),
        r#type: call.id.is_some().then_some("function"),
        function: Function { name: call.name.as_deref(), arguments: &call.arguments },
    }
}
