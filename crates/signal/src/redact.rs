//! The one gate through which content reaches telemetry: whatever looks like a secret is replaced by a note that says why.
//!
//! A text that names a secret is replaced as a whole, since nobody can tell where in it the secret begins. JSON is looked
//! into key by key, JSON inside of JSON strings too.

use std::{borrow::Cow, fmt, sync::Arc};

use serde_json::Value;

/// Whether a terminal, or a reader, could take a character for something else than text: control characters (C0, DEL,
/// C1), line separators and the marks that turn the direction of text.
pub fn is_forgeable(character: char) -> bool {
    matches!(character,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}'
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Words that give a secret away, in keys and in values, and after them those that are too short to be looked for inside of
/// others; by their first letter. A space stands for an optional `.`, `_`, `-` or space.
fn words(letter: u8) -> (&'static [&'static str], &'static [&'static str]) {
    match letter.to_ascii_lowercase() {
        b'a' => (&["api key", "access key", "access token", "auth token"], &["api token"]),
        b'b' => (&["bearer "], &[]),
        b'c' => (&["credential", "cookie", "credit card"], &["csrf"]),
        b'i' => (&[], &["id token"]),
        b'j' => (&[], &["jwt"]),
        b'm' => (&["mysql pwd"], &[]),
        b'p' => (&["password", "passwd", "passphrase", "private key"], &["pwd"]),
        b'r' => (&["refresh token"], &[]),
        b's' => (&["secret", "session", "social security"], &["ssn"]),
        b't' => (&[], &["token"]),
        b'x' => (&[], &["xsrf"]),
        _ => (&[], &[]),
    }
}

/// How tokens of well-known issuers begin, and how many letters follow at least.
const TOKENS: [(&str, usize); 10] = [
    ("sk-", 16),
    ("pylf_v1_", 16),
    ("ghp_", 20),
    ("github_pat_", 20),
    ("hf_", 20),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("AKIA", 16),
    ("AIza", 30),
    ("eyJ", 24),
];

/// Whether any of the words or tokens, or "auth", could begin with these bytes. Most places of most texts are passed by this.
fn may_begin(text: &[u8]) -> bool {
    let [first, second, ..] = text else { return false };
    // Makes letters small, and of nothing else a letter that it isn't.
    match first | 0x20 {
        b'a' => matches!(second | 0x20, b'c' | b'i' | b'k' | b'p' | b'u'),
        b'b' | b'h' | b'r' => matches!(second | 0x20, b'e' | b'f'),
        b'c' => matches!(second | 0x20, b'o' | b'r' | b's'),
        b'e' => second | 0x20 == b'y',
        b'g' => matches!(second | 0x20, b'h' | b'i'),
        b'i' => second | 0x20 == b'd',
        b'j' => second | 0x20 == b'w',
        b'm' => second | 0x20 == b'y',
        b'p' => matches!(second | 0x20, b'a' | b'r' | b'w' | b'y'),
        b's' => matches!(second | 0x20, b'e' | b'k' | b'o' | b's'),
        b't' => second | 0x20 == b'o',
        b'x' => matches!(second | 0x20, b'o' | b's'),
        _ => false,
    }
}

/// Replaces a text that holds a secret.
pub fn text(text: &str) -> Cow<'_, str> {
    match secret_in(text, Where::Value) {
        None => Cow::Borrowed(text),
        Some(reason) => Cow::Owned(nested_json(text).unwrap_or_else(|| note(reason))),
    }
}

