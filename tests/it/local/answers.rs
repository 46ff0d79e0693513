//! What becomes of what a model writes, and of what callers ask for, from socket to socket.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::scripted::Scripted;
use crate::peer::daemon::Daemon;

const CHAT: &str = "/v1/chat/completions";
/// A template whose model calls tools in Hermes' format, and one whose model thinks before.
const CALLS: &str = "{# <tool_call> tools #}PROMPT";
const THINKS: &str = "{# <think> <tool_call> tools #}PROMPT";
const CALL: [&str; 3] = ["<tool_call>", r#"{"name": "f", "arguments": {"a": 1}}"#, "</tool_call>"];

async fn daemon(model: &Scripted) -> Daemon {
    let root = TempDir::new().unwrap();
    model.write(&root.path().join("models/m"));
    Daemon::start_in(root, "", |_| {}).await
}

fn asking(message: &str, more: Value) -> Value {
    let mut body = json!({ "model": "m", "temperature": 0, "messages": [{ "role": "user", "content": message }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tool() -> Value {
    let parameters = json!({ "type": "object", "properties": { "a": {} } });
    json!([{ "type": "function", "function": { "name": "f", "strict": true, "parameters": parameters } }])
}

/// The message of a whole answer and why it ended.
async fn whole(daemon: &Daemon, body: &Value) -> (Value, String) {
    let response = daemon.post(CHAT, body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    (choice["message"].clone(), choice["finish_reason"].as_str().unwrap().to_owned())
}

/// A streamed answer's text, reasoning, and the arguments of each call.
async fn streamed(daemon: &Daemon, body: &Value) -> (String, String, Vec<String>) {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let text = daemon.post(CHAT, &body).await.text().await.unwrap();
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<String>::new());
    for line in text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]") {
        let event: Value = serde_json::from_str(line).unwrap();
        let delta = &event["choices"][0]["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            calls.resize(calls.len().max(index + 1), String::new());
            calls[index] += call["function"]["arguments"].as_str().unwrap_or_default();
        }
    }
    (content, reasoning, calls)
}

fn arguments(message: &Value) -> Vec<String> {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls.map(|call| call["function"]["arguments"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_call_within_a_thought_that_never_ends_is_a_call() {
    let [open, call, close] = CALL;
    let mut model = Scripted::new(THINKS);
    model
        .answer("open", &["<think>", "I need f.\n", open, call, close])
        .answer("spoken", &["<think>", "There is a tag <tool_call> for it.", "</think>", "Yes."]);
    let daemon = daemon(&model).await;
    let body = asking("open", json!({ "tools": tool() }));
    let (message, reason) = whole(&daemon, &body).await;
    assert_eq!((arguments(&message), reason.as_str()), (vec![r#"{"a": 1}"#.to_owned()], "tool_calls"), "{message}");
    assert_eq!(message["reasoning_content"].as_str().unwrap().trim(), "I need f.");
    let (content, reasoning, calls) = streamed(&daemon, &body).await;
    assert_eq!((content.trim(), reasoning.trim(), calls), ("", "I need f.", vec![r#"{"a": 1}"#.to_owned()]));
    let (message, reason) = whole(&daemon, &asking("spoken", json!({ "tools": tool() }))).await;
    assert_eq!((arguments(&message).len(), message["content"].as_str(), reason.as_str()), (0, Some("Yes."), "stop"));
}

#[tokio::test]
async fn arguments_with_forgotten_escapes_are_read_as_they_were_meant() {
    let mut model = Scripted::new(CALLS);
    let cases = [("newline", "x\n", "y", "x\ny"), ("tab", "x:\t", "y", "x:\ty"), ("pattern", "\\d+", "\\s", "\\d+\\s")];
    for (name, first, second, _) in cases {
        let begin = format!(r#"{{"name": "f", "arguments": {{"a": "{first}"#);
        model.answer(name, &["<tool_call>\n", &begin, &format!("{second}\"}}}}"), "\n</tool_call>"]);
    }
    let daemon = daemon(&model).await;
    for (name, .., meant) in cases {
        let body = asking(name, json!({ "tools": tool() }));
        let whole = arguments(&whole(&daemon, &body).await.0);
        let (.., streamed) = streamed(&daemon, &body).await;
        for calls in [whole, streamed] {
            let read: Vec<Value> = calls.iter().map(|call| serde_json::from_str(call).unwrap()).collect();
            assert_eq!(read, [json!({ "a": meant })], "{name}");
        }
    }
}

#[tokio::test]
async fn control_tokens_are_not_shown_and_text_that_looks_like_one_is() {
    let mut model = Scripted::new("PROMPT");
    model.special("<|im_start|>").answer("token", &["one ", "<|im_start|>", "two"]);
    model.answer("text", &["see ", "<|im_", "start|>"]);
    let daemon = daemon(&model).await;
    for (message, shown) in [("token", "one two"), ("text", "see <|im_start|>")] {
        let body = asking(message, json!({}));
        assert_eq!(whole(&daemon, &body).await.0["content"], shown);
        assert_eq!(streamed(&daemon, &body).await.0, shown);
    }
}

#[tokio::test]
async fn an_answer_that_was_begun_is_gone_on_with() {
    let turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";
    let model =
        Scripted::new(&format!("{{% set all %}}{turns}{{% endset %}}{{{{ raise_exception('⟪' ~ all ~ '⟫') }}}}"));
    let daemon = daemon(&model).await;
    let messages = json!([{ "role": "user", "content": "JSON!" }, { "role": "assistant", "content": "{\"a\": " }]);
    let right = "⟪[user] JSON! [end][assistant] {\"a\": ⟫";
    let chat = json!({ "model": "m", "messages": messages, "continue_final_message": true });
    let anthropic = json!({ "model": "m", "max_tokens": 9, "messages": messages });
    for (path, body) in [(CHAT, chat), ("/v1/messages", anthropic)] {
        let refused: Value = daemon.post(path, &body).await.json().await.unwrap();
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains(right), "{path}: {message}");
    }
}

#[tokio::test]
async fn one_call_a_turn_is_what_it_says_in_both_dialects() {
    let [open, call, close] = CALL;
    let mut model = Scripted::new(CALLS);
    model.answer("two", &[open, call, close, "\n", open, call, close]);
    let daemon = daemon(&model).await;
    for (parallel, calls) in [(json!(false), 1), (json!(true), 2), (Value::Null, 2)] {
        let body = asking("two", json!({ "tools": tool(), "parallel_tool_calls": parallel }));
        let (message, reason) = whole(&daemon, &body).await;
        assert_eq!((arguments(&message).len(), reason.as_str()), (calls, "tool_calls"), "{message}");
        assert_eq!(streamed(&daemon, &body).await.2.len(), calls);
    }
    let body = json!({
        "model": "m", "max_tokens": 50, "temperature": 0, "messages": [{ "role": "user", "content": "two" }],
        "tools": [{ "name": "f", "input_schema": { "type": "object" } }],
        "tool_choice": { "type": "auto", "disable_parallel_tool_use": true }
    });
    let answer: Value = daemon.post("/v1/messages", &body).await.json().await.unwrap();
    let calls = answer["content"].as_array().unwrap().iter().filter(|block| block["type"] == "tool_use").count();
    assert_eq!((calls, answer["stop_reason"].as_str()), (1, Some("tool_use")), "{answer}");
}

#[tokio::test]
async fn each_of_many_stop_sequences_acts() {
    let stops: Vec<String> = ["Ann", "Bob", "Cyd", "Dan", "Eve", "Flo", "Gus"].map(|name| format!("{name}:")).into();
    let mut model = Scripted::new("PROMPT");
    for stop in &stops {
        model.answer(stop, &["Well. ", &stop[..2], &stop[2..], " never"]);
    }
    let daemon = daemon(&model).await;
    for stop in &stops {
        let body = asking(stop, json!({ "stop": stops }));
        let (message, reason) = whole(&daemon, &body).await;
        assert_eq!((message["content"].as_str(), reason.as_str()), (Some("Well. "), "stop"), "{stop}");
        assert_eq!(streamed(&daemon, &body).await.0, "Well. ", "{stop}");
    }
}
