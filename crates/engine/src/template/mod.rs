//! Chat templates: from a conversation to the text of a prompt.
//!
//! Templates are written for Python's Jinja2 as Hugging Face's `transformers` sets it up; minijinja is set up alike here:
//! blocks are trimmed, Python's methods work, `tojson` writes what `json.dumps` would.

mod filters;
mod limit;
mod methods;
mod source;
mod strftime;
mod text;

use std::path::Path;

use jiff::Zoned;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, machinery, syntax::SyntaxConfig};

pub(crate) use self::{limit::Limit, source::TemplateError};
use self::{
    limit::{Charged, meter},
    source::Sources,
    text::Text,
};

/// Instructions that a rendering may take: far beyond any conversation, and the end of a template that loops.
const FUEL: u64 = 50_000_000;

const DEFAULT: &str = "default";
/// What `transformers` calls the template for requests with tools, where a model has several.
const WITH_TOOLS: &str = "tool_use";

/// What a template is rendered with.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    /// The conversation.
    pub(crate) messages: Vec<Value>,
    /// The functions; templates are told `none` when there are none.
    pub(crate) tools: Option<Vec<Value>>,
    /// Whether the prompt begins a turn of the model's.
    pub(crate) add_generation_prompt: bool,
    /// Special tokens by their names, `bos_token` and whatever else the model's folder names, and what the caller set.
    pub(crate) others: Vec<(String, Value)>,
}

/// A model's chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    has_variant_for_tools: bool,
    source: String,
}

impl ChatTemplate {
    /// Loads the template of a model folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, TemplateError> {
        let sources = Sources::read(folder)?;
        Self::new(&sources.default, sources.with_tools.as_deref())
    }

    pub(crate) fn new(default: &str, with_tools: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = environment()?;
        let mut add = |name: &'static str, source: &str| {
            environment.add_template_owned(name, source::prepared(source)).map_err(TemplateError::Invalid)
        };
        add(DEFAULT, default)?;
        if let Some(source) = with_tools {
            add(WITH_TOOLS, source)?;
        }
        for (_, template) in environment.templates() {
            Charged::new(machinery::get_compiled_template(&template), 0).map_err(TemplateError::Invalid)?;
        }
        let source = with_tools.unwrap_or(default).to_owned();
        Ok(Self { environment, has_variant_for_tools: with_tools.is_some(), source })
    }

    /// The text of the template, the one for tools if there are two: it tells the model's formats.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The prompt. `now` is what the template may write as today's date.
    pub(crate) fn render(&self, variables: Variables, now: Zoned) -> Result<String, TemplateError> {
        let name = if self.has_variant_for_tools && variables.tools.is_some() { WITH_TOOLS } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(TemplateError::Invalid)?;
        let context = variables.into_context(now);
        let charged = Charged::new(machinery::get_compiled_template(&template), limit::bytes(&context))
            .map_err(TemplateError::Invalid)?;
        let mut prompt = String::new();
        let mut output = machinery::make_string_output(&mut prompt);
        let rendered = machinery::eval(
            &self.environment,
            &charged.instructions,
            context,
            &charged.blocks,
            &mut output,
            AutoEscape::None,
        );
        match rendered.map(drop) {
            Ok(()) => Ok(prompt),
            Err(error) => Err(TemplateError::of_rendering(error)),
        }
    }
}

impl Variables {
    fn into_context(self, now: Zoned) -> Value {
        let strftime_now = Value::from_function(move |format: &str| strftime::format(format, &now));
        let tools = self.tools.map_or(Value::from(()), Value::from);
        let own = [
            ("messages", Value::from(self.messages)),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(self.add_generation_prompt)),
            ("strftime_now", strftime_now),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        Value::from_pairs(own.chain(self.others))
    }
}

/// What a template said to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn environment() -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(TemplateError::Invalid)?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|output, state: &mut State<'_, '_>, value| {
        let meter = meter(state);
        if let Some(text) = value.as_str() {
            meter.charge(text.len())?;
            return Ok(output.write_str(text)?);
        }
        let mut text = Text::new(meter);
        text::write(&mut text, value)?;
        Ok(output.write_str(&text.finish(meter)?)?)
    });
    environment.set_fuel(Some(FUEL));
    filters::add(&mut environment);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(reason)))
    });
    Ok(environment)
}

#[cfg(test)]
mod tests;
