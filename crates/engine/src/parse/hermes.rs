//! `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them, among text.
//!
//! A call is given out when it is complete, since only then is it known to be one: what is malformed or unclosed is
//! passed on as text, markers and all. White space next to a call belongs to its markers and is dropped.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ParsedCall, Piece, add_text,
    marker::{Found, find, trailing_space},
};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Place {
    #[default]
    Text,
    /// After a call: white space is dropped.
    After,
    /// Within a call; a closing marker is looked for from this byte of what is held.
    Call(usize),
}

/// Tells calls from text.
#[derive(Debug, Default)]
pub(super) struct HermesParser {
    place: Place,
    held: String,
}

impl HermesParser {
    pub(super) fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(pieces) {}
    }

    pub(super) fn finish(&mut self, pieces: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Text => add_text(pieces, &held),
            Place::After => add_text(pieces, held.trim_start()),
            Place::Call(_) => match read_calls(&held) {
                // Some models end their turn instead of closing the last call.
                Body::Calls(calls) => pieces.extend(calls.into_iter().map(Piece::ToolCall)),
                Body::Unfinished | Body::Malformed => {
                    add_text(pieces, OPEN);
                    add_text(pieces, &held);
                }
            },
        }
        self.place = Place::Text;
    }

    /// Takes one decision; false when more text is needed for the next.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.place {
            Place::Text => match find(&self.held, OPEN) {
                Found::At(at) => {
                    add_text(pieces, &self.held[..trailing_space(&self.held[..at])]);
                    self.held.drain(..at + OPEN.len());
                    self.place = Place::Call(0);
                    true
                }
                Found::NotBefore(end) => {
                    // White space is held back too, since a call may follow it.
                    let end = trailing_space(&self.held[..end]);
                    add_text(pieces, &self.held[..end]);
                    self.held.drain(..end);
                    false
                }
            },
            Place::After => {
                let dropped = self.held.len() - self.held.trim_start().len();
                self.held.drain(..dropped);
                if self.held.is_empty() {
                    return false;
                }
                self.place = Place::Text;
                true
            }
            Place::Call(from) => self.step_call(from, pieces),
        }
    }

    fn step_call(&mut self, from: usize, pieces: &mut Vec<Piece>) -> bool {
        let at = match find(&self.held[from..], CLOSE) {
            Found::At(at) => from + at,
            Found::NotBefore(end) => {
                self.place = Place::Call(from + end);
                return false;
            }
        };
        let body = &self.held[..at];
        match read_calls(body) {
            Body::Calls(calls) => {
                pieces.extend(calls.into_iter().map(Piece::ToolCall));
                self.place = Place::After;
            }
            // The marker is inside of a string, so it is no marker.
            Body::Unfinished if ends_in_string(body) => {
                self.place = Place::Call(at + CLOSE.len());
                return true;
            }
            Body::Unfinished | Body::Malformed => {
                add_text(pieces, OPEN);
                add_text(pieces, body);
                add_text(pieces, CLOSE);
                self.place = Place::Text;
            }
        }
        self.held.drain(..at + CLOSE.len());
        true
    }
}

enum Body {
    Calls(Vec<ParsedCall>),
    Unfinished,
    Malformed,
}

#[derive(Deserialize)]
struct WrittenCall<'a> {
    name: String,
    // Some fine-tunes of this family say `parameters`.
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// Reads one call, or several in a row.
fn read_calls(body: &str) -> Body {
    let mut calls = Vec::new();
    for call in serde_json::Deserializer::from_str(body).into_iter::<WrittenCall<'_>>() {
        let call = match call {
            Ok(call) => call,
            Err(error) if error.is_eof() => return Body::Unfinished,
            Err(_) => return Body::Malformed,
        };
        let Some(arguments) = object(call.arguments) else { return Body::Malformed };
        if call.name.is_empty() {
            return Body::Malformed;
        }
        calls.push(ParsedCall { name: call.name, arguments });
    }
    if calls.is_empty() { Body::Malformed } else { Body::Calls(calls) }
}

/// The text of an object; of one that was written as a string too, and of none the empty object.
fn object(written: Option<&RawValue>) -> Option<String> {
    let Some(written) = written else { return Some("{}".to_owned()) };
    let text = written.get();
    if text.starts_with('{') {
        return Some(text.to_owned());
    }
    if text == "null" {
        return Some("{}".to_owned());
    }
    let inner: String = serde_json::from_str(text).ok()?;
    let inner = inner.trim();
    if inner.is_empty() {
        return Some("{}".to_owned());
    }
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(inner).ok()?;
    Some(inner.to_owned())
}

fn ends_in_string(text: &str) -> bool {
    let mut inside = false;
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    inside
}
