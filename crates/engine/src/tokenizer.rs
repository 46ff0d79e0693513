//! Text to token ids and back: tokenizer.json, and what tokenizer_config.json says of special tokens.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use mlx_manager_signal::event::DecodeError;
use serde::Deserialize;
use serde_json::Value;

use super::model::file_name;

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenizerError {
    /// A file can't be read.
    #[error("can't read {}", file_name(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not valid", file_name(path))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer refused a text.
    #[error("the prompt can't be tokenized")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What tokenizer_config.json says.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    /// A template, or a list of named ones.
    pub(crate) chat_template: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Plain(String),
    Described { content: String },
}

impl SpecialToken {
    fn into_text(self) -> String {
        match self {
            Self::Plain(text) | Self::Described { content: text } => text,
        }
    }
}

/// A model's tokenizer.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens that are no text: markers of turns, of padding, and the like.
    special: HashSet<u32>,
    /// For templates; empty if there is none.
    pub(crate) bos_token: String,
    /// For templates; empty if there is none.
    pub(crate) eos_token: String,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let content = fs::read(&path).map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(content)
            .map_err(|source| TokenizerError::Invalid { path: path.clone(), source })?;
        // Some folders carry the padding and truncation of their training.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|source| TokenizerError::Invalid { path, source })?;
        let config = TokenizerConfig::load(folder)?;
        let text = |token: Option<SpecialToken>| token.map(SpecialToken::into_text).unwrap_or_default();
        let added = inner.get_added_tokens_decoder();
        let special = added.into_iter().filter_map(|(id, token)| token.special.then_some(id)).collect();
        Ok(Self { inner, special, bos_token: text(config.bos_token), eos_token: text(config.eos_token) })
    }

    /// The ids of a rendered prompt. Nothing is added: templates write the special tokens themselves.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether a token is no text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The special token of this text.
    pub(crate) fn special(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text).filter(|id| self.is_special(*id))
    }

    /// The text of ids, special tokens included; what can't be decoded is left out.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_else(|error| {
            DecodeError { error: &*error }.emit();
            String::new()
        })
    }

    /// The ids that end an answer, beside those that the model's configs name: the tokenizer's own end token, and what
    /// the families end a turn with even where their configs forget it.
    pub(crate) fn end_ids(&self, model_type: &str) -> Vec<u32> {
        let family: &[&str] = match model_type {
            "qwen2" | "qwen3" => &["<|im_end|>", "<|endoftext|>"],
            "llama" => &["<|eot_id|>", "<|eom_id|>"],
            _ => &[],
        };
        let own = (!self.eos_token.is_empty()).then(|| self.inner.token_to_id(&self.eos_token)).flatten();
        own.into_iter().chain(family.iter().filter_map(|text| self.special(text))).collect()
    }
}

impl TokenizerConfig {
    /// Reads tokenizer_config.json; a folder needn't have one.
    pub(crate) fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer_config.json");
        match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content)
                .map_err(|source| TokenizerError::Invalid { path, source: source.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(TokenizerError::Read { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_are_read_from_the_config() {
        let tokenizer = Tokenizer::load(Path::new("../../assets/demo-model")).unwrap();
        assert_eq!((tokenizer.bos_token.as_str(), tokenizer.eos_token.as_str()), ("", "<|im_end|>"));
        let mut ids = tokenizer.end_ids("qwen3");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids, [0, 2]);
        assert_eq!(tokenizer.end_ids("llama"), [2]);
        let config: TokenizerConfig =
            serde_json::from_str(r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null}"#).unwrap();
        assert_eq!(config.bos_token.unwrap().into_text(), "<s>");
    }

    #[test]
    fn a_damaged_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
        fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(matches!(Tokenizer::load(folder.path()), Err(TokenizerError::Invalid { .. })));
    }
}