/// What may be shown of a name that a caller chose: nothing if it looks like a key, and escapes for characters that could
/// make it pass for something else where it is shown. Words that name secrets are no reason: models have odd names.
pub fn name(name: &str) -> Cow<'_, str> {
    let bytes = name.as_bytes();
    let begins_word = |start: usize| start == 0 || !bytes[start - 1].is_ascii_alphanumeric();
    let begins_token = |start: usize| may_begin(&bytes[start..]) && begins_word(start) && is_token(&bytes[start..]);
    if (0..bytes.len()).any(begins_token) {
        return Cow::Owned(note("token"));
    }
    if !name.contains(is_forgeable) {
        return Cow::Borrowed(name);
    }
    let mut escaped = String::with_capacity(name.len() + 16);
    for character in name.chars() {
        if is_forgeable(character) { escaped.extend(character.escape_unicode()) } else { escaped.push(character) }
    }
    Cow::Owned(escaped)
}

/// What a client chose, cut to a length that a span's name may have.
pub(crate) fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(256)]
}

/// A model's name as telemetry shows it: what [`name`] leaves of the one that a caller or a provider chose. It is made
/// once where the name comes in, and what tells of a model takes nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelLabel {
    whole: Arc<str>,
    /// The same text unless it is very long.
    clipped: Arc<str>,
}

impl ModelLabel {
    /// The label of a name.
    pub fn new(model: &str) -> Self {
        let whole: Arc<str> = name(model).into();
        let short = clipped(model);
        let clipped = if short.len() == model.len() { Arc::clone(&whole) } else { name(short).into() };
        Self { whole, clipped }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// The text in a span.
    pub(crate) fn in_span(&self) -> &str {
        &self.clipped
    }
}

impl fmt::Display for ModelLabel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.whole)
    }
}

