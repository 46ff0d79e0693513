//! What an error answer says, wherever its server puts the words.
//!
//! Vendors and the gateways before them agree on nothing: `error.message`, `message`, `detail`, a list of errors, a list
//! around all of it, or plain text. It is all looked for everywhere, for an answer of one shape may come from a provider of
//! the other dialect.

use std::borrow::Cow;

use super::{raw::Raw, sse};

/// The most characters of a provider's words that are handed on.
const MAX_WORDS: usize = 2_000;
/// How deep words are looked for.
const MAX_DEPTH: usize = 6;

/// How many of a list are told.
const MAX_ITEMS: usize = 16;

/// Where words are, the most telling first.
const WORDS: [&str; 12] = [
    "message",
    "Message",
    "msg",
    "detail",
    "error_description",
    "error_message",
    "status_msg",
    "errors",
    "error",
    "base_resp",
    "reason",
    "title",
];

/// Where codes, types and statuses are.
const NAMES: [&str; 8] = ["code", "type", "status", "status_code", "statusCode", "http_code", "__type", "error_code"];

/// Members by which an object is an answer, or a part of one, though it has words too.
const OF_ANSWERS: [&str; 4] = ["choices", "usage", "delta", "content"];

/// An error answer, read.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// The provider's words.
    pub words: Option<String>,
    /// A status within the body: how servers report an error after the stream began.
    pub status: Option<u16>,
    /// Its codes and types, the most telling first.
    pub names: Vec<String>,
}

impl Refusal {
    /// What an error answer says; `None` if it says nothing that is for people: HTML, or nothing at all.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        if sse::begins(&text) {
            // An error of a server that streams everything: its first frame says it.
            let mut parser = sse::Parser::new(body.len());
            parser.push(body);
            let mut frames = std::iter::from_fn(|| parser.next_frame().ok().flatten().or_else(|| parser.finish()));
            let said = frames.find_map(|frame| frame.error.or(frame.data).filter(|data| !data.trim_ascii().is_empty()));
            return said.and_then(|said| Self::of_text(&String::from_utf8_lossy(&said)));
        }
        Self::of_text(&text)
    }

    fn of_text(text: &str) -> Option<Self> {
        match Raw::parse(text).filter(|value| value.is_object() || value.is_list() || value.text().is_some()) {
            // Some servers put a list around it.
            Some(value) => Self::of(value).or_else(|| value.items().find_map(Self::of)),
            None => plain(text).map(|words| Self { words: Some(words), ..Self::default() }),
        }
    }

    fn of(value: Raw<'_>) -> Option<Self> {
        if value.is_list() {
            return None;
        }
        let error = value.get("error").filter(|error| !error.is_false());
        let places: Vec<Raw<'_>> = error.into_iter().chain([value]).collect();
        let words = places.iter().find_map(|place| words(*place, MAX_DEPTH));
        let mut names = Vec::new();
        let mut status = None;
        for place in &places {
            for name in NAMES {
                let Some(member) = place.get(name) else { continue };
                let number = member.count().and_then(|code| u16::try_from(code).ok());
                status = status.or(number.filter(|status| (400..600).contains(status)));
                names.extend(member.word().filter(|_| member.count().is_none()).map(Cow::into_owned));
            }
        }
        // Google tells the true one apart.
        let details = error.and_then(|error| error.get("details")).into_iter().flat_map(Raw::items);
        names.extend(details.filter_map(|detail| detail.get("reason")?.word()).map(Cow::into_owned).take(MAX_ITEMS));
        // The name of the shape is no name of the error.
        names.retain(|name| name != "error");
        (error.is_some() || words.is_some()).then_some(Self { words, status, names })
    }
}

/// Whether an object says of itself that it is an error.
pub(super) fn is_error(object: Raw<'_>) -> bool {
    let [kind, shape, error] = object.pick(["type", "object", "error"]);
    let is_named = [kind, shape].into_iter().flatten().filter_map(Raw::text).any(|name| name == "error");
    is_named || error.is_some_and(|error| !error.is_false())
}

/// Whether an object has words for people and no piece of an answer: how something is coming on, or why nothing is.
pub(super) fn has_only_words(object: Raw<'_>) -> bool {
    !object.members().any(|(key, _)| OF_ANSWERS.contains(&&*key)) && words(object, MAX_DEPTH).is_some()
}

fn words(value: Raw<'_>, depth: usize) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    if value.is_list() {
        let all: Vec<String> = value.items().filter_map(|item| words(item, depth)).take(MAX_ITEMS).collect();
        return (!all.is_empty()).then(|| cut(&all.join("; ")));
    }
    if let Some(text) = value.word() {
        return plain(&text);
    }
    let said = WORDS.into_iter().find_map(|name| words(value.get(name)?, depth))?;
    // What a validator complains about stands beside its words.
    let place: Vec<_> =
        value.get("loc").into_iter().flat_map(Raw::items).map(|part| part.json().replace('"', "")).collect();
    Some(if place.is_empty() { said } else { cut(&format!("{}: {said}", place.join("."))) })
}

