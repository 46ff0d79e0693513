//! A request body as it came, and where in it the fields are, so that a provider of the same dialect gets exactly what was sent.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use bytes::Bytes;
use bytestring::ByteString;
use serde::de::IgnoredAny;

use self::scan::Scan;

mod scan;

/// The most fields a body may have, those that are given again included. No API comes near it, and it keeps the linear
/// look-ups cheap whatever is sent.
const MAX_FIELDS: usize = 512;

/// A JSON object in the buffer that it was read into, which is neither copied nor changed: whoever holds a slice of it holds
/// all of it.
#[derive(Debug, Clone)]
pub struct Body {
    text: ByteString,
    fields: Vec<Field>,
    /// Where long texts are.
    long_texts: Vec<Range<usize>>,
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
        let (fields, long_texts) = fields(&text).ok_or_else(|| why(&text))?;
        Ok(Self { text, fields, long_texts })
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

    /// The texts of more than 16 KiB that are in a field, as they are written. Names aren't among them.
    pub fn long_texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let value = self.fields.iter().find(|field| !field.again && field.name.read(&self.text) == name);
        let value = value.map(|field| field.value.clone()).unwrap_or_default();
        let within = self.long_texts.iter().filter(move |place| value.contains(&place.start));
        within.filter_map(|place| self.text.get(place.clone()))
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
    /// The one that stands there, quotes included.
    fn new(text: &str, quoted: Range<usize>) -> Option<Self> {
        let inner = quoted.start + 1..quoted.end - 1;
        let plain = text.get(inner.clone())?;
        if !plain.contains('\\') {
            return Some(Self::Plain(inner));
        }
        // Half a character, which JSON can write and no text can hold, is in the name of no field that we know.
        let name: Cow<'_, str> = serde_json::from_str(text.get(quoted)?).map_or(Cow::Borrowed(plain), Cow::Owned);
        Some(Self::Escaped(name.into()))
    }

    fn read<'a>(&'a self, text: &'a str) -> &'a str {
        match self {
            Self::Plain(place) => text.get(place.clone()).unwrap_or_default(),
            Self::Escaped(name) => name,
        }
    }
}

/// Where the fields of a body are, and the long texts in it; `None` where it is none, or has too many.
fn fields(text: &str) -> Option<(Vec<Field>, Vec<Range<usize>>)> {
    let mut scan = Scan::new(text);
    let mut fields: Vec<Field> = Vec::new();
    scan.eat(b'{').then_some(())?;
    let mut more = !scan.eat(b'}');
    while more {
        let name = Name::new(text, scan.name()?)?;
        let value = scan.value()?;
        let is_same = |field: &&mut Field| field.name.read(text) == name.read(text);
        if let Some(earlier) = fields.iter_mut().rev().find(is_same) {
            earlier.again = true;
        }
        fields.push(Field { name, value, again: false });
        more = scan.eat(b',');
        if fields.len() > MAX_FIELDS || !more && !scan.eat(b'}') {
            return None;
        }
    }
    scan.is_at_end().then_some((fields, scan.long_texts))
}

/// Why a text is no body.
fn why(text: &str) -> BodyError {
    match serde_json::from_str::<HashMap<Cow<'_, str>, IgnoredAny>>(text) {
        Err(error) if !error.is_data() => BodyError::NotJson(error),
        Err(_) => BodyError::NotAnObject,
        Ok(_) => BodyError::TooManyFields,
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use serde_json::Value;

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

    #[test]
    fn long_texts_are_found_in_the_field_that_counts() {
        let long = "x".repeat(20_000);
        let text = format!(r#"{{"a":["{long}"],"b":["short",{{"{long}":"{long}y"}}],"a":1}}"#);
        let body = read(&text);
        assert_eq!(body.long_texts("b").collect::<Vec<_>>(), [format!("{long}y")]);
        assert_eq!((body.long_texts("a").count(), body.long_texts("c").count()), (0, 0));
    }

    proptest! {
        /// What is taken is what others take, and by nobody else.
        #[test]
        fn a_body_is_what_the_grammar_says(
            text in r#"\{("[ab\\n"]{0,3}" ?:? ?([\[\]{}:,"\\/bfnrtu0-9a-f .eE+-]|true|false|null|\\u00e9|\n|é|\x01){0,12},?){0,3}\} ?"#
        ) {
            let is_object = serde_json::from_str::<HashMap<Cow<'_, str>, IgnoredAny>>(&text);
            let ours = Body::parse(Bytes::from(text.clone()));
            // It takes halves of characters in names, which no text can hold.
            prop_assert_eq!(ours.is_ok(), is_object.is_ok(), "{}", text);
        }

        #[test]
        fn every_json_is_a_value(value in json(), pretty in any::<bool>()) {
            let whole = serde_json::json!({"before": 1, "value": value, "after": 2});
            let text = if pretty { serde_json::to_string_pretty(&whole) } else { serde_json::to_string(&whole) }.unwrap();
            let body = read(&text);
            let found: Value = serde_json::from_str(body.get("value").unwrap()).unwrap();
            prop_assert_eq!(&found, &whole["value"]);
            prop_assert_eq!(body.get("after"), Some("2"));
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                collection::hash_map(any::<String>(), inner, 0..5).prop_map(Value::from_iter),
            ]
        })
    }
}
