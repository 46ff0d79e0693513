//! What telemetry may capture of a body.
//!
//! One reader for both dialects: a body on its way to a provider was not checked, and compatible servers take fields of
//! the other dialect, so each field is looked for wherever it might be.

use mlx_manager_llm::{Api, Capture, CapturedMessage, Conversation, Part, Request, ToolResult};
use serde_json::{Map, Value};

/// How telemetry reads requests.
pub const CAPTURE: Capture = Capture { body, conversation };

/// What stands where bytes of an image, a sound or a file stood.
const MEDIA: &str = "[media]";

fn body(request: &Request) -> Map<String, Value> {
    let read = |text: &str| serde_json::from_str(text).unwrap_or_default();
    let mut fields: Map<_, _> = request.body.iter().map(|(name, raw)| (name.to_owned(), read(raw))).collect();
    leave_media_out_of(&mut fields);
    fields
}

fn conversation(request: &Request) -> Conversation {
    let field = |name: &str| request.body.get(name).and_then(|raw| serde_json::from_str::<Value>(raw).ok());
    let messages = match field("messages") {
        Some(Value::Array(messages)) => messages.iter().map(message).collect(),
        _ => Vec::new(),
    };
    let system = (request.api == Api::Messages).then(|| field("system")).flatten();
    Conversation { messages, system: system.as_ref().map(parts), tools: field("tools") }
}

fn message(message: &Value) -> CapturedMessage {
    let content = &message["content"];
    let mut parts = match message["tool_call_id"].as_str() {
        Some(id) => vec![Part::ToolResult { id: id.into(), result: ToolResult::Whole(content.clone()) }],
        None => parts(content),
    };
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    parts.extend(calls.map(|call| {
        let function = &call["function"];
        // They come as JSON within a text.
        let arguments = function["arguments"].as_str();
        let arguments = arguments.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.into()));
        Part::ToolCall {
            id: call["id"].clone(),
            name: function["name"].clone(),
            arguments: arguments.unwrap_or_default(),
        }
    }));
    CapturedMessage { role: message["role"].clone(), parts }
}

fn parts(content: &Value) -> Vec<Part> {
    match content {
        Value::String(_) => vec![Part::Text(content.clone())],
        Value::Array(items) => items.iter().map(part).collect(),
        _ => Vec::new(),
    }
}

fn part(part: &Value) -> Part {
    let field = |name: &str| part[name].clone();
    match part["type"].as_str() {
        Some("text") => Part::Text(field("text")),
        Some("thinking") => Part::Reasoning(field("thinking")),
        Some("tool_use") => Part::ToolCall { id: field("id"), name: field("name"), arguments: field("input") },
        Some("tool_result") => {
            let result = match &part["content"] {
                content @ Value::Array(_) => ToolResult::Parts(parts(content)),
                other => ToolResult::Whole(other.clone()),
            };
            Part::ToolResult { id: field("tool_use_id"), result }
        }
        _ => Part::Other { kind: field("type") },
    }
}

/// Replaces the bytes of images, sounds and files, wherever a body holds them.
fn leave_media_out(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with("data:") && text.contains(";base64,") => MEDIA.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(leave_media_out),
        Value::Object(fields) => leave_media_out_of(fields),
        _ => {}
    }
}

fn leave_media_out_of(fields: &mut Map<String, Value>) {
    for (name, value) in fields {
        match value {
            Value::String(text) if matches!(name.as_str(), "data" | "file_data") && !text.contains(' ') => {
                MEDIA.clone_into(text);
            }
            other => leave_media_out(other),
        }
    }
}
