//! The attributes of the GenAI semantic conventions, by the version of the conventions that the configuration asks for.
//!
//! Beside them come the names that Logfire's own instrumentation of the official clients uses and its pages read:
//! `request_data`, `response_data` and `gen_ai.usage.raw`; docs/logfire.md compares attribute by attribute.
//!
//! The one place that knows their names. It knows no SDK: what it makes are names and [`Value`]s.

use std::time::Duration;

use mlx_manager_config::SemanticConventions;
use mlx_manager_llm::{
    CapturedMessage, Chat, Content, Conversation, FinishReason, Message, Part, Sampling, ToolCall, ToolResult, Usage,
};
use serde_json::{Map, Value as Json, json};

use self::report::{raw_usage, reported_usage};
use super::redact;

mod report;

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// An integer; token counts are never anything else.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A switch.
    Bool(bool),
    /// Texts.
    Texts(Vec<String>),
}

/// Names and values.
pub type Attributes = Vec<(&'static str, Value)>;

/// Which attributes of an inference hold JSON, as Logfire wants to be told in `logfire.json_schema`.
pub const JSON_SCHEMA: &str = r#"{"type":"object","properties":{"request_data":{"type":"object"},"response_data":{"type":"object"},"gen_ai.usage.raw":{"type":"object"},"gen_ai.input.messages":{"type":"array"},"gen_ai.output.messages":{"type":"array"},"gen_ai.system_instructions":{"type":"array"},"gen_ai.tool.definitions":{"type":"array"}}}"#;

const INPUT_MESSAGES: &str = "gen_ai.input.messages";
const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
const SYSTEM_INSTRUCTIONS: &str = "gen_ai.system_instructions";
const TOOL_DEFINITIONS: &str = "gen_ai.tool.definitions";

/// What is known when a call begins.
#[derive(Debug)]
pub struct Start<'a> {
    /// `chat`
    pub operation: &'static str,
    /// `openai`, `anthropic` or our own `mlx`.
    pub provider: &'static str,
    /// The model asked of the target.
    pub model: &'a str,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// The caller's sampling parameters.
    pub sampling: &'a Sampling,
}

impl Start<'_> {
    /// The attributes of the beginning.
    pub fn attributes(&self, version: SemanticConventions) -> Attributes {
        let mut attributes = vec![
            ("gen_ai.operation.name", Value::Text(self.operation.to_owned())),
            ("gen_ai.provider.name", Value::Text(self.provider.to_owned())),
            ("gen_ai.request.model", Value::Text(self.model.to_owned())),
        ];
        if version != SemanticConventions::Latest {
            attributes.push(("gen_ai.system", Value::Text(self.provider.to_owned())));
        }
        let sampling = self.sampling;
        let float = |value: Option<f64>| value.map(Value::Float);
        let integer = |value: Option<i64>| value.map(Value::Integer);
        let stop = (!sampling.stop.is_empty())
            .then(|| Value::Texts(sampling.stop.iter().map(|stop| redact::text(stop).into_owned()).collect()));
        attributes.extend(
            [
                ("gen_ai.request.temperature", float(sampling.temperature)),
                ("gen_ai.request.top_p", float(sampling.top_p)),
                ("gen_ai.request.top_k", integer(sampling.top_k.map(i64::from))),
                ("gen_ai.request.max_tokens", integer(sampling.max_tokens.map(i64::from))),
                ("gen_ai.request.stop_sequences", stop),
                ("gen_ai.request.seed", integer(sampling.seed)),
                ("gen_ai.request.frequency_penalty", float(sampling.frequency_penalty)),
                ("gen_ai.request.presence_penalty", float(sampling.presence_penalty)),
                ("gen_ai.request.stream", self.stream.then_some(Value::Bool(true))),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
        );
        attributes
    }
}

