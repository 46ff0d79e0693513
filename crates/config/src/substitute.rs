//! `${VAR}` and `${VAR:-default}` in string values.

use super::Environment;

/// A string with its variables replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Substituted {
    pub(super) text: String,
    /// The variables that were asked for.
    pub(super) variables: Vec<String>,
}

/// Why a string's variables can't be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SubstituteError {
    /// Not set, and without a default.
    Missing(String),
    /// `${` without a closing brace.
    Unclosed,
    /// Between the braces is no variable name.
    BadName(String),
}

/// Replaces variables. `:-` also applies to a variable that is set but empty, as in a shell; `$${` stands for `${`.
pub(super) fn substitute(text: &str, environment: &Environment) -> Result<Substituted, SubstituteError> {
    let mut result = Substituted { text: String::with_capacity(text.len()), variables: Vec::new() };
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            result.text.push_str(before);
            result.text.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        result.text.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner.find('}').ok_or(SubstituteError::Unclosed)?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        if !is_variable_name(name) {
            return Err(SubstituteError::BadName(name.to_owned()));
        }
        let value = match default {
            Some(default) => environment.set(name).unwrap_or(default),
            None => environment.get(name).ok_or_else(|| SubstituteError::Missing(name.to_owned()))?,
        };
        result.text.push_str(value);
        result.variables.push(name.to_owned());
        rest = &inner[end + 1..];
    }
    result.text.push_str(rest);
    Ok(result)
}

/// The variable that a text consists of: `${VAR}` or `${VAR:-default}` and nothing beside it.
pub(super) fn lone_variable(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("${")?.strip_suffix('}')?;
    let name = inner.split_once(":-").map_or(inner, |(name, _)| name);
    (is_variable_name(name) && !inner.contains('}')).then_some(name)
}

fn is_variable_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
}
