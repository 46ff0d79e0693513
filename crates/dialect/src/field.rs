//! Reading the fields of a request with errors that name the field: `messages[2].content[0]`.
//!
//! Errors say what is wrong and what would be right; of the caller's values they quote numbers only, never text.

use std::fmt::Display;

use bytes::Bytes;
use mlx_manager_llm::{Body, Chat, Error, ErrorKind, Role};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Names longer than this are cut in messages, whatever a caller sends as a field name.
const MAX_NAME_CHARS: usize = 80;
/// The longest model name; it becomes an attribute of everything the request leaves behind.
pub(super) const MAX_MODEL_BYTES: usize = 256;

/// A 400 about `path`; the message reads "`path` problem".
pub(super) fn invalid(path: &str, problem: impl Display) -> Error {
    let shown: String = path.chars().take(MAX_NAME_CHARS).collect();
    Error::new(ErrorKind::InvalidRequest, format!("`{shown}` {problem}")).with_param(shown)
}

/// A 400 for what a provider may do and a local model can't.
pub(super) fn unsupported(path: &str) -> Error {
    invalid(path, "is not supported by local models; remove it or route the model to a provider")
}

/// Finds the fields of a body.
///
/// # Errors
/// When it is no JSON, no object, or has absurdly many fields.
pub(super) fn body(bytes: Bytes) -> Result<Body, Error> {
    Body::parse(bytes).map_err(|error| Error::new(ErrorKind::InvalidRequest, error.to_string()))
}

/// The top-level fields of a body; a null field counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub &'a Body);

impl<'a> Fields<'a> {
    pub(super) fn raw(self, name: &str) -> Option<&'a str> {
        self.0.get(name).filter(|value| *value != "null")
    }

    pub(super) fn read<T: DeserializeOwned>(self, name: &str, expected: impl Display) -> Result<Option<T>, Error> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        serde_json::from_str(raw).map(Some).map_err(|_| invalid(name, format_args!("must be {expected}")))
    }

    /// A field that this dialect doesn't define: what it means is up to the target, so an odd value is no error here.
    pub(super) fn lenient<T: DeserializeOwned>(self, name: &str) -> Option<T> {
        self.raw(name).and_then(|raw| serde_json::from_str(raw).ok())
    }

    pub(super) fn model(self) -> Result<String, Error> {
        let model: String = self.read("model", "a string")?.ok_or_else(|| invalid("model", "is required"))?;
        if model.is_empty() {
            return Err(invalid("model", "must not be empty"));
        }
        if model.len() > MAX_MODEL_BYTES {
            return Err(invalid("model", format_args!("must be at most {MAX_MODEL_BYTES} bytes long")));
        }
        Ok(model)
    }

    /// Checks that there is a conversation, without reading it: for a provider it stays as it is.
    pub(super) fn check_messages(self) -> Result<(), Error> {
        let raw = self.raw("messages").ok_or_else(|| invalid("messages", "is required"))?;
        let Some(rest) = raw.strip_prefix('[') else {
            return Err(invalid("messages", "must be an array"));
        };
        if rest.trim_start().starts_with(']') {
            return Err(invalid("messages", "must hold at least one message"));
        }
        Ok(())
    }

    pub(super) fn flag(self, name: &str) -> Result<Option<bool>, Error> {
        self.read(name, "true or false")
    }

    /// A number from `min` to `max`, both allowed.
    pub(super) fn number(self, name: &str, min: f64, max: f64) -> Result<Option<f64>, Error> {
        let value: Option<f64> = self.read(name, format_args!("a number from {min} to {max}"))?;
        match value {
            Some(value) if !(min..=max).contains(&value) => {
                Err(invalid(name, format_args!("must be a number from {min} to {max}, but is {value}")))
            }
            value => Ok(value),
        }
    }

    /// A share that is not nothing: `top_p`.
    pub(super) fn share(self, name: &str) -> Result<Option<f64>, Error> {
        match self.number(name, 0.0, 1.0)? {
            Some(value) if value <= 0.0 => Err(invalid(name, "must be greater than 0 and at most 1, but is 0")),
            value => Ok(value),
        }
    }

    /// A whole number of at least `min`. What is beyond `u32` is no limit any more and becomes its maximum.
    pub(super) fn count(self, name: &str, min: u32) -> Result<Option<u32>, Error> {
        let value: Option<i128> = self.read(name, format_args!("a whole number of at least {min}"))?;
        match value {
            Some(value) if value < i128::from(min) => {
                Err(invalid(name, format_args!("must be a whole number of at least {min}, but is {value}")))
            }
            value => Ok(value.map(|value| u32::try_from(value).unwrap_or(u32::MAX))),
        }
    }

    /// A field as a tree, to be read by [`Node`].
    pub(super) fn tree(self, name: &str) -> Result<Option<Value>, Error> {
        self.read(name, "valid JSON that is nested less deeply")
    }
}

