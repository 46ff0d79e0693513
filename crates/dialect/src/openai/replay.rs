//! A whole answer as the stream that was asked for: some providers answer whole all the same, and it is paid for.

use bytes::Bytes;

use super::super::raw::Raw;

/// The chunks of an answer, value by value as it came, with its usage if the caller asked for that.
pub(in super::super) fn stream(answer: Raw<'_>, usage: bool) -> Bytes {
    let mut out = String::new();
    let choices: Vec<String> = answer.get("choices").into_iter().flat_map(Raw::items).map(choice).collect();
    chunk(&mut out, answer, &format!("[{}]", choices.join(",")), None);
    if let Some(usage) = answer.get("usage").filter(|_| usage) {
        chunk(&mut out, answer, "[]", Some(usage));
    }
    out.push_str("data: [DONE]\n\n");
    out.into()
}

fn chunk(out: &mut String, answer: Raw<'_>, choices: &str, usage: Option<Raw<'_>>) {
    let mut object = Object::default();
    for (key, value) in answer.members() {
        match &*key {
            "object" => object.add("object", "\"chat.completion.chunk\""),
            "choices" => object.add("choices", choices),
            "usage" => {}
            key => object.add(key, value.json()),
        }
    }
    if let Some(usage) = usage {
        object.add("usage", usage.json());
    }
    out.push_str(&format!("data: {}\n\n", object.finish()));
}

fn choice(choice: Raw<'_>) -> String {
    let mut object = Object::default();
    for (key, value) in choice.members() {
        match &*key {
            "message" => object.add("delta", &delta(value)),
            // Beside a message it is empty.
            "delta" => {}
            key => object.add(key, value.json()),
        }
    }
    object.finish()
}

/// A message as the one delta that tells all of it. In a stream a tool call needs its index.
fn delta(message: Raw<'_>) -> String {
    let mut object = Object::default();
    for (key, value) in message.members() {
        if key != "tool_calls" || !value.is_list() {
            object.add(&key, value.json());
            continue;
        }
        let calls = value.items().enumerate().map(|(index, call)| {
            let mut indexed = Object::default();
            indexed.add("index", &index.to_string());
            call.members().filter(|(key, _)| key != "index").for_each(|(key, value)| indexed.add(&key, value.json()));
            indexed.finish()
        });
        object.add("tool_calls", &format!("[{}]", calls.collect::<Vec<_>>().join(",")));
    }
    object.finish()
}

/// An object that is being written of values as they came, on one line.
#[derive(Default)]
pub(in super::super) struct Object(String);

impl Object {
    pub(in super::super) fn add(&mut self, key: &str, json: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push_str(&serde_json::Value::from(key).to_string());
        self.0.push(':');
        // Outside of texts, which have no line ends, they mean nothing in JSON and much in an event stream.
        self.0.extend(json.chars().filter(|char| !matches!(char, '\r' | '\n')));
    }

    pub(in super::super) fn finish(self) -> String {
        if self.0.is_empty() { "{}".to_owned() } else { self.0 + "}" }
    }
}
