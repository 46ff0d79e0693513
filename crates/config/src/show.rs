//! Every effective value with where it came from, for `check --show`.

use super::{Secret, problem::Place};

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `log.sinks[1].file`
    pub key: String,
    /// As TOML text, secrets replaced by `"***"`.
    pub value: String,
    /// Who said it.
    pub place: Place,
    /// The variables within it.
    pub variables: Vec<String>,
    /// As it was said, so that two secrets can be told apart.
    pub(super) said: Secret,
}

impl Shown {
    /// Where the value came from, in words: `config.toml:12 via ${OPENAI_API_KEY}`.
    pub fn source(&self, file: &str) -> String {
        let mut source = self.place.describe(file);
        for (index, variable) in self.variables.iter().enumerate() {
            source.push_str(if index == 0 { " via " } else { ", " });
            source.push_str(&format!("${{{variable}}}"));
        }
        source
    }
}
