//! A value that beats the file's.

use toml::de::{DeArray, DeValue};

use super::problem::Place;

/// A value that beats the file's.
#[derive(Debug, Clone)]
pub(super) struct Overlay<'a> {
    pub(super) text: &'a str,
    pub(super) place: Place,
}

impl<'a> Overlay<'a> {
    /// The value as a list, which is written as in the file: `["a", "b"]`.
    pub(super) fn list(&self) -> Option<DeArray<'a>> {
        match DeValue::parse(self.text).ok()?.into_inner() {
            DeValue::Array(array) => Some(array),
            _ => None,
        }
    }
}
