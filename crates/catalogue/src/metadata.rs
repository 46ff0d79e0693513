//! The JSON files of a model's folder, read as leniently as the programs that write them: Python writes `NaN`, editors put
//! a mark of the byte order first, and people write numbers as text. A key that isn't needed is never a reason to fail.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Reads an object.
///
/// # Errors
/// When it is not JSON even so, or no object.
pub fn parse(text: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut value = match serde_json::from_slice(text) {
        Ok(map) => Value::Object(map),
        Err(error) => match without_odd_numbers(text) {
            Some(plain) => Value::Object(serde_json::from_slice(&plain)?),
            None => return Err(error),
        },
    };
    plain_floats(&mut value);
    match value {
        Value::Object(map) => Ok(map),
        // Only an object came in, and one that is a float in disguise says nothing.
        _ => Ok(Map::new()),
    }
}

/// The text with `null` for Python's `NaN`, `Infinity` and `-Infinity` outside of strings; `None` if there are none.
fn without_odd_numbers(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    let mut within_string = false;
    let mut found = false;
    while let Some((first, after)) = rest.split_first() {
        let odd: Option<&[u8]> =
            [b"NaN".as_slice(), b"Infinity", b"-Infinity"].into_iter().find(|odd| rest.starts_with(odd));
        match (within_string, odd) {
            (false, Some(odd)) => {
                plain.extend_from_slice(b"null");
                rest = &rest[odd.len()..];
                found = true;
                continue;
            }
            (true, _) if *first == b'\\' && !after.is_empty() => {
                plain.extend_from_slice(&rest[..2]);
                rest = &rest[2..];
                continue;
            }
            _ if *first == b'"' => within_string = !within_string,
            _ => {}
        }
        plain.push(*first);
        rest = after;
    }
    found.then_some(plain)
}

/// `transformers` writes what JSON has no number for as `{"__float__": "Infinity"}`.
fn plain_floats(value: &mut Value) {
    match value {
        Value::Object(map) if map.len() == 1 && map.contains_key("__float__") => *value = Value::Null,
        Value::Object(map) => map.values_mut().for_each(plain_floats),
        Value::Array(items) => items.iter_mut().for_each(plain_floats),
        _ => {}
    }
}

/// A number, or a text that is one.
pub fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite())
}

/// A whole number of at least 0, also where it is written as a float or a text.
pub fn count(value: &Value) -> Option<u64> {
    if let Some(count) = value.as_u64() {
        return Some(count);
    }
    // Beyond 2^53 a float is no count of anything here.
    let number =
        number(value).filter(|number| number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(number))?;
    Some(number as u64)
}

/// A boolean, also where it is written as a text or a number.
pub fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        _ => None,
    }
}

/// Token ids: one, or a list, with whatever is no id left out.
pub fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| count(value).and_then(|id| u32::try_from(id).ok());
    let ids: BTreeSet<u32> = match value {
        Some(Value::Array(items)) => items.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => BTreeSet::new(),
    };
    ids.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_and_editors_write_is_read() {
        let text = "\u{feff}{\"a\": NaN, \"b\": [-Infinity, Infinity, 1], \"c\": \"NaN \\\" Infinity\", \"d\": {\"__float__\": \"NaN\"}}";
        let expected = json!({"a": null, "b": [null, null, 1], "c": "NaN \" Infinity", "d": null});
        assert_eq!(Value::Object(parse(text.as_bytes()).unwrap()), expected);
        for damaged in ["", "[]", "null", "{", "{\"a\": Nan}", "{\"a\": NaN", "NaN"] {
            assert!(parse(damaged.as_bytes()).is_err(), "{damaged}");
        }
    }

    #[test]
    fn numbers_may_be_written_otherwise() {
        for whole in [json!(32), json!(32.0), json!("32"), json!(" 32.0 ")] {
            assert_eq!(count(&whole), Some(32), "{whole}");
        }
        for none in [json!(null), json!("many"), json!(1.5), json!(-1), json!([32]), json!(true), json!(1e300)] {
            assert_eq!(count(&none), None, "{none}");
        }
        assert_eq!(number(&json!("1e-06")), Some(1e-6));
        assert_eq!((flag(&json!("False")), flag(&json!(1)), flag(&json!("yes"))), (Some(false), Some(true), None));
        assert_eq!(ids(Some(&json!([2, 1.0, "7", null, -1, [3], 2]))), [1, 2, 7]);
        assert_eq!((ids(Some(&json!(2.0))), ids(Some(&json!(null))), ids(None)), (vec![2], vec![], vec![]));
    }
}
