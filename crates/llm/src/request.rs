//! What a caller asks for, in two stages.
//!
//! A [`Request`] is what routing and telemetry need to know of any call, beside the untouched [`Body`] that a provider of
//! the same dialect gets. A [`Chat`] is the body understood to the last field; only the local engine needs it, and only
//! for it must a field be refused that we don't know how to honour.

use std::time::Duration;

use strum::{IntoStaticStr, VariantArray, VariantNames};

use super::Body;

/// The API family that a caller or a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `api.openai.com` and everything compatible with it.
    OpenAi,
    /// `api.anthropic.com` and everything compatible with it.
    Anthropic,
}

/// The endpoint a request came in by; the `api` label of metrics and audit rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Api {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/messages`
    Messages,
}

impl Api {
    /// Every endpoint, for series that exist from the start.
    pub const ALL: &'static [Self] = <Self as VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// The closed, low-cardinality name used in metrics and audit rows.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The request path, which is also the route label of HTTP metrics.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
        }
    }

    /// The dialect in which this endpoint's bodies and errors are written.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::ChatCompletions => Dialect::OpenAi,
            Self::Messages => Dialect::Anthropic,
        }
    }

    /// The GenAI operation this endpoint performs.
    pub fn operation(self) -> Operation {
        match self {
            Self::ChatCompletions | Self::Messages => Operation::Chat,
        }
    }
}

/// `gen_ai.operation.name` of the GenAI semantic conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Operation {
    /// A conversation of messages.
    Chat,
}

impl Operation {
    /// The names of all operations.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// The name as the conventions spell it.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One inference request: its head, checked, and its body, untouched.
#[derive(Debug, Clone)]
pub struct Request {
    /// The endpoint it came in by.
    pub api: Api,
    /// The model as the caller named it.
    pub model: String,
    /// Whether the caller wants server-sent events.
    pub stream: bool,
    /// Whether an OpenAI caller asked for `stream_options.include_usage`.
    pub include_usage: bool,
    /// Sampling parameters, for span attributes and the local engine.
    pub sampling: Sampling,
    /// Every field as it came, for a provider of the same dialect.
    pub body: Body,
}

/// Sampling parameters; `None` means that the caller left the choice to the model's own defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// Nucleus: the smallest set of tokens whose probabilities sum up to this, in (0, 1].
    pub top_p: Option<f64>,
    /// Only the k most likely tokens; 0 is off.
    pub top_k: Option<u32>,
    /// Only tokens at least this share as likely as the most likely one, in [0, 1].
    pub min_p: Option<f64>,
    /// Divides the logits of tokens already seen; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// Subtracted once from the logits of tokens already generated.
    pub presence_penalty: Option<f64>,
    /// Subtracted from the logits once per occurrence.
    pub frequency_penalty: Option<f64>,
    /// Makes sampling repeatable.
    pub seed: Option<i64>,
    /// The most tokens to generate, reasoning included.
    pub max_tokens: Option<u32>,
    /// Generation ends before any of these texts.
    pub stop: Vec<String>,
}

/// A request for the local engine, understood to the last field.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    /// The conversation, system messages included, in order.
    pub messages: Vec<Message>,
    /// The functions the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it may or must call.
    pub tool_choice: ToolChoice,
    /// Whether the answer ends after its first call.
    pub one_tool_call: bool,
    /// How the prompt ends.
    pub ending: Ending,
    /// Whether to think first.
    pub reasoning: Reasoning,
    /// Further variables for the chat template (`chat_template_kwargs`).
    pub template_arguments: serde_json::Map<String, serde_json::Value>,
    /// How to sample.
    pub sampling: Sampling,
    /// How long its model is to stay in memory once nobody uses it; `None` leaves that as it is.
    pub keep_alive: Option<KeepAlive>,
}

/// How long a local model stays in memory that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Until another model needs the room.
    Forever,
    /// This long after its last request.
    For(Duration),
}

/// How a prompt ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the beginning of a new turn of the model's.
    #[default]
    NewTurn,
    /// With the text of the last message, which is the beginning of the answer.
    LastMessage,
    /// With the end of the last message, whoever speaks next.
    Nothing,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Instructions of the operator; OpenAI's `developer` too.
    System,
    /// The person or program asking.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name chat templates expect.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in parts.
    pub content: Vec<Content>,
    /// Reasoning that an assistant message carries along from an earlier turn.
    pub reasoning: Option<String>,
    /// Calls an assistant message made.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
    /// OpenAI's optional speaker name.
    pub name: Option<String>,
}

/// A part of a message. Images are refused by the dialect decoders, since no supported local model sees.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(String),
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments, as JSON text: a tree would round large numbers.
    pub parameters: String,
}

/// Which tools the model may call. What the local engine can't enforce is refused when the body is decoded.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No tool is shown to the model.
    None,
}

/// A complete tool call within a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Links the call to its result.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// The arguments, as JSON text.
    pub arguments: String,
}

/// Whether the model is to think before it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reasoning {
    /// As the model's template has it.
    #[default]
    Default,
    /// Asked for.
    On,
    /// Switched off.
    Off,
}