/// A value within a body and the way to it.
#[derive(Clone)]
pub(super) struct Node<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Node<'a> {
    pub(super) fn new(path: impl Into<String>, value: &'a Value) -> Self {
        Self { value, path: path.into() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    pub(super) fn wrong(&self, problem: impl Display) -> Error {
        invalid(&self.path, problem)
    }

    pub(super) fn unsupported(&self) -> Error {
        unsupported(&self.path)
    }

    pub(super) fn text(&self) -> Result<&'a str, Error> {
        self.value.as_str().ok_or_else(|| self.wrong("must be a string"))
    }

    pub(super) fn flag(&self) -> Result<bool, Error> {
        self.value.as_bool().ok_or_else(|| self.wrong("must be true or false"))
    }

    pub(super) fn list(&self) -> Result<Vec<Node<'a>>, Error> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("must be an array"))?;
        let node = |(index, value)| Node { value, path: format!("{}[{index}]", self.path) };
        Ok(items.iter().enumerate().map(node).collect())
    }

    /// The fields that aren't null.
    pub(super) fn fields(&self) -> Result<Vec<(&'a str, Node<'a>)>, Error> {
        let fields = self.value.as_object().ok_or_else(|| self.wrong("must be an object"))?;
        let node = |(name, value): (&'a String, &'a Value)| (name.as_str(), self.child(name, value));
        Ok(fields.iter().filter(|(_, value)| !value.is_null()).map(node).collect())
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Node<'a>>, Error> {
        let fields = self.value.as_object().ok_or_else(|| self.wrong("must be an object"))?;
        Ok(fields.get(name).filter(|value| !value.is_null()).map(|value| self.child(name, value)))
    }

    pub(super) fn need(&self, name: &str) -> Result<Node<'a>, Error> {
        self.get(name)?.ok_or_else(|| invalid(&format!("{}.{name}", self.path), "is required"))
    }

    /// Refuses every field but these.
    pub(super) fn only(&self, allowed: &[&str]) -> Result<(), Error> {
        match self.fields()?.into_iter().find(|(name, _)| !allowed.contains(name)) {
            Some((_, field)) => Err(field.unsupported()),
            None => Ok(()),
        }
    }

    fn child(&self, name: &str, value: &'a Value) -> Self {
        Node { value, path: format!("{}.{name}", self.path) }
    }
}

/// Stop sequences of a local answer, of which each byte of text meets every one. What a provider takes it says itself.
const MAX_STOPS: usize = 1000;
/// All their bytes.
const MAX_STOP_BYTES: usize = 64 << 10;

/// Checks that the last message can be gone on with; `name` asks for it.
pub(super) fn check_continued(name: &str, chat: &Chat) -> Result<(), Error> {
    match chat.messages.last() {
        Some(message) if message.role == Role::Assistant && message.tool_calls.is_empty() => Ok(()),
        _ => Err(invalid(name, "needs a conversation that ends with text of the assistant's")),
    }
}

/// Refuses stop sequences that are too many for a local model.
pub(super) fn bound_stops(name: &str, stop: &[String]) -> Result<(), Error> {
    let bytes: usize = stop.iter().map(String::len).sum();
    if stop.len() > MAX_STOPS {
        return Err(invalid(name, format_args!("must hold at most {MAX_STOPS} strings, but holds {}", stop.len())));
    }
    if bytes > MAX_STOP_BYTES {
        let problem = format_args!("must have at most {MAX_STOP_BYTES} bytes in all, but has {bytes}");
        return Err(invalid(name, problem));
    }
    Ok(())
}

/// Stop sequences: none may be empty, for an empty one would match at once.
pub(super) fn check_stop(name: &str, stop: Vec<String>) -> Result<Vec<String>, Error> {
    match stop.iter().position(String::is_empty) {
        Some(index) => Err(invalid(&format!("{name}[{index}]"), "must not be empty")),
        None => Ok(stop),
    }
}
