//! Text to token ids and back: tokenizer.json, and what tokenizer_config.json and older files say of special and added
//! tokens.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use minijinja::Value;
use mlx_manager_catalogue::metadata;
use mlx_manager_signal::event::DecodeError;
use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;

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
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// A template, or several by name.
    pub(crate) chat_template: Option<Json>,
    /// `bos_token`, `eos_token` and whatever else is named so.
    special_tokens: Vec<(String, String)>,
    /// Tokens by their ids; `None` when it is left to other files.
    added_tokens: Option<BTreeMap<u32, AddedToken>>,
}

/// A model's tokenizer.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens that are no text: markers of turns, of padding, and the like.
    special: HashSet<u32>,
    /// For templates: `bos_token`, `eos_token` and the like, as far as there are any.
    pub(crate) special_tokens: Vec<(String, Value)>,
    /// The id of `eos_token`.
    end_id: Option<u32>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let content = fs::read(&path).map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
        let mut inner = tokenizers::Tokenizer::from_bytes(content)
            .map_err(|source| TokenizerError::Invalid { path: path.clone(), source })?;
        // Some folders carry the padding and truncation of their training.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|source| TokenizerError::Invalid { path, source })?;
        let mut config = TokenizerConfig::load(folder)?;
        if config.added_tokens.is_none() {
            config.take_older_files(folder)?;
        }
        add_tokens(&mut inner, &config);
        let end = config.special_tokens.iter().find(|(name, _)| name == "eos_token");
        let added = inner.get_added_tokens_decoder();
        Ok(Self {
            special: added.into_iter().filter_map(|(id, token)| token.special.then_some(id)).collect(),
            end_id: end.and_then(|(_, text)| inner.token_to_id(text)),
            special_tokens: config.special_tokens.into_iter().map(|(name, text)| (name, text.into())).collect(),
            inner,
        })
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

    /// The id of `eos_token`, if the folder names one.
    pub(crate) fn end_id(&self) -> Option<u32> {
        self.end_id
    }

    /// The special token that a text goes on with, if only white space comes before it.
    pub(crate) fn special_at_start(&self, text: &str) -> Option<u32> {
        let text = text.trim_start();
        let added = self.inner.get_added_tokens_decoder();
        let fitting = added.iter().filter(|(_, token)| token.special && text.starts_with(&token.content));
        fitting.max_by_key(|(_, token)| token.content.len()).map(|(id, _)| *id)
    }
}

/// Adds what tokenizer.json lacks, or says otherwise than tokenizer_config.json, which has the last word in `transformers`
/// too. A token that would get another id than the one it is said to have stays out.
fn add_tokens(inner: &mut tokenizers::Tokenizer, config: &TokenizerConfig) {
    let known = inner.get_added_tokens_decoder();
    let mut next = inner.get_vocab(true).into_values().max().map_or(0, |largest| largest + 1);
    let mut tokens: Vec<AddedToken> = Vec::new();
    for (id, token) in config.added_tokens.iter().flatten() {
        let fits = match inner.token_to_id(&token.content) {
            Some(own) => own == *id && known.get(id) != Some(token),
            None if *id == next => {
                next += 1;
                true
            }
            None => false,
        };
        if fits {
            tokens.push(token.clone());
        }
    }
    // A special token that is in the vocabulary alone would be cut into pieces where a template writes it.
    for (_, text) in &config.special_tokens {
        let is_added = known.values().chain(&tokens).any(|token| token.content == *text);
        if !is_added && inner.token_to_id(text).is_some() {
            tokens.push(AddedToken::from(text.as_str(), true));
        }
    }
    inner.add_tokens(&tokens);
}

impl TokenizerConfig {
    /// Reads tokenizer_config.json; a folder needn't have one.
    pub(crate) fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer_config.json");
        Ok(read(&path)?.map(|map| Self::of(&map)).unwrap_or_default())
    }

    /// Reads the text of such a file.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self, TokenizerError> {
        let map = metadata::parse(text);
        map.map(|map| Self::of(&map))
            .map_err(|source| TokenizerError::Invalid { path: path.to_owned(), source: source.into() })
    }

    fn of(map: &Map<String, Json>) -> Self {
        let added = map.get("added_tokens_decoder").and_then(Json::as_object);
        let added = added.map(|tokens| {
            let token = |(id, token): (&String, &Json)| Some((id.parse().ok()?, added_token(token)?));
            tokens.iter().filter_map(token).collect()
        });
        Self {
            chat_template: map.get("chat_template").filter(|template| !template.is_null()).cloned(),
            special_tokens: special_tokens(map),
            added_tokens: added,
        }
    }

    /// What tokenizer_config.json says today was in two more files once.
    fn take_older_files(&mut self, folder: &Path) -> Result<(), TokenizerError> {
        if let Some(map) = read(&folder.join("special_tokens_map.json"))? {
            for (name, text) in special_tokens(&map) {
                if !self.special_tokens.iter().any(|(known, _)| *known == name) {
                    self.special_tokens.push((name, text));
                }
            }
        }
        if let Some(map) = read(&folder.join("added_tokens.json"))? {
            let token = |(text, id): (&String, &Json)| {
                let special = self.special_tokens.iter().any(|(_, special)| special == text);
                let id = metadata::count(id).and_then(|id| u32::try_from(id).ok())?;
                Some((id, AddedToken::from(text.as_str(), special).normalized(!special)))
            };
            self.added_tokens = Some(map.iter().filter_map(token).collect());
        }
        Ok(())
    }
}

