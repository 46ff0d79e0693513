//! `{"name": …, "arguments": {…}}`, any number of them in a row: what Hermes' models write between `<tool_call>` and
//! `</tool_call>`.
//!
//! A call is told once its name is known and its arguments have begun, and the arguments as they come, so that nobody waits
//! in silence while a long one grows. What then turns out to be none is dropped again.

use std::ops::Range;

use super::{
    Piece,
    sloppy::{Malformed, Member, Sloppy},
};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// Whose the character was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Of the call that is being read.
    Same,
    /// Of another one in the row; the one before is complete.
    Another,
}

/// Reads what is between the markers.
#[derive(Debug, Default)]
pub(super) struct CallReader {
    /// The only names that a call may have, if not every one.
    names: Option<Vec<String>>,
    /// The call that is being read, or was read last.
    json: Option<Sloppy>,
    field: Field,
    name: Option<String>,
    /// The whole arguments.
    arguments: Option<String>,
    /// How much of the call's JSON was told, once its arguments have begun.
    told: Option<usize>,
    /// The end of its arguments.
    end: Option<usize>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Field {
    Name,
    Arguments,
    #[default]
    Other,
}

impl CallReader {
    pub(super) fn new(names: Option<Vec<String>>) -> Self {
        Self { names, ..Self::default() }
    }

    /// Whether a closing marker would be text within a string.
    pub(super) fn in_string(&self) -> bool {
        self.json.as_ref().is_some_and(Sloppy::in_string)
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, next: char, pieces: &mut Vec<Piece>) -> Result<Next, Malformed> {
        let Some(json) = self.json.as_mut().filter(|json| !json.is_done()) else { return self.between(next, pieces) };
        if let Some(member) = json.push(next)? {
            self.take(member)?;
        }
        // The name is known and the arguments are an object: from here on it is a call, if it goes on as it began.
        let begins = next == '{' && self.field == Field::Arguments && self.told.is_none() && self.arguments.is_none();
        if begins && let (Some(name), Some(start)) = (&self.name, self.json.as_ref().and_then(Sloppy::opened)) {
            self.check(name)?;
            pieces.push(Piece::Call(name.clone()));
            self.told = Some(start);
        }
        Ok(Next::Same)
    }

    /// Before a call or after one. Where a model wrote a bracket too many, what it meant is sure all the same.
    fn between(&mut self, next: char, pieces: &mut Vec<Piece>) -> Result<Next, Malformed> {
        match next {
            '{' => {
                let is_another = self.json.is_some();
                if is_another {
                    self.end(pieces)?;
                }
                let mut json = Sloppy::default();
                json.push(next)?;
                self.json = Some(json);
                Ok(if is_another { Next::Another } else { Next::Same })
            }
            '}' if self.json.is_some() => Ok(Next::Same),
            _ if next.is_whitespace() => Ok(Next::Same),
            _ => Err(Malformed),
        }
    }

    /// Tells as much of the arguments as is there.
    pub(super) fn flush(&mut self, pieces: &mut Vec<Piece>) {
        let (Some(told), Some(json)) = (&mut self.told, &self.json) else { return };
        let end = self.end.unwrap_or(json.out().len());
        if let Some(more) = json.out().get(*told..end).filter(|more| !more.is_empty()) {
            pieces.push(Piece::Arguments(more.to_owned()));
            *told = end;
        }
    }

    /// Nothing more comes between the markers. `cut` says that more was to come.
    pub(super) fn finish(&mut self, cut: bool, pieces: &mut Vec<Piece>) -> Result<(), Malformed> {
        let json = self.json.as_mut().ok_or(Malformed)?;
        if !json.is_done() {
            let members = if cut { Err(Malformed) } else { json.close() }?;
            members.into_iter().try_for_each(|member| self.take(member))?;
        }
        self.end(pieces)
    }

    /// There is no call after all, or no further one: tells so, if one was told of.
    pub(super) fn drop_call(&mut self, pieces: &mut Vec<Piece>) {
        self.flush(pieces);
        if self.told.take().is_some() {
            pieces.push(Piece::CallDropped);
        }
    }

    fn take(&mut self, member: Member) -> Result<(), Malformed> {
        match member {
            Member::Key(range) => {
                self.field = match (self.string(range)?.as_str(), &self.name, &self.arguments) {
                    ("name", None, _) => Field::Name,
                    // Some fine-tunes of this family say `parameters`.
                    ("arguments" | "parameters", _, None) => Field::Arguments,
                    ("name" | "arguments" | "parameters", ..) => return Err(Malformed),
                    _ => Field::Other,
                };
            }
            Member::Value(range) => match self.field {
                Field::Name => self.name = Some(self.string(range)?).filter(|name| !name.is_empty()),
                Field::Arguments => {
                    self.end = Some(range.end);
                    self.arguments = Some(object(self.text(range))?);
                }
                Field::Other => {}
            },
        }
        Ok(())
    }

    /// The call is complete, and nothing came after it that would make it doubtful.
    fn end(&mut self, pieces: &mut Vec<Piece>) -> Result<(), Malformed> {
        let name = self.name.as_deref().ok_or(Malformed)?;
        self.check(name)?;
        if self.told.is_some() {
            self.flush(pieces);
        } else {
            pieces.push(Piece::Call(name.to_owned()));
            pieces.push(Piece::Arguments(self.arguments.take().unwrap_or_else(|| "{}".to_owned())));
        }
        pieces.push(Piece::CallEnd);
        *self = Self::new(self.names.take());
        Ok(())
    }

    fn check(&self, name: &str) -> Result<(), Malformed> {
        let is_known = self.names.as_ref().is_none_or(|names| names.iter().any(|known| known == name));
        if is_known { Ok(()) } else { Err(Malformed) }
    }

    fn text(&self, range: Range<usize>) -> &str {
        self.json.as_ref().and_then(|json| json.out().get(range)).unwrap_or_default()
    }

    fn string(&self, range: Range<usize>) -> Result<String, Malformed> {
        serde_json::from_str(self.text(range)).map_err(|_| Malformed)
    }
}

/// The text of an object; of one that was written as a string too, and of none the empty object.
fn object(text: &str) -> Result<String, Malformed> {
    if text.starts_with('{') {
        return Ok(text.to_owned());
    }
    if text == "null" {
        return Ok("{}".to_owned());
    }
    let inner: String = serde_json::from_str(text).map_err(|_| Malformed)?;
    let inner = inner.trim();
    if inner.is_empty() {
        return Ok("{}".to_owned());
    }
    let mut json = Sloppy::default();
    for next in inner.chars() {
        json.push(next)?;
    }
    if json.is_done() && json.out().starts_with('{') { Ok(json.out().to_owned()) } else { Err(Malformed) }
}