/// Text for people.
fn plain(text: &str) -> Option<String> {
    let text = text.trim_matches(|char: char| char.is_whitespace() || char == '\u{feff}');
    (!text.is_empty() && !text.starts_with('<')).then(|| cut(text))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_wherever_servers_put_them() {
        for (body, expected) in [
            (r#"{"error":{"message":"no"}}"#, Some("no")),
            (r#"{"error":"no"}"#, Some("no")),
            (r#"{"error":{"code":3},"message":"no"}"#, Some("no")),
            (r#"{"message":"no"}"#, Some("no")),
            (r#"{"Message":"no"}"#, Some("no")),
            (r#"{"detail":"no"}"#, Some("no")),
            (r#"{"detail":{"error":{},"msg":"no"}}"#, Some("no")),
            (r#"{"detail":[{"loc":["body","n",0],"msg":"no"},{"msg":"nor this"}]}"#, Some("body.n.0: no; nor this")),
            (r#"{"errors":[{"code":1,"message":"no"}]}"#, Some("no")),
            (r#"{"errors":["no","never"]}"#, Some("no; never")),
            (r#"[{"error":{"message":"no"}}]"#, Some("no")),
            (r#"{"object":"error","message":"no"}"#, Some("no")),
            (r#"{"error":{"message":"half \ud83d"}}"#, Some("half \u{fffd}")),
            (r#""no""#, Some("no")),
            ("\u{feff}no\n", Some("no")),
            (r#"{"object":"error","message":{"detail":[{"loc":["n"],"msg":"no"}]}}"#, Some("n: no")),
            (r#"{"base_resp":{"status_code":1008,"status_msg":"no"}}"#, Some("no")),
            (r#"{"error":{"error":{"message":"no"}}}"#, Some("no")),
            ("event: error\ndata: {\"error\":{\"message\":\"no\"}}\n\n", Some("no")),
            (": sorry\n\ndata: no", Some("no")),
            (r#"{"error":{"message":"cut off"#, Some(r#"{"error":{"message":"cut off"#)),
            (r#"{"error":null}"#, None),
            ("<html>no</html>", None),
            ("", None),
        ] {
            let read = Refusal::read(body.as_bytes());
            assert_eq!(read.and_then(|refusal| refusal.words).as_deref(), expected, "{body}");
        }
        let long = Refusal::read("ä".repeat(5000).as_bytes()).unwrap().words.unwrap();
        assert_eq!(long.chars().count(), MAX_WORDS + 1);
    }

    #[test]
    fn names_and_status_are_read_in_either_type() {
        for (body, status, names) in [
            (r#"{"error":{"type":"t","code":"c"}}"#, None, vec!["c", "t"]),
            (r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}"#, Some(429), vec!["RESOURCE_EXHAUSTED"]),
            (r#"{"error":{"code":"502","message":"x"}}"#, Some(502), vec![]),
            (
                r#"{"object":"error","message":"x","code":400,"type":"BadRequestError"}"#,
                Some(400),
                vec!["BadRequestError"],
            ),
            (r#"{"type":"error","error":{"type":"overloaded_error"}}"#, None, vec!["overloaded_error"]),
            (r#"{"error":{"code":7}}"#, None, vec![]),
            (
                r#"{"statusCode":429,"__type":"ThrottlingException","message":"x"}"#,
                Some(429),
                vec!["ThrottlingException"],
            ),
            (r#"{"error":{"code":400,"details":[{"reason":"API_KEY_INVALID"}]}}"#, Some(400), vec!["API_KEY_INVALID"]),
        ] {
            let read = Refusal::read(body.as_bytes()).unwrap();
            assert_eq!((read.status, read.names), (status, names.into_iter().map(str::to_owned).collect()), "{body}");
        }
    }

    #[test]
    fn a_piece_of_an_answer_is_no_error() {
        let read = |text: &str| {
            let object = Raw::parse(text).unwrap();
            (is_error(object), has_only_words(object))
        };
        for text in [
            r#"{"error":null,"choices":[]}"#,
            r#"{"error":"","choices":[]}"#,
            r#"{"error":{},"id":"1"}"#,
            r#"{"error":0,"choices":[]}"#,
            r#"{"error":{"code":0,"message":""},"choices":[]}"#,
            r#"{"type":"message_start","message":{"id":"m"}}"#,
            r#"{"choices":[{"message":{"content":"x"}}]}"#,
            r#"{}"#,
        ] {
            assert_eq!(read(text), (false, false), "{text}");
        }
        for text in [r#"{"detail":"x"}"#, r#"{"type":"note","message":"hello"}"#, r#"{"id":"1","message":"hello"}"#] {
            assert_eq!(read(text), (false, true), "{text}");
        }
        for text in [r#"{"error":"x"}"#, r#"{"object":"error"}"#, r#"{"type":"error"}"#, r#"{"error":{"code":1}}"#] {
            assert!(read(text).0, "{text}");
        }
    }
}