/// An object in a file, which needn't be there.
fn read(path: &Path) -> Result<Option<Map<String, Json>>, TokenizerError> {
    match fs::read(path) {
        Ok(text) => metadata::parse(&text)
            .map(Some)
            .map_err(|source| TokenizerError::Invalid { path: path.to_owned(), source: source.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

/// A token is a text, or an object that holds one.
fn token_text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str()).filter(|text| !text.is_empty())
}

fn special_tokens(map: &Map<String, Json>) -> Vec<(String, String)> {
    let more = map.get("extra_special_tokens").and_then(Json::as_object);
    let named = map.iter().filter(|(name, _)| name.ends_with("_token")).chain(more.into_iter().flatten());
    named.filter_map(|(name, token)| Some((name.clone(), token_text(token)?.to_owned()))).collect()
}

fn added_token(token: &Json) -> Option<AddedToken> {
    let flag = |name: &str| token.get(name).and_then(metadata::flag).unwrap_or(false);
    let special = flag("special");
    let mut added = AddedToken::from(token_text(token)?, special);
    added.single_word = flag("single_word");
    added.lstrip = flag("lstrip");
    added.rstrip = flag("rstrip");
    added.normalized = token.get("normalized").and_then(metadata::flag).unwrap_or(!special);
    Some(added)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn special_tokens_are_read_from_the_config() {
        let tokenizer = Tokenizer::load(Path::new("../../assets/demo-model")).unwrap();
        let named = |name: &str| {
            tokenizer.special_tokens.iter().find(|(known, _)| known == name).map(|(_, text)| text.to_string())
        };
        assert_eq!((named("bos_token"), named("eos_token").as_deref()), (None, Some("<|im_end|>")));
        assert_eq!(tokenizer.end_id(), Some(2));
        assert_eq!(tokenizer.special_at_start(" \n<|im_end|>\n"), Some(2));
        assert_eq!(tokenizer.special_at_start("and <|im_end|>"), None);
        let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null, "model_max_length": 1e30, "pad_token": 7}"#;
        let config = TokenizerConfig::parse(Path::new("tokenizer_config.json"), config.as_bytes()).unwrap();
        assert_eq!(config.special_tokens, [("bos_token".to_owned(), "<s>".to_owned())]);
    }

    /// A tokenizer of four words, of which one is added.
    fn folder(files: &[(&str, Json)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
            "added_tokens": [{"id": 3, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": false}],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "hi": 1, "<end>": 2}, "unk_token": "<unk>"},
        });
        for (name, content) in [("tokenizer.json", tokenizer)].iter().chain(files) {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        folder
    }

    fn ids(files: &[(&str, Json)]) -> Vec<u32> {
        Tokenizer::load(folder(files).path()).unwrap().encode("hi<end>hi<x>hi<y>").unwrap()
    }

    #[test]
    fn tokens_are_added_from_every_file_that_may_name_them() {
        let plain = ids(&[]);
        assert!(!plain.contains(&2) && plain.contains(&3) && !plain.contains(&4), "{plain:?}");
        let token = |content: &str| json!({"content": content, "special": true, "normalized": false});
        let config = json!({"eos_token": "<end>", "added_tokens_decoder": {"4": token("<y>"), "3": token("<x>"), "2": token("<end>")}});
        assert_eq!(ids(&[("tokenizer_config.json", config)]), [1, 2, 1, 3, 1, 4]);
        // One that is special by its name alone, and those of older files.
        let config = json!({"eos_token": {"content": "<end>"}});
        assert_eq!(
            ids(&[("tokenizer_config.json", config.clone()), ("added_tokens.json", json!({"<y>": 4}))]),
            [1, 2, 1, 3, 1, 4]
        );
        assert_eq!(
            ids(&[("special_tokens_map.json", config), ("added_tokens.json", json!({"<y>": 4}))]),
            [1, 2, 1, 3, 1, 4]
        );
        // It would get the id 4.
        let far = json!({"added_tokens_decoder": {"9": token("<y>"), "odd": token("<z>"), "5": 7}});
        assert_eq!(ids(&[("tokenizer_config.json", far)]), plain);
    }

    #[test]
    fn the_config_says_what_is_special() {
        let folder = folder(&[(
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"3": {"content": "<x>", "special": true}}}),
        )]);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(tokenizer.special_at_start("<x>"), Some(3));
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
