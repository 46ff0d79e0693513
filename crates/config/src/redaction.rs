//! The user's file as it may be shown: secrets replaced, positions mapped.
//!
//! A diagnostic shows source lines, and a source line may hold a key. What the parser understood is hidden exactly;
//! where the file doesn't parse, whole lines that look like they hold a secret are hidden.

use std::ops::Range;

use toml::{Spanned, de::DeValue};

const MASK: &str = "\"***\"";
const SECRET_WORDS: [&str; 9] =
    ["key", "token", "secret", "passw", "authorization", "credential", "header", "bearer", "cookie"];

/// Whether a key of this name holds a secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.ends_with("_timeout") && SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Whether a key that nobody knows may be a secret's, misspelt: `api_kye`. Likeness as for "did you mean" would take
/// "server" for "secret", so only slips count.
fn resembles_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let known =
        || SECRET_WORDS.into_iter().chain(["api_key", "apikey", "auth", "password", "passwd", "pwd", "headers"]);
    let near =
        |part: &str| known().any(|known| strsim::osa_distance(part, known) <= if known.len() < 8 { 1 } else { 2 });
    is_secret_name(&name) || name.split('_').any(near) || near(&name)
}

/// A URL without the password in it: `postgres://user:***@host`.
pub(super) fn redact_url(text: &str) -> String {
    let mut shown = text.to_owned();
    for range in passwords(text).into_iter().rev() {
        shown.replace_range(range, "***");
    }
    shown
}

/// Where a text holds `user:password@` or `password=…` of a URL: the ranges of the passwords, ascending.
fn passwords(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (start, _) in text.match_indices("://") {
        let authority = &text[start + 3..];
        let end = authority.find(['/', '?', '#', '"', '\'', ' ', '\n']).unwrap_or(authority.len());
        // A password may hold a slash or question mark that its writer forgot to encode: look for an @ beyond as well.
        let line_end = authority.find(['"', '\'', ' ', '\n']).unwrap_or(authority.len());
        let at = authority[..end].rfind('@').or_else(|| authority[..line_end].rfind('@'));
        if let Some(at) = at {
            let colon = authority[..at].find(':').map_or(0, |colon| colon + 1);
            found.push(start + 3 + colon..start + 3 + at);
        }
    }
    for word in ["password=", "sslpassword=", "apikey=", "api_key=", "token="] {
        for (start, _) in text.match_indices(word) {
            let value = &text[start + word.len()..];
            let end = value.find(['&', '"', '\'', ' ', '\n']).unwrap_or(value.len());
            found.push(start + word.len()..start + word.len() + end);
        }
    }
    found.extend(secret_parameters(text));
    merge(found)
}

/// Where the query of a URL within a text holds a key: the ranges of the values.
fn secret_parameters(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (start, _) in text.match_indices("://") {
        let end = text[start..].find(['"', '\'', ' ', '\n']).map_or(text.len(), |end| start + end);
        let Some(query) = text[start..end].find('?') else { continue };
        let mut position = start + query + 1;
        for parameter in text[position..end].split('&') {
            let name = parameter.split('=').next().unwrap_or_default();
            // Signed URLs and function keys have these names.
            if name.len() < parameter.len() && (is_secret_name(name) || ["sig", "signature", "code"].contains(&name)) {
                found.push(position + name.len() + 1..position + parameter.len());
            }
            position += parameter.len() + 1;
        }
    }
    found
}

fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A text with its secrets replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Redacted {
    pub(super) text: String,
    /// Ascending: the range in the original, and the one in `text` that took its place.
    replaced: Vec<(Range<usize>, Range<usize>)>,
}

