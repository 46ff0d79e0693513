//! JSON text as Python's `json` reads and writes it, which is what models saw when they were trained: whole numbers are
//! never rounded, whatever their size, and floats are written in the fewest digits.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use minijinja::{
    Value,
    value::{Object, ObjectRepr, ValueKind},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// As deep as serde_json reads; more is no conversation.
const DEPTH: usize = 128;

/// The arguments of `json.dumps`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Style {
    /// What each level is indented by; each value is on its own line then.
    pub(crate) indent: Option<String>,
    /// Only ASCII, the rest as `\u` escapes.
    pub(crate) ascii: bool,
    /// Keys in their order.
    pub(crate) sorted: bool,
    /// Between items and after keys; `", "` and `": "` by default, the former without its space when indented.
    pub(crate) separators: Option<(String, String)>,
}

/// A whole number beyond 128 bits. Templates can write it, but not reckon with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Whole(String);

impl Whole {
    /// The number as it was written.
    pub(crate) fn digits(&self) -> &str {
        &self.0
    }
}

impl Object for Whole {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Reads JSON text for a template.
///
/// # Errors
/// When it is not JSON, or nested deeper than serde_json reads.
pub(crate) fn read(text: &str) -> Result<Value, serde_json::Error> {
    value(serde_json::from_str(text)?, 0)
}

struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

// serde_json itself reads a large whole number as a float, unless all of the program shall live with numbers that are
// text (`arbitrary_precision`).
fn value(raw: &RawValue, depth: usize) -> Result<Value, serde_json::Error> {
    if depth > DEPTH {
        return Err(serde_json::Error::custom("recursion limit exceeded"));
    }
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let Fields(fields) = serde_json::from_str(text)?;
            let pairs = fields.into_iter().map(|(name, inner)| Ok((name, value(inner, depth + 1)?)));
            Ok(Value::from_pairs(pairs.collect::<Result<Vec<_>, serde_json::Error>>()?))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            items.into_iter().map(|inner| value(inner, depth + 1)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        Some(b'-' | b'0'..=b'9') if !text.contains(['.', 'e', 'E']) => Ok(whole(text)),
        Some(b'-' | b'0'..=b'9') => serde_json::from_str::<f64>(text).map(Value::from),
        Some(b'n') => Ok(Value::from(())),
        Some(b't') => Ok(Value::from(true)),
        Some(b'f') => Ok(Value::from(false)),
        _ => serde_json::from_str::<String>(text).map(Value::from),
    }
}

fn whole(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return number.into();
    }
    text.parse::<i128>().map_or_else(|_| Value::from_object(Whole(text.to_owned())), Value::from)
}

/// Writes a value as `json.dumps` does.
///
/// # Errors
/// When the writer has enough.
pub(crate) fn write(out: &mut dyn Write, value: &Value, style: &Style) -> fmt::Result {
    dump(out, value, style, 0)
}

fn dump(out: &mut dyn Write, value: &Value, style: &Style, depth: usize) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return quoted(out, text, style.ascii);
    }
    match value.kind() {
        ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&float(number, "Infinity", "NaN")),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::Number => write!(out, "{value}"),
        ValueKind::Map => {
            let object = value.as_object();
            let mut pairs: Vec<_> = object.and_then(|object| object.try_iter_pairs()).into_iter().flatten().collect();
            if style.sorted {
                pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            sequence(out, "{}", pairs, style, depth, |out, (key, inner)| {
                key_text(out, &key, style)?;
                out.write_str(style.separators.as_ref().map_or(": ", |(_, key)| key))?;
                dump(out, &inner, style, depth + 1)
            })
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            sequence(out, "[]", items, style, depth, |out, inner| dump(out, &inner, style, depth + 1))
        }
        ValueKind::Plain => match value.downcast_object_ref::<Whole>() {
            Some(whole) => out.write_str(whole.digits()),
            None => quoted(out, &value.to_string(), style.ascii),
        },
        // What is undefined, beside `None`.
        _ => out.write_str("null"),
    }
}

/// A key is a string, or what Python makes one of.
fn key_text(out: &mut dyn Write, key: &Value, style: &Style) -> fmt::Result {
    if key.as_str().is_some() {
        return dump(out, key, style, 0);
    }
    out.write_str("\"")?;
    dump(out, key, style, 0)?;
    out.write_str("\"")
}

