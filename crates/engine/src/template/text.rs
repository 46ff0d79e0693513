//! Values as text, as Python's `str` and `repr` write them.

use std::fmt::{self, Write};

use minijinja::{
    Error, Value,
    value::{ObjectRepr, ValueKind},
};

use super::limit::{Limit, Meter};
use crate::json::{self, Whole};

/// A text that grows no longer than the rendering's meter has room.
#[derive(Debug)]
pub(super) struct Text {
    text: String,
    room: usize,
    beyond: Limit,
}

impl Text {
    pub(super) fn new(meter: &Meter) -> Self {
        Self { text: String::new(), room: meter.room(), beyond: meter.beyond() }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Error> {
        self.write_str(text).map_err(|_| self.beyond.clone().into())
    }

    /// Charges for the text.
    pub(super) fn finish(self, meter: &mut Meter) -> Result<String, Error> {
        meter.charge(self.text.len())?;
        Ok(self.text)
    }

    /// Runs a writer whose only error is that the text would be too long.
    pub(super) fn with(&mut self, write: impl FnOnce(&mut Self) -> fmt::Result) -> Result<(), Error> {
        write(self).map_err(|_| self.beyond.clone().into())
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.room - self.text.len() {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// `str(value)`; nothing for what is undefined.
pub(super) fn write(text: &mut Text, value: &Value) -> Result<(), Error> {
    text.with(|text| string(text, value))
}

/// `repr(value)`
pub(super) fn write_repr(text: &mut Text, value: &Value) -> Result<(), Error> {
    text.with(|text| repr(text, value))
}

fn string(out: &mut Text, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => repr(out, value),
    }
}

fn repr(out: &mut Text, value: &Value) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return quoted(out, text);
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&json::float(number, "inf", "nan")),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => container(out, value),
        ValueKind::Plain => match value.downcast_object_ref::<Whole>() {
            Some(whole) => out.write_str(whole.digits()),
            None => write!(out, "{value}"),
        },
        _ => write!(out, "{value}"),
    }
}

fn container(out: &mut Text, value: &Value) -> fmt::Result {
    let Some(object) = value.as_object() else { return Ok(()) };
    if object.repr() == ObjectRepr::Map {
        out.write_str("{")?;
        for (index, (key, inner)) in object.try_iter_pairs().into_iter().flatten().enumerate() {
            out.write_str(if index == 0 { "" } else { ", " })?;
            repr(out, &key)?;
            out.write_str(": ")?;
            repr(out, &inner)?;
        }
        return out.write_str("}");
    }
    let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
    out.write_str(open)?;
    let mut count = 0;
    for inner in object.try_iter().into_iter().flatten() {
        out.write_str(if count == 0 { "" } else { ", " })?;
        repr(out, &inner)?;
        count += 1;
    }
    out.write_str(if value.is_tuple() && count == 1 { "," } else { "" })?;
    out.write_str(close)
}

/// A string between the quotes that Python would choose.
fn quoted(out: &mut Text, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for character in text.chars() {
        match character {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            _ if character == quote => write!(out, "\\{quote}")?,
            ' ' => out.write_char(' ')?,
            _ if is_printable(character) => out.write_char(character)?,
            _ => match u32::from(character) {
                code @ ..=0xff => write!(out, "\\x{code:02x}")?,
                code @ ..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// `str.isprintable` of one character, by Rust's table of what its `Debug` shows.
pub(super) fn is_printable(character: char) -> bool {
    // Behind another, since a mark that stands first is escaped.
    let shown = || ['a', character].iter().collect::<String>().escape_debug().count() == 2;
    matches!(character, ' '..='~') || (!character.is_whitespace() && shown())
}
