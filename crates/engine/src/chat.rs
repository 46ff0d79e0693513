//! The text side of a model: from a conversation to token ids, and what the answer's text will mean.

mod forms;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Zoned;
use minijinja::{Value, value::Serde};
use mlx_manager_catalogue::metadata;
use mlx_manager_llm::{Chat, Content, Ending, Error, ErrorKind, Message, Reasoning, Sampling, ToolChoice};
use serde_json::{Map, Value as Json};

use self::forms::Forms;

use super::{
    model::{ModelInfo, file_name},
    parse::{Beginning, ParserOptions, ReasoningFormat, ToolFormat},
    sample::SamplingParameters,
    template::{ChatTemplate, TemplateError, Variables},
    tokenizer::{Tokenizer, TokenizerError},
};

/// Tokens of an answer when neither the caller nor the model's folder sets a bound.
const UNBOUNDED_ANSWER: u32 = 8192;

/// Stands where a text ends that the answer is to go on with, so that what the template writes after it can be cut off.
/// Letters alone, which every template passes on as they are.
const END_OF_GIVEN: &str = "MLXMANAGERENDOFTHEGIVENTEXT";

/// Variables of templates that follow from the request itself.
const RESERVED: [&str; 7] =
    ["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "strftime_now"];

/// Why the text side of a model can't be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TextError {
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// generation_config.json can't be read.
    #[error("can't read {}", file_name(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What generation_config.json says of sampling.
#[derive(Debug, Clone, Default, PartialEq)]
struct SamplingDefaults {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// A prompt, ready for the MLX thread, and how to read what comes back.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) sampling: SamplingParameters,
    pub(crate) max_tokens: u32,
    /// Whether the caller named no limit.
    pub(crate) open_ended: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) parser: ParserOptions,
    /// Whether the answer ends after its first call.
    pub(crate) one_tool_call: bool,
    is_continued: bool,
}

impl Prompt {
    /// What the answer goes on with, as far as that matters to how it reads.
    pub(crate) fn continued(&self) -> &[u32] {
        if self.is_continued { &self.ids } else { &[] }
    }
}

/// Tokenizer, template and defaults of a model.
#[derive(Debug)]
pub(crate) struct ChatModel {
    pub(crate) tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    forms: Forms,
    turn_end: Option<u32>,
    defaults: SamplingDefaults,
    reasoning: Option<ReasoningFormat>,
    tools: Option<ToolFormat>,
}