fn sequence<T>(
    out: &mut dyn Write,
    brackets: &str,
    items: Vec<T>,
    style: &Style,
    depth: usize,
    mut write: impl FnMut(&mut dyn Write, T) -> fmt::Result,
) -> fmt::Result {
    let (open, close) = brackets.split_at(1);
    out.write_str(open)?;
    if items.is_empty() {
        return out.write_str(close);
    }
    let default = if style.indent.is_some() { "," } else { ", " };
    let separator = style.separators.as_ref().map_or(default, |(item, _)| item);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.write_str(separator)?;
        }
        break_line(out, style, depth + 1)?;
        write(out, item)?;
    }
    break_line(out, style, depth)?;
    out.write_str(close)
}

fn break_line(out: &mut dyn Write, style: &Style, depth: usize) -> fmt::Result {
    let Some(indent) = &style.indent else { return Ok(()) };
    out.write_char('\n')?;
    (0..depth).try_for_each(|_| out.write_str(indent))
}

fn quoted(out: &mut dyn Write, text: &str, ascii: bool) -> fmt::Result {
    out.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{c}' => out.write_str("\\f")?,
            '\0'..='\u{1f}' => write!(out, "\\u{:04x}", u32::from(character))?,
            _ if ascii && !matches!(character, ' '..='~') => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            _ => out.write_char(character)?,
        }
    }
    out.write_char('"')
}

/// `repr` of a float: the fewest digits that mean it, with an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float(number: f64, infinite: &str, not_a_number: &str) -> String {
    if number.is_nan() {
        return not_a_number.to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { format!("-{infinite}") } else { infinite.to_owned() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> String {
        let mut out = String::new();
        write(&mut out, &read(text).unwrap(), &Style::default()).unwrap();
        out
    }

    #[test]
    fn numbers_are_what_python_makes_of_them() {
        for (text, written) in [
            ("1", "1"),
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("1.0", "1.0"),
            ("0.1", "0.1"),
            ("1.10", "1.1"),
            ("1e22", "1e+22"),
            ("1e-7", "1e-07"),
            ("1E5", "100000.0"),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("123456789.123e9", "1.23456789123e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775808"),
            ("18446744073709551616", "18446744073709551616"),
            ("-9223372036854775809", "-9223372036854775809"),
            ("-170141183460469231731687303715884105729", "-170141183460469231731687303715884105729"),
            (
                "123456789012345678901234567890123456789012345678901234567890",
                "123456789012345678901234567890123456789012345678901234567890",
            ),
        ] {
            assert_eq!(again(text), written);
            assert_eq!(
                again(&format!(r#"{{"b": [{text}], "a": {{"c": {text}}}}}"#)),
                format!(r#"{{"b": [{written}], "a": {{"c": {written}}}}}"#)
            );
        }
    }

    #[test]
    fn strings_are_escaped_as_python_does() {
        let text = r#""\u0000\b\f\n\r\t\u001f \u007f\"\\/é\ud83d\ude00""#;
        assert_eq!(again(text), "\"\\u0000\\b\\f\\n\\r\\t\\u001f \u{7f}\\\"\\\\/é😀\"");
        let mut out = String::new();
        write(&mut out, &read(text).unwrap(), &Style { ascii: true, ..Style::default() }).unwrap();
        assert_eq!(out, r#""\u0000\b\f\n\r\t\u001f \u007f\"\\/\u00e9\ud83d\ude00""#);
    }

    #[test]
    fn the_last_of_equal_keys_counts_and_damage_is_an_error() {
        assert_eq!(again(r#"{"a": 1, "b": 2, "a": 3}"#), r#"{"a": 3, "b": 2}"#);
        for damaged in ["", "{", "[1,]", "{\"a\" 1}", "01", "nul", "\"\\x\"", "1 2", &"[".repeat(5000)] {
            assert!(read(damaged).is_err(), "{damaged}");
        }
        assert!(read(&format!("{}{}", "[".repeat(127), "]".repeat(127))).is_ok());
        assert!(read(&format!("{}{}", "[".repeat(500), "]".repeat(500))).is_err());
    }
}
