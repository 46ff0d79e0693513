//! A whole answer as the stream that was asked for: some providers answer whole all the same, and it is paid for.

use bytes::Bytes;
use serde_json::Value;

use super::super::{openai::replay::Object, raw::Raw};

/// The events of a message, value by value as it came.
pub(in super::super) fn stream(message: Raw<'_>) -> Bytes {
    let mut out = String::new();
    let mut start = emptied(message, &[("content", "[]")]);
    if message.get("usage").is_none() {
        // Clients rely on it in a stream.
        start.truncate(start.len() - 1);
        start.push_str(r#","usage":{"input_tokens":0,"output_tokens":0}}"#);
    }
    event(&mut out, "message_start", &[("message", &start)]);
    for (index, block) in message.get("content").into_iter().flat_map(Raw::items).enumerate() {
        let index = index.to_string();
        // What comes in pieces begins empty, and its pieces tell it.
        let mut pieces: Vec<(&str, String, &str)> = Vec::new();
        for (key, value) in block.members() {
            // Of a key given twice the last counts, and pieces would add up.
            pieces.retain(|(name, ..)| *name != key);
            pieces.extend(piece(&key, value));
        }
        let empty: Vec<(&str, &str)> = pieces.iter().map(|(key, _, empty)| (*key, *empty)).collect();
        event(&mut out, "content_block_start", &[("index", &index), ("content_block", &emptied(block, &empty))]);
        for (_, delta, _) in &pieces {
            event(&mut out, "content_block_delta", &[("index", &index), ("delta", delta)]);
        }
        event(&mut out, "content_block_stop", &[("index", &index)]);
    }
    let mut delta = Object::default();
    for name in ["stop_reason", "stop_sequence"] {
        delta.add(name, message.get(name).map_or("null", Raw::json));
    }
    let usage = message.get("usage").map_or(r#"{"output_tokens":0}"#, Raw::json);
    event(&mut out, "message_delta", &[("delta", &delta.finish()), ("usage", usage)]);
    event(&mut out, "message_stop", &[]);
    out.into()
}

fn event(out: &mut String, kind: &str, members: &[(&str, &str)]) {
    let mut object = Object::default();
    object.add("type", &Value::from(kind).to_string());
    members.iter().for_each(|(key, json)| object.add(key, json));
    out.push_str(&format!("event: {kind}\ndata: {}\n\n", object.finish()));
}

/// An object with other values for some of its members. Why a message stopped isn't told at its beginning.
fn emptied(value: Raw<'_>, empty: &[(&str, &str)]) -> String {
    let mut object = Object::default();
    for (key, value) in value.members() {
        let other = empty.iter().find(|(name, _)| *name == key).map(|(_, other)| *other);
        let other = other.or_else(|| matches!(&*key, "stop_reason" | "stop_sequence").then_some("null"));
        object.add(&key, other.unwrap_or(value.json()));
    }
    object.finish()
}

/// A member of a block as a delta: its name, the delta, and what stands for it at the beginning.
fn piece(key: &str, value: Raw<'_>) -> Option<(&'static str, String, &'static str)> {
    let (name, kind, member, empty) = match key {
        "text" => ("text", "text_delta", "text", "\"\""),
        "thinking" => ("thinking", "thinking_delta", "thinking", "\"\""),
        "signature" => ("signature", "signature_delta", "signature", "\"\""),
        "input" => ("input", "input_json_delta", "partial_json", "{}"),
        _ => return None,
    };
    let json = match name {
        "input" => Value::from(value.json()).to_string(),
        // Clients add pieces up, which goes with texts alone. What is none stays where it was.
        _ => value.text().map(|_| value.json().to_owned())?,
    };
    let mut delta = Object::default();
    delta.add("type", &Value::from(kind).to_string());
    delta.add(member, &json);
    (!value.is_blank()).then(|| (name, delta.finish(), empty))
}