impl Redacted {
    /// Hides the ranges given, and passwords within URLs.
    pub(super) fn new(original: &str, secrets: Vec<Range<usize>>) -> Self {
        let mut ranges = passwords(original);
        ranges.extend(secrets.into_iter().filter(|range| original.get(range.clone()).is_some()));
        let mut result = Self::default();
        let mut done = 0;
        for range in merge(ranges) {
            result.text.push_str(&original[done..range.start]);
            let start = result.text.len();
            let quoted = original[range.clone()].starts_with(['"', '\'']);
            result.text.push_str(if quoted { MASK } else { "***" });
            // Line numbers stay true when a secret spans lines.
            result.text.extend(original[range.clone()].chars().filter(|character| *character == '\n'));
            result.replaced.push((range.clone(), start..result.text.len()));
            done = range.end;
        }
        result.text.push_str(&original[done..]);
        result
    }

    /// A range of the original, in the redacted text.
    pub(super) fn map(&self, range: &Range<usize>) -> Range<usize> {
        let start = self.position(range.start, false);
        start..self.position(range.end, true).max(start)
    }

    fn position(&self, position: usize, end: bool) -> usize {
        let mut shift = 0isize;
        for (from, to) in &self.replaced {
            if position < from.start || (end && position == from.start) {
                break;
            }
            if position < from.end {
                return if end { to.end } else { to.start };
            }
            shift = to.end as isize - from.end as isize;
        }
        position.saturating_add_signed(shift)
    }
}

/// Adds the ranges of the values of secret keys, found in what the parser understood.
pub(super) fn collect_secrets(value: &Spanned<DeValue<'_>>, secret: bool, into: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table.iter() {
                collect_secrets(value, secret || is_secret_name(key.get_ref()), into);
            }
        }
        DeValue::Array(array) => array.iter().for_each(|item| collect_secrets(item, secret, into)),
        // A `${VAR}` names a secret without being one, and the reader needs to see it.
        DeValue::String(text) if text.starts_with("${") && text.ends_with('}') && !text.contains(":-") => {}
        DeValue::String(text) if text.starts_with("${") && text.ends_with(":-}") => {}
        DeValue::String(text) if text.is_empty() => {}
        DeValue::String(text) if looks_like_a_key(text) => into.push(value.span()),
        _ if secret => into.push(value.span()),
        _ => {}
    }
}

/// Adds the ranges of the values below an unknown key that may be secrets: by a name that resembles a secret's, or by a
/// value that looks like one.
pub(super) fn collect_unknown(name: &str, value: &Spanned<DeValue<'_>>, into: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        _ if resembles_secret_name(name) => collect_secrets(value, true, into),
        DeValue::Table(table) => table.iter().for_each(|(key, value)| collect_unknown(key.get_ref(), value, into)),
        DeValue::Array(array) => array.iter().for_each(|item| collect_unknown(name, item, into)),
        DeValue::String(text) => collect_secrets(value, looks_random(text), into),
        _ => {}
    }
}

/// Whether a text is long and has no shape that a person would give it.
fn looks_random(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_+=".contains(character);
    text.len() >= 20
        && text.chars().all(plain)
        && text.contains(|character: char| character.is_ascii_digit())
        && text.contains(|character: char| character.is_ascii_alphabetic())
}

fn looks_like_a_key(text: &str) -> bool {
    ["sk-", "pylf_", "Bearer ", "ghp_", "hf_"].iter().any(|prefix| text.starts_with(prefix))
}

/// Adds what follows the equals sign on every line that names a secret, for files that don't parse.
pub(super) fn collect_secret_lines(text: &str, into: &mut Vec<Range<usize>>) {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        let named = content.split(|character: char| !character.is_alphanumeric() && character != '_');
        let secret = content.contains('=') && named.into_iter().any(is_secret_name);
        let value = content.find('=').map(|equals| equals + 1);
        let comment = content.trim_start().starts_with('#');
        if let (true, false, Some(value)) = (secret, comment, value) {
            let start = value + content[value..].len() - content[value..].trim_start().len();
            into.push(offset + start..offset + content.len());
        }
        for prefix in ["sk-", "pylf_"] {
            for (start, _) in content.match_indices(prefix) {
                let end = content[start..].find(['"', '\'', ' ']).map_or(content.len(), |end| start + end);
                into.push(offset + start..offset + end);
            }
        }
        offset += line.len();
    }
}
