//! What telemetry may capture of a request: the caller's own words in parts that no dialect's field names are left in.

use serde_json::{Map, Value};

use super::Request;

/// How a request is read for telemetry. The names of a body's fields are the dialects' business, so theirs is the code;
/// it runs only where content is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// The fields of the body, as they came but for the bytes of images, sounds and files.
    pub body: fn(&Request) -> Map<String, Value>,
    /// The conversation within the body.
    pub conversation: fn(&Request) -> Conversation,
}

/// A conversation as its caller wrote it. Nobody has checked it, so every [`Value`] within may be any JSON, and is
/// `Null` where the caller wrote nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages in order.
    pub messages: Vec<CapturedMessage>,
    /// The instructions, where the dialect keeps them apart from the messages.
    pub system: Option<Vec<Part>>,
    /// The tools that the model may call, in the dialect's own form.
    pub tools: Option<Value>,
}

/// One turn of a [`Conversation`].
#[derive(Debug, Clone, PartialEq)]
pub struct CapturedMessage {
    /// Who speaks.
    pub role: Value,
    /// What is said.
    pub parts: Vec<Part>,
}

/// A part of a [`CapturedMessage`].
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Plain text.
    Text(Value),
    /// What the model thought.
    Reasoning(Value),
    /// A tool call.
    ToolCall {
        /// Links the call to its result.
        id: Value,
        /// The function's name.
        name: Value,
        /// The arguments, as JSON and not as a text of it.
        arguments: Value,
    },
    /// The result of a tool call.
    ToolResult {
        /// The call's id.
        id: Value,
        /// What the tool gave.
        result: ToolResult,
    },
    /// Of anything else, such as images and sounds, only the kind is kept: their bytes are no reading matter.
    Other {
        /// What the dialect calls it.
        kind: Value,
    },
}

/// What a tool gave.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolResult {
    /// Something whole.
    Whole(Value),
    /// A list of parts.
    Parts(Vec<Part>),
}
