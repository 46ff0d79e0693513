//! What telemetry is given of a body.

use mlx_manager_llm::{Api, CapturedMessage, Conversation, Part, ToolResult};
use serde_json::{Value, json};

use super::decode_head;
use crate::CAPTURE;

fn conversation(api: Api, body: &Value) -> Conversation {
    (CAPTURE.conversation)(&decode_head(api, body.to_string().as_bytes()).unwrap())
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn message(role: &str, parts: Vec<Part>) -> CapturedMessage {
    CapturedMessage { role: role.into(), parts }
}

#[test]
fn both_dialects_conversations_are_read() {
    let call = Part::ToolCall { id: "1".into(), name: "weather".into(), arguments: json!({"city": "Rome"}) };
    let anthropic = json!({"model": "m", "max_tokens": 9, "system": "be brief", "tools": [{"name": "weather"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "source": {"data": "AAAA"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"},
            {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "or not"}]}]}]});
    assert_eq!(
        conversation(Api::Messages, &anthropic),
        Conversation {
            messages: vec![
                message("user", vec![text("hi"), Part::Other { kind: "image".into() }]),
                message("assistant", vec![Part::Reasoning("hm".into()), call.clone()]),
                message(
                    "user",
                    vec![
                        Part::ToolResult { id: "1".into(), result: ToolResult::Whole("sunny".into()) },
                        Part::ToolResult { id: "2".into(), result: ToolResult::Parts(vec![text("or not")]) },
                    ]
                ),
            ],
            system: Some(vec![text("be brief")]),
            tools: Some(json!([{"name": "weather"}])),
        }
    );
    let openai = json!({"model": "m", "system": "not a field of this API", "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Rome\"}"}},
            {"id": "2", "type": "function", "function": {"name": "weather", "arguments": "Rome"}},
            {"id": "3", "type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"}]});
    assert_eq!(
        conversation(Api::ChatCompletions, &openai),
        Conversation {
            messages: vec![
                message("system", vec![text("be brief")]),
                message(
                    "assistant",
                    vec![
                        call,
                        Part::ToolCall { id: "2".into(), name: "weather".into(), arguments: "Rome".into() },
                        Part::ToolCall { id: "3".into(), name: Value::Null, arguments: Value::Null },
                    ]
                ),
                message("tool", vec![Part::ToolResult { id: "1".into(), result: ToolResult::Whole("sunny".into()) }]),
            ],
            system: None,
            tools: None,
        }
    );
}

#[test]
fn what_is_no_conversation_gives_what_it_can() {
    let odd = json!({"model": "m", "messages": [7, {"content": 1}, {"role": 2, "content": [3, {"type": "text"}]}]});
    let unknown = || Part::Other { kind: Value::Null };
    assert_eq!(
        conversation(Api::ChatCompletions, &odd).messages,
        [
            CapturedMessage { role: Value::Null, parts: Vec::new() },
            CapturedMessage { role: Value::Null, parts: Vec::new() },
            CapturedMessage { role: 2.into(), parts: vec![unknown(), Part::Text(Value::Null)] },
        ]
    );
}

#[test]
fn a_body_is_captured_without_media() {
    let body = json!({"model": "m", "temperature": 0.5, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text", "text": "the data: all of it"}]}]});
    let request = decode_head(Api::ChatCompletions, body.to_string().as_bytes()).unwrap();
    assert_eq!(
        Value::Object((CAPTURE.body)(&request)),
        json!({"model": "m", "temperature": 0.5, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "[media]"}},
            {"type": "input_audio", "input_audio": {"data": "[media]", "format": "wav"}},
            {"type": "text", "text": "the data: all of it"}]}]})
    );
}