impl ChatModel {
    /// Loads the text side of a model folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, TextError> {
        // In the order in which a reader of the folder would miss them: an error names the first.
        let tokenizer = Arc::new(Tokenizer::load(folder)?);
        let template = ChatTemplate::load(folder)?;
        let forms = Forms::of_template(&template, &tokenizer.special_tokens);
        Ok(Self {
            forms,
            turn_end: forms::behind_answer(&template, forms, &tokenizer.special_tokens)
                .and_then(|rest| tokenizer.special_at_start(&rest)),
            defaults: SamplingDefaults::load(folder)?,
            reasoning: ReasoningFormat::of_template(template.source()),
            tools: ToolFormat::of_template(template.source()),
            tokenizer,
            template,
        })
    }

    /// The ids that end an answer of this model, by its own files: those that its configs list, the tokenizer's end token,
    /// and what the template writes behind an answer.
    pub(crate) fn end_ids(&self, info: &ModelInfo) -> Vec<u32> {
        let mut ids = info.end_ids.clone();
        ids.extend(self.tokenizer.end_id());
        ids.extend(self.turn_end);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Turns a conversation into a prompt. The caller's bound on the answer is cut to what the context leaves, however large
    /// it is: clients send one bound to all models, and an answer that meets the cut ends with the reason `length`.
    ///
    /// # Errors
    /// When the model can't do what is asked of it, or the prompt leaves no room for an answer.
    pub(crate) fn prepare(&self, chat: &Chat, info: &ModelInfo, now: Zoned) -> Result<Prompt, Error> {
        let text = self.render(chat, now)?;
        let ids = self.tokenizer.encode(&text).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, error.to_string()).with_param("messages").with_source(error)
        })?;
        if ids.is_empty() {
            return Err(Error::new(ErrorKind::InvalidRequest, "the prompt is empty").with_param("messages"));
        }
        if let Some(id) = ids.iter().find(|id| **id >= info.vocabulary) {
            let message = format!(
                "the tokenizer of model {:?} gives token {id}, but the model has {}",
                info.name, info.vocabulary
            );
            return Err(Error::new(ErrorKind::Engine, message));
        }
        let room = match info.max_context {
            Some(context) => room(context, ids.len())?,
            None => u32::MAX,
        };
        let wanted = chat.sampling.max_tokens.unwrap_or(if room == u32::MAX { UNBOUNDED_ANSWER } else { room });
        Ok(Prompt {
            max_tokens: wanted.clamp(1, room),
            open_ended: chat.sampling.max_tokens.is_none(),
            sampling: self.defaults.merge(&chat.sampling),
            stop: chat.sampling.stop.clone(),
            parser: self.parser(chat, &text),
            one_tool_call: chat.one_tool_call,
            is_continued: chat.ending == Ending::LastMessage,
            ids,
        })
    }

    fn parser(&self, chat: &Chat, prompt: &str) -> ParserOptions {
        let given = chat.messages.last().filter(|_| chat.ending == Ending::LastMessage).map(text);
        let is_open = |format: ReasoningFormat| match &given {
            Some(given) => format.is_open_within(given),
            None => format.is_open_after(prompt),
        };
        let begins = match &given {
            _ if self.reasoning.is_some_and(is_open) => Beginning::Reasoning,
            Some(given) if !given.trim().is_empty() => Beginning::Answer,
            _ => Beginning::Start,
        };
        let mut options = ParserOptions {
            reasoning: self.reasoning,
            begins,
            tools: if shows_tools(chat) { self.tools } else { None },
            functions: chat.tools.iter().map(|tool| tool.name.clone()).collect(),
            special: Vec::new(),
        };
        options.special = options.markers().filter(|marker| self.tokenizer.special(marker).is_some()).collect();
        options
    }

    /// The text of the prompt.
    pub(crate) fn render(&self, chat: &Chat, now: Zoned) -> Result<String, Error> {
        let source = self.template.source();
        let refuse = |param: &str, message: &str| Err(Error::new(ErrorKind::InvalidRequest, message).with_param(param));
        if shows_tools(chat) && self.tools.is_none() {
            return refuse("tools", "this model's tool calls can't be read; leave `tools` out");
        }
        if let Some(name) = RESERVED.into_iter().find(|name| chat.template_arguments.contains_key(*name)) {
            return refuse(
                &format!("chat_template_kwargs.{name}"),
                &format!("`{name}` is not the caller's to set; leave it out"),
            );
        }
        let mut arguments = chat.template_arguments.clone();
        let switch = match chat.reasoning {
            Reasoning::Default => None,
            Reasoning::On => Some(true),
            Reasoning::Off => Some(false),
        };
        if let Some(wanted) = switch {
            match (self.reasoning, source.contains("enable_thinking")) {
                (_, true) => drop(arguments.insert("enable_thinking".to_owned(), wanted.into())),
                // What it can't do it can't be told to leave, and what it always does needs no telling.
                (None, false) if !wanted => {}
                (Some(_), false) if wanted => {}
                (None, false) => return refuse("reasoning_effort", "this model doesn't reason"),
                (Some(_), false) => return refuse("reasoning_effort", "this model's reasoning can't be switched off"),
            }
        }
        let arguments = arguments.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        let is_continued = chat.ending == Ending::LastMessage;
        let mut messages: Vec<Value> = chat.messages.iter().map(|message| self.forms.message(message)).collect();
        if is_continued && let (Some(last), Some(shown)) = (chat.messages.last(), messages.last_mut()) {
            let marked = Message { content: vec![Content::Text(text(last) + END_OF_GIVEN)], ..last.clone() };
            *shown = self.forms.message(&marked);
        }
        let others: Vec<(String, Value)> = self.tokenizer.special_tokens.iter().cloned().chain(arguments).collect();
        let variables = |messages| Variables {
            messages,
            tools: shows_tools(chat).then(|| chat.tools.iter().map(forms::tool).collect()),
            add_generation_prompt: chat.ending == Ending::NewTurn,
            others: others.clone(),
        };
        let rendered = self.template.render(variables(messages), now.clone()).map_err(|error| match error {
            TemplateError::Refused(reason) => {
                // What it says of an empty conversation it doesn't say of the given text.
                let of_none = || self.template.render(variables(Vec::new()), now);
                let reason = if is_continued { unmarked(&reason, of_none) } else { reason };
                let message = TemplateError::Refused(reason).to_string();
                Error::new(ErrorKind::InvalidRequest, message).with_param("messages")
            }
            error => Error::new(ErrorKind::Engine, error.to_string()).with_source(error),
        })?;
        if !is_continued {
            return Ok(rendered);
        }
        match rendered.rfind(END_OF_GIVEN) {
            Some(end) => Ok(rendered[..end].to_owned()),
            None => refuse(
                "messages",
                "this model's template doesn't write the last message as it is, so it can't be gone on with",
            ),
        }
    }
}