/// What is known when a call has ended.
#[derive(Debug)]
pub struct End<'a> {
    /// The provider's id of the answer.
    pub id: Option<&'a str>,
    /// The model that answered.
    pub model: Option<&'a str>,
    /// Why the model stopped.
    pub finish_reason: Option<FinishReason>,
    /// Totals: cache tokens inside input, reasoning inside output.
    pub usage: &'a Usage,
    /// The provider's first and last report of the usage, as it wrote them.
    pub reported_usage: [Option<&'a str>; 2],
    /// US dollars.
    pub cost: Option<f64>,
    /// From the request to the first generated content, for streamed answers.
    pub time_to_first_chunk: Option<Duration>,
}

impl End<'_> {
    /// The attributes of the end.
    pub fn attributes(&self, version: SemanticConventions) -> Attributes {
        let text = |value: Option<&str>| value.map(|value| Value::Text(value.to_owned()));
        let count = |value: Option<u64>| value.map(|value| Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
        let seconds = |time: Option<Duration>| time.map(|time| Value::Float(time.as_secs_f64()));
        let old = version != SemanticConventions::Latest;
        let new = version != SemanticConventions::V1_41;
        let usage = self.usage;
        [
            ("gen_ai.response.id", text(self.id)),
            ("gen_ai.response.model", text(self.model)),
            (
                "gen_ai.response.finish_reasons",
                self.finish_reason.map(|reason| Value::Texts(vec![reason.as_str().to_owned()])),
            ),
            ("gen_ai.usage.input_tokens", count(usage.input)),
            ("gen_ai.usage.output_tokens", count(usage.output)),
            ("gen_ai.usage.cache_read.input_tokens", count(usage.cache_read)),
            ("gen_ai.usage.cache_creation.input_tokens", count(usage.cache_write.filter(|_| old))),
            ("gen_ai.usage.cache_write.input_tokens", count(usage.cache_write.filter(|_| new))),
            ("gen_ai.usage.reasoning.output_tokens", count(usage.reasoning)),
            ("gen_ai.usage.raw", raw_usage(self.reported_usage).map(Value::Text)),
            ("operation.cost", self.cost.map(Value::Float)),
            // Logfire's page reads the first one.
            ("gen_ai.client.operation.time_to_first_chunk", seconds(self.time_to_first_chunk)),
            ("gen_ai.response.time_to_first_chunk", seconds(self.time_to_first_chunk.filter(|_| new))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

/// Prompts on their way to a provider, redacted.
pub fn input(conversation: Conversation) -> Attributes {
    let messages = conversation.messages.into_iter().map(captured_message).collect();
    let system = conversation.system.map(|parts| parts.into_iter().map(part).collect());
    input_attributes(messages, system, conversation.tools)
}

/// Prompts as the local engine understands them, redacted.
pub fn understood_input(chat: &Chat) -> Attributes {
    let tools: Vec<Json> = chat
        .tools
        .iter()
        .map(|tool| {
            let parameters: Json = serde_json::from_str(&tool.parameters).unwrap_or_default();
            json!({"type": "function", "name": tool.name, "description": tool.description, "parameters": parameters})
        })
        .collect();
    let tools = (!tools.is_empty()).then_some(Json::Array(tools));
    input_attributes(chat.messages.iter().map(message).collect(), None, tools)
}

fn input_attributes(messages: Vec<Json>, system: Option<Vec<Json>>, tools: Option<Json>) -> Attributes {
    [
        (INPUT_MESSAGES, Some(Json::Array(messages))),
        (SYSTEM_INSTRUCTIONS, system.map(Json::Array)),
        (TOOL_DEFINITIONS, tools),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, Value::Text(redacted(value?)))))
    .collect()
}

/// `request_data`: the model, which is what Logfire's message templates name; and with content the rest of the body,
/// redacted, which only versions before the latest have.
pub fn request_data(model: &str, body: Option<Map<String, Json>>) -> Value {
    let mut data = Map::from_iter([("model".to_owned(), model.into())]);
    let Some(body) = body else { return Value::Text(Json::Object(data).to_string()) };
    data.extend(body.into_iter().filter(|(name, _)| name != "model"));
    Value::Text(redacted(Json::Object(data)))
}

/// What a model answered.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The text.
    pub text: &'a str,
    /// The reasoning before it.
    pub reasoning: &'a str,
    /// The tool calls, complete.
    pub tool_calls: &'a [ToolCall],
}

impl Answer<'_> {
    /// The answer, redacted: in the conventions' shape, and before the latest version in that of `response_data` too.
    pub fn attributes(&self, end: &End<'_>, version: SemanticConventions) -> Attributes {
        if self.text.is_empty() && self.reasoning.is_empty() && self.tool_calls.is_empty() {
            return Vec::new();
        }
        let mut parts = Vec::new();
        if !self.reasoning.is_empty() {
            parts.push(reasoning_part(self.reasoning));
        }
        if !self.text.is_empty() {
            parts.push(text_part(self.text));
        }
        parts.extend(self.tool_calls.iter().map(tool_call_part));
        let mut message = json!({"role": "assistant", "parts": parts});
        if let Some(reason) = end.finish_reason {
            message["finish_reason"] = reason.as_str().into();
        }
        let mut attributes = vec![(OUTPUT_MESSAGES, Value::Text(redacted(json!([message]))))];
        if version != SemanticConventions::Latest {
            let calls = self.tool_calls.iter().map(|call| {
                json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
            });
            let message = json!({
                "role": "assistant",
                "content": (!self.text.is_empty()).then_some(self.text),
                "tool_calls": (!self.tool_calls.is_empty()).then(|| calls.collect::<Vec<_>>()),
            });
            let data = json!({"message": message, "usage": reported_usage(end.reported_usage)});
            attributes.push(("response_data", Value::Text(redacted(data))));
        }
        attributes
    }
}

