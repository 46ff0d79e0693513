//! Chat templates: from a conversation to the text of a prompt.
//!
//! Templates are written for Python's Jinja2 as Hugging Face's `transformers` sets it up; minijinja is set up alike here:
//! blocks are trimmed, Python's methods work, `tojson` writes what `json.dumps` would.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Zoned;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{
    json,
    model::file_name,
    tokenizer::{TokenizerConfig, TokenizerError},
};

/// Instructions that a rendering may take: far beyond any conversation, and the end of a template that loops.
const FUEL: u64 = 50_000_000;

const DEFAULT: &str = "default";
/// What `transformers` calls the template for requests with tools, where a model has several.
const WITH_TOOLS: &str = "tool_use";

/// Why a template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A file can't be read.
    #[error("can't read {}", file_name(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// tokenizer_config.json is damaged.
    #[error(transparent)]
    Config(#[from] TokenizerError),
    /// The folder has no template, so the model isn't made for conversations.
    #[error(
        "{} has no chat template: neither chat_template.jinja nor tokenizer_config.json gives one",
        file_name(folder)
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// The template is not valid.
    #[error("the model's chat template is not valid")]
    Invalid(#[source] Error),
    /// The template doesn't take the conversation: the reason is its author's.
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the model's chat template failed")]
    Render(#[source] Error),
}

/// What a template is rendered with.
#[derive(Debug, Serialize)]
pub(crate) struct Variables<'a> {
    /// The conversation.
    pub(crate) messages: Vec<Json>,
    /// The functions; undefined when there are none, as templates ask for either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tools: Option<Vec<Json>>,
    /// Whether the prompt ends where the assistant begins to speak.
    pub(crate) add_generation_prompt: bool,
    /// The token that begins a text.
    pub(crate) bos_token: &'a str,
    /// The token that ends a text.
    pub(crate) eos_token: &'a str,
    /// Whatever else the caller set.
    #[serde(flatten)]
    pub(crate) others: Map<String, Json>,
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
        let named = sources(folder)?;
        let find = |wanted: &str| named.iter().find(|(name, _)| name == wanted).map(|(_, source)| source.as_str());
        let Some(default) = find(DEFAULT).or_else(|| named.first().map(|(_, source)| source.as_str())) else {
            return Err(TemplateError::Missing { folder: folder.to_owned() });
        };
        Self::new(default, find(WITH_TOOLS))
    }

    pub(crate) fn new(default: &str, with_tools: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = environment()?;
        let mut add = |name: &'static str, source: &str| {
            environment.add_template_owned(name, without_generation_tags(source)).map_err(TemplateError::Invalid)
        };
        add(DEFAULT, default)?;
        if let Some(source) = with_tools {
            add(WITH_TOOLS, source)?;
        }
        let source = with_tools.unwrap_or(default).to_owned();
        Ok(Self { environment, has_variant_for_tools: with_tools.is_some(), source })
    }

    /// The text of the template, the one for tools if there are two: it tells the model's formats.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The prompt. `now` is what the template may write as today's date.
    pub(crate) fn render(&self, variables: &Variables<'_>, now: Zoned) -> Result<String, TemplateError> {
        let name = if self.has_variant_for_tools && variables.tools.is_some() { WITH_TOOLS } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(TemplateError::Invalid)?;
        let strftime_now = Value::from_function(move |format: String| {
            jiff::fmt::strtime::format(format, &now).map_err(|error| {
                Error::new(ErrorKind::InvalidOperation, "strftime_now: no such format").with_source(error)
            })
        });
        let context =
            minijinja::context! { strftime_now, ..minijinja::Value::from(minijinja::value::Serde(variables)) };
        template.render(context).map_err(|error| {
            match std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Refusal>()) {
                Some(Refusal(reason)) => TemplateError::Refused(reason.clone()),
                None => TemplateError::Render(error),
            }
        })
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
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(reason)))
    });
    Ok(environment)
}

fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let style = json::Style {
        indent: options.get("indent")?,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        separators: match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two strings")),
            None => None,
        },
    };
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let fault = |error| Error::new(ErrorKind::InvalidOperation, "tojson: not a JSON value").with_source(error);
    let mut value = serde_json::to_value(value).map_err(fault)?;
    if sorted {
        value.sort_all_objects();
    }
    json::write(&value, style).map(Value::from).map_err(fault)
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The templates of a folder by name, in the order in which `transformers` looks for them.
fn sources(folder: &Path) -> Result<Vec<(String, String)>, TemplateError> {
    let mut named = Vec::new();
    if let Some(source) = read(folder.join("chat_template.jinja"))? {
        named.push((DEFAULT.to_owned(), source));
        if let Some(source) = read(folder.join("additional_chat_templates").join("tool_use.jinja"))? {
            named.push((WITH_TOOLS.to_owned(), source));
        }
        return Ok(named);
    }
    let mut config = TokenizerConfig::load(folder)?;
    if config.chat_template.is_none() {
        let path = folder.join("chat_template.json");
        if let Some(text) = read(path.clone())? {
            let invalid = |error: serde_json::Error| TokenizerError::Invalid { path, source: error.into() };
            config = serde_json::from_str(&text).map_err(invalid)?;
        }
    }
    match config.chat_template {
        Some(Json::String(source)) => named.push((DEFAULT.to_owned(), source)),
        Some(list @ Json::Array(_)) => {
            let invalid = |error: serde_json::Error| TokenizerError::Invalid {
                path: folder.join("tokenizer_config.json"),
                source: error.into(),
            };
            let list: Vec<NamedTemplate> = serde_json::from_value(list).map_err(invalid)?;
            named.extend(list.into_iter().map(|entry| (entry.name, entry.template)));
        }
        _ => {}
    }
    Ok(named)
}

