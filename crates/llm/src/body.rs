//! A request body as it came, and where in it the fields are, so that a provider of the same dialect gets exactly what was sent.

use std::{borrow::Cow, fmt, ops::Range};

use bytes::Bytes;
use bytestring::ByteString;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The most fields a body may have, those that are given again included. No API comes near it, and it keeps the linear
/// look-ups cheap whatever is sent.
const MAX_FIELDS: usize = 512;

/// A JSON object in the buffer that it was read into, which is neither copied nor changed: whoever holds a slice of it holds
/// all of it.
#[derive(Debug, Clone)]
pub struct Body {
    text: ByteString,
    fields: Vec<Field>,
}

#[derive(Debug, Clone)]
struct Field {
    name: Name,
    /// Where the value is.
    value: Range<usize>,
    /// Whether the field is given again further down, where it counts.
    again: bool,
}

#[derive(Debug, Clone)]
enum Name {
    /// Where it is, between its quotes.
    Plain(Range<usize>),
    /// What its escapes say.
    Escaped(Box<str>),
}

/// Why a body is none.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its bytes are no text.
    #[error("the body is not valid JSON: it is not UTF-8 after its first {0} bytes")]
    NotUtf8(usize),
    /// Its text is no JSON.
    #[error("the body is not valid JSON: {0}")]
    NotJson(serde_json::Error),
    /// It is an array, a text, a number.
    #[error("the body must be a JSON object")]
    NotAnObject,
    /// It has absurdly many fields.
    #[error("the body has too many fields")]
    TooManyFields,
}

impl Body {
    /// Finds the fields of a body.
    ///
    /// # Errors
    /// When it is no JSON object or has more fields than any API knows.
    pub fn parse(text: Bytes) -> Result<Self, BodyError> {
        let valid = |text: &Bytes| str::from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
        let text = ByteString::try_from(text.clone()).map_err(|_| BodyError::NotUtf8(valid(&text)))?;
        let mut reader = serde_json::Deserializer::from_str(&text);
        let fields = reader.deserialize_map(Fields { text: &text });
        let fields = fields.and_then(|fields| reader.end().map(|()| fields)).map_err(|error| {
            if !error.is_data() {
                BodyError::NotJson(error)
            } else if text.trim_ascii_start().starts_with('{') {
                BodyError::TooManyFields
            } else {
                BodyError::NotAnObject
            }
        })?;
        Ok(Self { text, fields })
    }

    /// The JSON text of a field. Of one that is given twice the last counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// The names of the fields and their JSON texts, in order and each once.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let once = self.fields.iter().filter(|field| !field.again);
        once.map(|field| (field.name.read(&self.text), self.text.get(field.value.clone()).unwrap_or_default()))
    }

    /// The buffer as it came.
    pub fn bytes(&self) -> &Bytes {
        self.text.as_bytes()
    }

    /// Where in the buffer the values of a field are: more than one where it is given again.
    pub fn places(&self, name: &str) -> impl Iterator<Item = Range<usize>> {
        self.fields.iter().filter(move |field| field.name.read(&self.text) == name).map(|field| field.value.clone())
    }

    /// Where in the buffer the last field ends, after which another may be added; `None` where there is none.
    pub fn last_end(&self) -> Option<usize> {
        self.fields.last().map(|field| field.value.end)
    }
}

impl Name {
    fn read<'a>(&'a self, text: &'a str) -> &'a str {
        match self {
            Self::Plain(place) => text.get(place.clone()).unwrap_or_default(),
            Self::Escaped(name) => name,
        }
    }
}

/// Reads where the fields of an object are.
struct Fields<'a> {
    text: &'a str,
}

impl Fields<'_> {
    /// Where a part of the text is within it.
    fn place_of(&self, part: &str) -> Range<usize> {
        let start = (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        start..start + part.len()
    }

    fn name(&self, quoted: &str) -> Name {
        let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(quoted);
        if !inner.contains('\\') {
            return Name::Plain(self.place_of(inner));
        }
        // Half a character, which JSON can write and no text can hold, is in the name of no field that we know.
        let name: Cow<'_, str> = serde_json::from_str(quoted).map_or(Cow::Borrowed(inner), Cow::Owned);
        Name::Escaped(name.into())
    }
}

impl<'de> Visitor<'de> for Fields<'de> {
    type Value = Vec<Field>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Field>, A::Error> {
        let mut fields: Vec<Field> = Vec::new();
        while let Some((name, value)) = map.next_entry_seed(Raw, Raw)? {
            if fields.len() == MAX_FIELDS {
                return Err(A::Error::custom(format_args!("more than {MAX_FIELDS} fields")));
            }
            let name = self.name(name.get());
            let is_same = |field: &&mut Field| field.name.read(self.text) == name.read(self.text);
            if let Some(earlier) = fields.iter_mut().rev().find(is_same) {
                earlier.again = true;
            }
            fields.push(Field { name, value: self.place_of(value.get()), again: false });
        }
        Ok(fields)
    }
}

/// Takes a name or a value as the text that it is.
struct Raw;

impl<'de> DeserializeSeed<'de> for Raw {
    type Value = &'de RawValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'de RawValue, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Body {
        Body::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn every_byte_of_a_value_is_found_where_it_came() {
        let text =
            r#" {"model" : "m","temperature":1.0, "big":123456789012345678901234567890,"nested":{"b":1,"a":[1, 2]} } "#;
        let body = read(text);
        let fields: Vec<_> = body.iter().collect();
        assert_eq!(
            fields,
            [
                ("model", "\"m\""),
                ("temperature", "1.0"),
                ("big", "123456789012345678901234567890"),
                ("nested", r#"{"b":1,"a":[1, 2]}"#)
            ]
        );
        assert_eq!(body.bytes(), text);
        assert_eq!(body.last_end(), text.trim_ascii_end().len().checked_sub(2));
        assert_eq!(read("{}").last_end(), None);
    }

    #[test]
    fn the_last_of_many_counts_and_all_are_found() {
        let text = r#"{"a":1,"b":2,"\u0061":3,"a":4}"#;
        let body = read(text);
        assert_eq!(body.iter().collect::<Vec<_>>(), [("b", "2"), ("a", "4")]);
        assert_eq!(body.get("a"), Some("4"));
        assert_eq!(body.places("a").map(|place| &text[place]).collect::<Vec<_>>(), ["1", "3", "4"]);
    }

    #[test]
    fn half_a_character_in_a_name_is_a_name() {
        let body = read(r#"{"\ud800":1,"\ud83d\ude00":2,"a":"\udfff"}"#);
        assert_eq!(body.iter().collect::<Vec<_>>(), [("\\ud800", "1"), ("😀", "2"), ("a", r#""\udfff""#)]);
    }

    #[test]
    fn what_is_no_body_is_said() {
        let said = |bytes: &'static [u8]| Body::parse(Bytes::from_static(bytes)).unwrap_err().to_string();
        assert_eq!(said(b"{\"a\":\"\xff\"}"), "the body is not valid JSON: it is not UTF-8 after its first 6 bytes");
        assert_eq!(said(b" [1]"), "the body must be a JSON object");
        assert!(said(b"").starts_with("the body is not valid JSON: EOF"), "{}", said(b""));
        assert!(said(b"{\"a\":1}}").contains("trailing characters"));
        assert!(said(b"{\"a\":1,}").contains("trailing comma"));
    }
}