/// A template's refusal without the mark of the given text's end, and without what ends a turn behind it: of what follows
/// only that is left which it says in any case.
fn unmarked(reason: &str, of_none: impl FnOnce() -> Result<String, TemplateError>) -> String {
    let Some((before, behind)) = reason.rsplit_once(END_OF_GIVEN) else { return reason.to_owned() };
    let said = match of_none() {
        Err(TemplateError::Refused(reason)) => reason,
        Ok(_) | Err(_) => String::new(),
    };
    let common =
        behind.chars().rev().zip(said.chars().rev()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    before.to_owned() + behind.get(behind.len().saturating_sub(common)..).unwrap_or_default()
}

/// Tokens that an answer may have, at least 1.
fn room(context: u32, prompt: usize) -> Result<u32, Error> {
    let used = u32::try_from(prompt).unwrap_or(u32::MAX);
    match context.saturating_sub(used) {
        0 => {
            let message = format!(
                "the prompt has {prompt} tokens, but this model's context is {context} tokens, the answer included; shorten the messages"
            );
            Err(Error::new(ErrorKind::ContextLength, message).with_param("messages"))
        }
        room => Ok(room),
    }
}

fn shows_tools(chat: &Chat) -> bool {
    !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None
}

/// What a message says.
fn text(message: &Message) -> String {
    message.content.iter().map(|Content::Text(text)| text.as_str()).collect()
}

impl SamplingDefaults {
    fn load(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("generation_config.json");
        match fs::read(&path) {
            // A damaged one counts as none, as in mlx-lm: a model can do without it.
            Ok(content) => Ok(Self::of(&metadata::parse(&content).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(TextError::Read { path, source }),
        }
    }

    /// What is no number, or none that sampling knows, is left out.
    fn of(map: &Map<String, Json>) -> Self {
        let number = |name: &str, min: f32, max: f32| {
            let value = map.get(name).and_then(metadata::number).map(|value| value as f32);
            value.filter(|value| (min..=max).contains(value))
        };
        Self {
            do_sample: map.get("do_sample").and_then(metadata::flag),
            temperature: number("temperature", 0.0, 100.0),
            top_p: number("top_p", f32::MIN_POSITIVE, 1.0),
            top_k: map.get("top_k").and_then(metadata::count).and_then(|count| u32::try_from(count).ok()),
            min_p: number("min_p", 0.0, 1.0),
            repetition_penalty: number("repetition_penalty", f32::MIN_POSITIVE, 100.0),
        }
    }

    /// The caller's wishes, else the model's defaults, else no filter and the plain distribution.
    fn merge(&self, wanted: &Sampling) -> SamplingParameters {
        let temperature = if self.do_sample == Some(false) { Some(0.0) } else { self.temperature };
        let narrow = |value: Option<f64>| value.map(|value| value as f32);
        SamplingParameters {
            temperature: narrow(wanted.temperature).or(temperature).unwrap_or(1.0),
            top_p: narrow(wanted.top_p).or(self.top_p).unwrap_or(1.0),
            min_p: narrow(wanted.min_p).or(self.min_p).unwrap_or(0.0),
            top_k: wanted.top_k.or(self.top_k).unwrap_or(0),
            repetition_penalty: narrow(wanted.repetition_penalty).or(self.repetition_penalty).unwrap_or(1.0),
            presence_penalty: narrow(wanted.presence_penalty).unwrap_or(0.0),
            frequency_penalty: narrow(wanted.frequency_penalty).unwrap_or(0.0),
            seed: wanted.seed.map(i64::cast_unsigned),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