fn read(path: PathBuf) -> Result<Option<String>, TemplateError> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Read { path, source }),
    }
}

/// `{% generation %}` marks what a training learns from and means nothing here. It becomes `{% if true %}`, which keeps
/// the tags' effect on white space.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        let replacement = ["endgeneration", "generation"].into_iter().zip(["endif", "if true"]);
        let found = replacement.into_iter().find(|(name, _)| {
            let after = inner.strip_prefix(name).map(|after| after.trim_start().trim_start_matches(['-', '+']));
            after.is_some_and(|after| after.starts_with("%}"))
        });
        match found {
            Some((name, replacement)) => {
                result.push_str(&tag[..tag.len() - inner.len()]);
                result.push_str(replacement);
                rest = &inner[name.len()..];
            }
            None => rest = tag,
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render_with(source: &str, others: Json) -> Result<String, TemplateError> {
        let Json::Object(others) = others else { panic!("an object") };
        let variables = Variables {
            messages: vec![],
            tools: None,
            add_generation_prompt: true,
            bos_token: "<s>",
            eos_token: "",
            others,
        };
        let now = "2026-11-20T09:05:00[UTC]".parse().unwrap();
        ChatTemplate::new(source, None)?.render(&variables, now)
    }

    fn check(source: &str, others: Json, expected: &str) {
        assert_eq!(render_with(source, others).unwrap(), expected, "{source}");
    }

    #[test]
    fn json_is_written_as_python_does() {
        let value = json!({"x": {"b": [1, 2.5, null, true], "a": "<é & \"q\">", "e": {}, "l": []}});
        check(
            "{{ x | tojson }}",
            value.clone(),
            r#"{"b": [1, 2.5, null, true], "a": "<é & \"q\">", "e": {}, "l": []}"#,
        );
        check(
            "{{ x | tojson(indent=2) }}",
            value.clone(),
            "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"a\": \"<é & \\\"q\\\">\",\n  \"e\": {},\n  \"l\": []\n}",
        );
        check("{{ x.a | tojson(ensure_ascii=true) }}", value.clone(), r#""<\u00e9 & \"q\">""#);
        check(
            "{{ x | tojson(sort_keys=true, separators=(',', ':')) }}",
            value,
            r#"{"a":"<é & \"q\">","b":[1,2.5,null,true],"e":{},"l":[]}"#,
        );
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        check("{% for i in [1, 2] %}\n  {% if true %}\n{{ i }}\n  {% endif %}\n{% endfor %}", json!({}), "1\n2\n");
        check("a\n  {%- generation -%}\n b {% endgeneration %}\nc", json!({}), "ab c");
        check("{%generation%}b{%   endgeneration   %}c{{ generation }}", json!({"generation": 1}), "bc1");
    }

    #[test]
    fn python_works_where_templates_use_it() {
        check("{{ x.strip().split('|')[1].upper() }}{{ y.get('k', 3) }}", json!({"x": " a|b ", "y": {}}), "B3");
        check(
            "{% for k, v in y.items() %}{{ k }}={{ v }};{% endfor %}",
            json!({"y": {"z": true, "a": null}}),
            "z=True;a=None;",
        );
        check("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", json!({}), "01");
        check("{{ x[::-1] }}{{ x[:-1] }}{{ bos_token }}{{ missing }}", json!({"x": "abc"}), "cbaab<s>");
        check("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", json!({}), "2");
        check("{{ strftime_now('%d %b %Y') }}", json!({}), "20 Nov 2026");
        check("{% if tools is defined %}a{% else %}b{% endif %}", json!({}), "b");
    }

    #[test]
    fn a_refusal_carries_the_reason() {
        let error = render_with("{{ raise_exception('Roles must alternate') }}", json!({})).unwrap_err();
        assert!(matches!(&error, TemplateError::Refused(reason) if reason == "Roles must alternate"), "{error:?}");
        // Also from within a macro and a loop.
        let error = render_with(
            "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}",
            json!({}),
        );
        assert!(matches!(error, Err(TemplateError::Refused(reason)) if reason == "no"));
    }

    #[test]
    fn a_template_that_loops_is_stopped() {
        let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(render_with(source, json!({})), Err(TemplateError::Render(_))));
    }

    #[test]
    fn templates_are_found_in_every_place() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let variables = |tools: Option<Vec<Json>>| Variables {
            messages: vec![],
            tools,
            add_generation_prompt: true,
            bos_token: "",
            eos_token: "",
            others: Map::new(),
        };
        let render =
            |tools| ChatTemplate::load(folder.path()).unwrap().render(&variables(tools), Zoned::default()).unwrap();
        assert!(matches!(ChatTemplate::load(folder.path()), Err(TemplateError::Missing { .. })));
        write("chat_template.json", r#"{"chat_template": "of its own"}"#);
        assert_eq!(render(None), "of its own");
        write("tokenizer_config.json", r#"{"chat_template": "in the config"}"#);
        assert_eq!(render(None), "in the config");
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "with tools"}, {"name": "default", "template": "plain"}]}"#,
        );
        assert_eq!((render(None), render(Some(vec![json!({})]))), ("plain".to_owned(), "with tools".to_owned()));
        write("chat_template.jinja", "in a file");
        assert_eq!(render(Some(vec![json!({})])), "in a file");
        write("chat_template.jinja", "{% if %}");
        assert!(matches!(ChatTemplate::load(folder.path()), Err(TemplateError::Invalid(_))));
    }
}