/// Replaces what is secret in a JSON value.
pub fn json(value: &mut Value) {
    match value {
        Value::String(string) => {
            if let Cow::Owned(redacted) = text(string) {
                *string = redacted;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(json),
        Value::Object(fields) => {
            for (key, value) in fields {
                match secret_in(key, Where::Key) {
                    Some(reason) => *value = Value::String(note(reason)),
                    None => json(value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn note(reason: &str) -> String {
    format!("[Scrubbed due to '{}']", reason.trim())
}

/// Redacts a string that is itself a JSON object or array, such as the arguments of a tool call.
fn nested_json(text: &str) -> Option<String> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut value: Value = serde_json::from_str(text).ok()?;
    json(&mut value);
    serde_json::to_string(&value).ok()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Key,
    Value,
}

/// The first sign of a secret.
fn secret_in(text: &str, place: Where) -> Option<&'static str> {
    let bytes = text.as_bytes();
    let places = bytes.windows(2).enumerate().filter(|(_, pair)| may_begin(pair));
    for (start, _) in places {
        let rest = &bytes[start..];
        let begins_word = start == 0 || !bytes[start - 1].is_ascii_alphanumeric();
        let (anywhere, whole) = words(rest[0]);
        if let Some(word) = anywhere.iter().find(|word| match_length(rest, word).is_some()) {
            return Some(word);
        }
        // "auth" and all its forms, but no author.
        if rest.len() >= 4 && rest[..4].eq_ignore_ascii_case(b"auth") {
            let tail = rest[4..rest.len().min(8)].to_ascii_lowercase();
            if !tail.starts_with(b"or") || tail.starts_with(b"oriz") || tail.starts_with(b"oris") {
                return Some("auth");
            }
        }
        if begins_word {
            // A bare "token" is a secret as a key, but a subject of conversation as a value.
            let ends_word = |length: usize| rest.get(length).is_none_or(|next| !next.is_ascii_alphanumeric());
            let word = whole.iter().find(|word| match_length(rest, word).is_some_and(ends_word));
            if let Some(word) = word.filter(|word| place == Where::Key || **word != "token") {
                return Some(word);
            }
            if is_token(rest) {
                return Some("token");
            }
        }
    }
    None
}

/// Whether a text begins as a token of a well-known issuer does.
fn is_token(text: &[u8]) -> bool {
    TOKENS.iter().any(|(prefix, letters)| {
        text.strip_prefix(prefix.as_bytes()).is_some_and(|rest| {
            rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte)).count() >= *letters
        })
    })
}

/// How many bytes of `text` a word takes at its start, if it is there.
fn match_length(text: &[u8], word: &str) -> Option<usize> {
    let mut index = 0;
    for letter in word.bytes() {
        let byte = text.get(index).copied();
        if letter == b' ' {
            index += usize::from(byte.is_some_and(|byte| b"._- ".contains(&byte)));
        } else if byte.is_some_and(|byte| byte.eq_ignore_ascii_case(&letter)) {
            index += 1;
        } else {
            return None;
        }
    }
    Some(index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_is_looked_for_is_passed_by() {
        let words = (0..=u8::MAX).flat_map(|letter| [words(letter).0, words(letter).1].concat());
        for word in words.chain(TOKENS.map(|(prefix, _)| prefix)).chain(["auth"]) {
            for word in [word.to_owned(), word.to_ascii_uppercase()] {
                assert!(may_begin(word.as_bytes()), "{word}");
            }
        }
    }

    #[test]
    fn a_name_is_shown_unless_it_looks_like_a_key_or_deceives() {
        for plain in ["gpt-4o", "org/model:tag@4bit", "sk-learn", "my-secret-model", "modèle", ""] {
            assert_eq!(name(plain), plain);
        }
        assert_eq!(name("gpt-\u{1b}[31mred\n\0"), "gpt-\\u{1b}[31mred\\u{a}\\u{0}");
        assert_eq!(name("a\u{202e}b\u{2028}"), "a\\u{202e}b\\u{2028}");
        assert_eq!(name("gpt-\nsk-abcdefghijklmnopqrst"), "[Scrubbed due to 'token']");
    }

    #[test]
    fn a_models_label_is_its_name_as_it_may_be_shown() {
        let label = ModelLabel::new("gpt-\0");
        assert_eq!((label.as_str(), label.in_span()), ("gpt-\\u{0}", "gpt-\\u{0}"));
        assert_eq!(ModelLabel::new("gpt-\nsk-abcdefghijklmnopqrst").to_string(), "[Scrubbed due to 'token']");
        let long = ModelLabel::new(&"m".repeat(300));
        assert_eq!((long.as_str().len(), long.in_span().len()), (300, 256));
    }

    #[test]
    fn secrets_are_replaced_and_prose_is_not() {
        for secret in [
            "my password is hunter2",
            "PASSWORD=x",
            "apikey: 1",
            "API-Key 1",
            "api_key",
            "Authorization: Basic eHg",
            "a JWT",
            "ssn 123-45-6789",
            "the private.key",
            "Set-Cookie: a=b",
            "sk-abcdefghijklmnopqrst",
            "Bearer abc",
            "refresh_token",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2ln",
        ] {
            let redacted = text(secret);
            assert!(redacted.starts_with("[Scrubbed due to '"), "{secret} became {redacted}");
        }
        for prose in [
            "The author wrote two books.",
            "How many tokens is this?",
            "What is the capital of France?",
            "a lesson in missing things",
            "the task-list",
            "max_tokens",
            "message",
            "keyboard",
            "höher, größer, ✓",
            "",
        ] {
            assert_eq!(text(prose), prose);
        }
    }

    #[test]
    fn json_is_looked_into() {
        let mut value = json!({
            "role": "user", "max_tokens": 5,
            "headers": {"Authorization": {"scheme": "x"}, "accept": "y"},
            "list": ["fine", "the secret plan"],
            "arguments": "{\"city\":\"Rome\",\"db_password\":\"hunter2\"}",
            "token": "abc",
        });
        json(&mut value);
        assert_eq!(
            value,
            json!({
                "role": "user", "max_tokens": 5,
                "headers": {"Authorization": "[Scrubbed due to 'auth']", "accept": "y"},
                "list": ["fine", "[Scrubbed due to 'secret']"],
                "arguments": "{\"city\":\"Rome\",\"db_password\":\"[Scrubbed due to 'password']\"}",
                "token": "[Scrubbed due to 'token']",
            })
        );
    }
}