fn redacted(mut value: Json) -> String {
    redact::json(&mut value);
    value.to_string()
}

fn text_part(text: impl Into<Json>) -> Json {
    json!({"type": "text", "content": text.into()})
}

fn reasoning_part(text: impl Into<Json>) -> Json {
    json!({"type": "reasoning", "content": text.into()})
}

fn tool_call_part(call: &ToolCall) -> Json {
    // A dialect writes the arguments as JSON within a text.
    let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| Json::from(call.arguments.as_str()));
    json!({"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments})
}

fn message(message: &Message) -> Json {
    let mut parts = Vec::new();
    parts.extend(message.reasoning.as_deref().map(reasoning_part));
    for Content::Text(text) in &message.content {
        parts.push(match &message.tool_call_id {
            Some(id) => json!({"type": "tool_call_response", "id": id, "response": text}),
            None => text_part(text.as_str()),
        });
    }
    parts.extend(message.tool_calls.iter().map(tool_call_part));
    json!({"role": message.role.as_str(), "parts": parts})
}

fn captured_message(message: CapturedMessage) -> Json {
    json!({"role": message.role, "parts": message.parts.into_iter().map(part).collect::<Vec<_>>()})
}

fn part(captured: Part) -> Json {
    match captured {
        Part::Text(text) => text_part(text),
        Part::Reasoning(text) => reasoning_part(text),
        Part::ToolCall { id, name, arguments } => {
            json!({"type": "tool_call", "id": id, "name": name, "arguments": arguments})
        }
        Part::ToolResult { id, result } => {
            let response = match result {
                ToolResult::Whole(value) => value,
                ToolResult::Parts(parts) => parts.into_iter().map(part).collect(),
            };
            json!({"type": "tool_call_response", "id": id, "response": response})
        }
        Part::Other { kind } => json!({"type": kind}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(attributes: &Attributes) -> Vec<&'static str> {
        attributes.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn each_version_has_its_own_names() {
        let usage = Usage { input: Some(10), output: Some(2), cache_write: Some(4), ..Usage::default() };
        let end = End {
            id: None,
            model: None,
            finish_reason: None,
            usage: &usage,
            reported_usage: [None, None],
            cost: None,
            time_to_first_chunk: None,
        };
        let creation = "gen_ai.usage.cache_creation.input_tokens";
        let write = "gen_ai.usage.cache_write.input_tokens";
        for (version, has_creation, has_write) in [
            (SemanticConventions::V1_41, true, false),
            (SemanticConventions::Latest, false, true),
            (SemanticConventions::Both, true, true),
        ] {
            let attributes = end.attributes(version);
            assert_eq!(names(&attributes).contains(&creation), has_creation);
            assert_eq!(names(&attributes).contains(&write), has_write);
            assert!(attributes.contains(&("gen_ai.usage.input_tokens", Value::Integer(10))));
            assert!(!names(&attributes).contains(&"operation.cost"), "an unknown cost is absent, not 0");
            let start = Start {
                operation: "chat",
                provider: "mlx",
                model: "demo",
                stream: false,
                sampling: &Sampling::default(),
            };
            let start = start.attributes(version);
            assert_eq!(names(&start).contains(&"gen_ai.system"), version != SemanticConventions::Latest);
            assert!(!names(&start).contains(&"gen_ai.request.stream"));
        }
    }

    fn json_of(value: &Value) -> Json {
        match value {
            Value::Text(text) => serde_json::from_str(text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_conversation_takes_the_conventions_shape() {
        let message = |role: &str, parts| CapturedMessage { role: role.into(), parts };
        let conversation = Conversation {
            messages: vec![
                message("user", vec![Part::Text("hi".into()), Part::Other { kind: "image".into() }]),
                message(
                    "assistant",
                    vec![
                        Part::Reasoning("hm".into()),
                        Part::ToolCall { id: "1".into(), name: "weather".into(), arguments: json!({"password": "x"}) },
                    ],
                ),
                message(
                    "user",
                    vec![
                        Part::ToolResult { id: "1".into(), result: ToolResult::Whole("sunny".into()) },
                        Part::ToolResult {
                            id: "2".into(),
                            result: ToolResult::Parts(vec![Part::Text("the secret plan".into())]),
                        },
                    ],
                ),
            ],
            system: Some(vec![Part::Text("be brief".into())]),
            tools: Some(json!([{"name": "weather"}])),
        };
        let attributes = input(conversation);
        let parsed: Vec<(&str, Json)> = attributes.iter().map(|(name, value)| (*name, json_of(value))).collect();
        assert_eq!(
            parsed,
            [
                (
                    INPUT_MESSAGES,
                    json!([
                        {"role": "user", "parts": [{"type": "text", "content": "hi"}, {"type": "image"}]},
                        {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"},
                            {"type": "tool_call", "id": "1", "name": "weather",
                                "arguments": {"password": "[Scrubbed due to 'password']"}}]},
                        {"role": "user", "parts": [{"type": "tool_call_response", "id": "1", "response": "sunny"},
                            {"type": "tool_call_response", "id": "2", "response": [
                                {"type": "text", "content": "[Scrubbed due to 'secret']"}]}]},
                    ])
                ),
                (SYSTEM_INSTRUCTIONS, json!([{"type": "text", "content": "be brief"}])),
                (TOOL_DEFINITIONS, json!([{"name": "weather"}])),
            ]
        );
    }

    #[test]
    fn request_data_is_the_model_and_with_content_the_body() {
        let data = |body| json_of(&request_data("renamed", body));
        assert_eq!(data(None), json!({"model": "renamed"}));
        let body = Map::from_iter([
            ("temperature".to_owned(), json!(0.5)),
            ("model".to_owned(), json!("m")),
            ("user".to_owned(), json!("my password is x")),
        ]);
        assert_eq!(
            data(Some(body)),
            json!({"model": "renamed", "temperature": 0.5, "user": "[Scrubbed due to 'password']"})
        );
    }
}
