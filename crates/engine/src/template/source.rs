//! Where a model's folder has its chat templates, and what of their text minijinja reads otherwise than Jinja.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use minijinja::{Error, ErrorKind};
use serde::Deserialize;

use super::{DEFAULT, FUEL, Limit, Refusal, WITH_TOOLS};
use crate::{
    model::file_name,
    tokenizer::{TokenizerConfig, TokenizerError},
};

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
    /// The template asks for more than a rendering may take.
    #[error("the model's chat template was stopped at the limit of a rendering: {0}")]
    Limit(Limit),
    /// The template failed.
    #[error("the model's chat template failed")]
    Render(#[source] Error),
}

impl TemplateError {
    /// What a rendering ended with.
    pub(super) fn of_rendering(error: Error) -> Self {
        if error.kind() == ErrorKind::OutOfFuel {
            return Self::Limit(Limit::Steps(FUEL));
        }
        // Blocks wrap the errors of what is in them.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(known) = cause {
            if let Some(Refusal(reason)) = known.downcast_ref() {
                return Self::Refused(reason.clone());
            }
            if let Some(limit) = known.downcast_ref::<Limit>() {
                return Self::Limit(limit.clone());
            }
            if known.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
                return Self::Limit(Limit::Steps(FUEL));
            }
            cause = known.source();
        }
        Self::Render(error)
    }
}

/// The templates of a folder.
pub(super) struct Sources {
    pub(super) default: String,
    pub(super) with_tools: Option<String>,
}

/// `chat_template` of tokenizer_config.json: a template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    One(String),
    List(Vec<Named>),
    ByName(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Sources {
    /// Finds them as `transformers` does: files of their own come before tokenizer_config.json, and one that is only for
    /// tools leaves the other to it.
    pub(super) fn read(folder: &Path) -> Result<Self, TemplateError> {
        let own = read(folder.join("chat_template.jinja"))?;
        let for_tools = read(folder.join("additional_chat_templates").join(format!("{WITH_TOOLS}.jinja")))?;
        if let Some(default) = own {
            return Ok(Self { default, with_tools: for_tools });
        }
        let mut config = TokenizerConfig::load(folder)?;
        let mut path = folder.join("tokenizer_config.json");
        if config.chat_template.is_none() {
            path = folder.join("chat_template.json");
            if let Some(text) = read(path.clone())? {
                config = TokenizerConfig::parse(&path, text.as_bytes())?;
            }
        }
        let missing = || TemplateError::Missing { folder: folder.to_owned() };
        let given = config.chat_template.ok_or_else(missing)?;
        let given: Given = serde_json::from_value(given).map_err(|_| TokenizerError::Invalid {
            path,
            source: "`chat_template` is neither a template nor a list of named ones".into(),
        })?;
        let named: Vec<(String, String)> = match given {
            Given::One(source) => vec![(DEFAULT.to_owned(), source)],
            Given::List(list) => list.into_iter().map(|entry| (entry.name, entry.template)).collect(),
            Given::ByName(map) => map.into_iter().collect(),
        };
        let find = |wanted: &str| named.iter().find(|(name, _)| name == wanted).map(|(_, source)| source.clone());
        let default = find(DEFAULT).or_else(|| named.first().map(|(_, source)| source.clone())).ok_or_else(missing)?;
        Ok(Self { default, with_tools: for_tools.or_else(|| find(WITH_TOOLS)) })
    }
}

fn read(path: PathBuf) -> Result<Option<String>, TemplateError> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Read { path, source }),
    }
}

/// A template as minijinja is to see it. Jinja reads every line end as LF, and a mark of the byte order is none of the text.
pub(super) fn prepared(source: &str) -> String {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"))
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
