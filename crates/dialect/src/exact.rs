//! JSON that reaches the model as it came. The tree that a body is read through rounds whole numbers beyond 64 bits, and a
//! model must read the amount that was sent; so what templates write is taken from the body's text again.

use mlx_manager_llm::{Message, Request, Tool};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct RawTool {
    function: Option<RawFunction>,
    input_schema: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RawFunction {
    parameters: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RawMessage {
    content: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RawBlock {
    r#type: Option<String>,
    input: Option<Box<RawValue>>,
}

/// A field that was read before, so what is odd about it was refused then.
fn read<T: DeserializeOwned>(request: &Request, name: &str) -> Vec<T> {
    request.body.get(name).and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default()
}

/// The schemas of the tools, in either dialect.
pub(super) fn schemas(request: &Request, tools: &mut [Tool]) {
    for (tool, raw) in tools.iter_mut().zip(read::<RawTool>(request, "tools")) {
        let schema = raw.function.and_then(|function| function.parameters).or(raw.input_schema);
        if let Some(schema) = schema.filter(|schema| schema.get() != "null") {
            schema.get().clone_into(&mut tool.parameters);
        }
    }
}

/// The arguments of earlier calls, where they are objects and not text.
pub(super) fn inputs(request: &Request, messages: &mut [Message]) {
    let raw = read::<RawMessage>(request, "messages").into_iter().filter_map(|message| message.content);
    let blocks = raw.filter_map(|content| serde_json::from_str::<Vec<RawBlock>>(content.get()).ok()).flatten();
    let inputs = blocks.filter(|block| block.r#type.as_deref() == Some("tool_use")).filter_map(|block| block.input);
    let calls = messages.iter_mut().flat_map(|message| &mut message.tool_calls);
    for (call, input) in calls.zip(inputs) {
        input.get().clone_into(&mut call.arguments);
    }
}
