//! Methods of Python's `str`, which templates call on texts. What strings don't have, `pycompat` knows of lists and dicts.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};

use super::{
    limit::{Limit, Meter, meter},
    text::{self, Text, is_printable},
};

/// A text cut into more is no conversation, and each piece takes more than its letter.
const PIECES: usize = 1 << 20;

/// A method that minijinja doesn't know of a value.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => of_text(state, text, method, args),
        None if method == "copy" && matches!(value.kind(), ValueKind::Map | ValueKind::Seq) => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        None if method == "index" && value.kind() == ValueKind::Seq => {
            let (wanted,): (Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == wanted);
            place.map(Value::from).ok_or_else(|| wrong("the value is not in the list"))
        }
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_text(state: &mut State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(answer) = question(text, method) {
        let () = from_args(args)?;
        return Ok(answer.into());
    }
    if let Some(changed) = changed_case(text, method) {
        let () = from_args(args)?;
        return Ok(changed.into());
    }
    match method {
        "strip" | "lstrip" | "rstrip" => strip(text, method, args),
        "removeprefix" => with_text(args, |prefix| text.strip_prefix(prefix).unwrap_or(text)),
        "removesuffix" => with_text(args, |suffix| text.strip_suffix(suffix).unwrap_or(text)),
        "replace" => {
            let (old, new, count, named): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let count = count.or(named.get("count")?);
            named.assert_all_used()?;
            replace(meter(state), text, old, new, count.unwrap_or(-1)).map(Value::from)
        }
        "split" | "rsplit" => split(text, method == "rsplit", args),
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            pieces(lines(text, keep))
        }
        "partition" => with_text(args, |by| match text.split_once(by) {
            Some((before, after)) => Value::from(Tuple::from([before.into(), by.into(), after.into()])),
            None => Value::from(Tuple::from([text.into(), "".into(), "".into()])),
        }),
        "rpartition" => with_text(args, |by| match text.rsplit_once(by) {
            Some((before, after)) => Value::from(Tuple::from([before.into(), by.into(), after.into()])),
            None => Value::from(Tuple::from(["".into(), "".into(), text.into()])),
        }),
        "startswith" | "endswith" => affix(text, method == "startswith", args),
        "find" | "rfind" | "index" | "rindex" => find(text, method, args),
        "count" => {
            let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (part, _) = window(text, start, end);
            Ok(if wanted.is_empty() { part.chars().count() + 1 } else { part.matches(wanted).count() }.into())
        }
        "join" => {
            let (list,): (Value,) = from_args(args)?;
            join(meter(state), text, list.try_iter()?)
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            justify(meter(state), text, method, width, fill.unwrap_or(' '))
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let signs = usize::from(text.starts_with(['+', '-']));
            let (sign, digits) = text.split_at(signs);
            let rest = width.saturating_sub(i64::try_from(signs).unwrap_or_default());
            let filled = justify(meter(state), digits, "rjust", rest, '0')?;
            Ok(format!("{sign}{filled}").into())
        }
        "expandtabs" => {
            let (size, named): (Option<i64>, Kwargs) = from_args(args)?;
            let size = size.or(named.get("tabsize")?).unwrap_or(8);
            named.assert_all_used()?;
            expand_tabs(meter(state), text, usize::try_from(size).unwrap_or_default())
        }
        "encode" => Ok(Value::from_bytes(text.as_bytes().to_vec())),
        "format" | "format_map" => {
            super::filters::check_format(meter(state), text, '{', args)?;
            let args: &[Value] = &match (method, args) {
                ("format_map", [map]) => {
                    vec![
                        Kwargs::from_iter(
                            map.try_iter()?
                                .filter_map(|key| Some((key.as_str()?.to_owned(), map.get_item(&key).ok()?))),
                        )
                        .into(),
                    ]
                }
                _ => args.to_vec(),
            };
            minijinja_contrib::pycompat::unknown_method_callback(state, &text.into(), "format", args)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn wrong(problem: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

fn with_text<'a, T: Into<Value>>(args: &'a [Value], make: impl FnOnce(&'a str) -> T) -> Result<Value, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(make(text).into())
}

/// `str.isspace` of a character.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Of the numerals: decimal digits, then other digits (² ①), then all else (½ Ⅷ 五).
fn is_decimal(character: char) -> bool {
    let written_otherwise = matches!(u32::from(character),
        0xb2..=0xb3 | 0xb9 | 0xbc..=0xbe | 0x9f4..=0x9f9 | 0xb72..=0xb77 | 0xbf0..=0xbf2 | 0xc78..=0xc7e
        | 0xd58..=0xd5e | 0xd70..=0xd78 | 0xf2a..=0xf33 | 0x1369..=0x137c | 0x16ee..=0x16f0 | 0x17f0..=0x17f9
        | 0x19da | 0x2070..=0x2189 | 0x2460..=0x249b | 0x24ea..=0x24ff | 0x2776..=0x2793 | 0x2cfd
        | 0x3000..=0x9fff | 0xa6e6..=0xa6ef | 0xa830..=0xa835 | 0xf900..=0xfaff | 0x10100..=0x1049f
        | 0x104aa..=0x10fff | 0x12400..=0x1246f | 0x1d2c0..=0x1d37f | 0x1e8c7..=0x1e8cf | 0x1ec71..=0x1fbef
        | 0x20000..=0x3ffff);
    character.is_ascii_digit() || (character.is_numeric() && !written_otherwise)
}

fn is_digit(character: char) -> bool {
    is_decimal(character)
        || matches!(u32::from(character), 0xb2..=0xb3 | 0xb9 | 0x1369..=0x1371 | 0x19da | 0x2070 | 0x2074..=0x2079
            | 0x2080..=0x2089 | 0x2460..=0x2468 | 0x2474..=0x247c | 0x2488..=0x2490 | 0x24ea | 0x24f5..=0x24fd | 0x24ff
            | 0x2776..=0x277e | 0x2780..=0x2788 | 0x278a..=0x2792)
}

/// The methods that ask whether a text is something, which all of its characters must be.
fn question(text: &str, method: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let cased = |wrong: fn(char) -> bool, right: fn(char) -> bool| !text.chars().any(wrong) && text.chars().any(right);
    Some(match method {
        "isspace" => all(is_space),
        "isalpha" => all(|character| character.is_alphabetic() && !character.is_numeric()),
        "isalnum" => all(char::is_alphanumeric),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isnumeric" => all(char::is_numeric),
        "islower" => cased(char::is_uppercase, char::is_lowercase),
        "isupper" => cased(char::is_lowercase, char::is_uppercase),
        "istitle" => is_title(text),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let mut characters = text.chars();
            characters.next().is_some_and(|first| first == '_' || first.is_alphabetic())
                && characters.all(|character| character == '_' || character.is_alphanumeric())
        }
        _ => return None,
    })
}

fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase()
}

fn is_title(text: &str) -> bool {
    let mut within = false;
    let mut any = false;
    for character in text.chars() {
        if (character.is_uppercase() && within) || (character.is_lowercase() && !within) {
            return false;
        }
        within = is_cased(character);
        any |= within;
    }
    any
}

fn changed_case(text: &str, method: &str) -> Option<String> {
    Some(match method {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "casefold" => text.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
        "swapcase" => {
            let swap = |character: char| -> String {
                if character.is_uppercase() {
                    character.to_lowercase().collect()
                } else {
                    character.to_uppercase().collect()
                }
            };
            text.chars().map(swap).collect()
        }
        "capitalize" => {
            let mut characters = text.chars();
            characters.next().map(title_case).unwrap_or_default() + &characters.as_str().to_lowercase()
        }
        "title" => {
            let mut titled = String::with_capacity(text.len());
            let mut within = false;
            for character in text.chars() {
                if within {
                    titled.extend(character.to_lowercase());
                } else {
                    titled.push_str(&title_case(character));
                }
                within = is_cased(character);
            }
            titled
        }
        _ => return None,
    })
}

/// `ß` begins a title as `Ss`.
fn title_case(character: char) -> String {
    let mut upper = character.to_uppercase();
    let first = upper.next();
    first.into_iter().chain(upper.flat_map(char::to_lowercase)).collect()
}

fn strip(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (characters,): (Option<&str>,) = from_args(args)?;
    let is_stripped = |character: char| match characters {
        Some(characters) => characters.contains(character),
        None => is_space(character),
    };
    Ok(match method {
        "lstrip" => text.trim_start_matches(is_stripped),
        "rstrip" => text.trim_end_matches(is_stripped),
        _ => text.trim_matches(is_stripped),
    }
    .into())
}

/// A text with its first `count` occurrences replaced, all of them if it is negative.
pub(super) fn replace(meter: &mut Meter, text: &str, old: &str, new: &str, count: i64) -> Result<String, Error> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() }.min(count);
    let grown = found.saturating_mul(new.len()).saturating_sub(found.saturating_mul(old.len()));
    meter.charge(text.len().saturating_add(grown))?;
    Ok(text.replacen(old, new, found))
}

/// Writes a list with a text between the items.
pub(super) fn join(meter: &mut Meter, by: &str, items: impl Iterator<Item = Value>) -> Result<Value, Error> {
    let mut joined = Text::new(meter);
    for (index, item) in items.enumerate() {
        if index > 0 {
            joined.push(by)?;
        }
        text::write(&mut joined, &item)?;
    }
    Ok(joined.finish(meter)?.into())
}

fn pieces<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Result<Value, Error> {
    let mut list = Vec::new();
    for piece in pieces {
        if list.len() >= PIECES {
            return Err(Limit::Nodes.into());
        }
        list.push(Value::from(piece));
    }
    Ok(list.into())
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (by, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let by = by.or(named.get("sep")?).filter(|by| !by.is_none());
    let most = most.or(named.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    named.assert_all_used()?;
    let Some(by) = by else { return words(text, from_end, most) };
    let Some(by) = by.as_str() else { return Err(wrong("a text is split by a text")) };
    if by.is_empty() {
        return Err(wrong("empty separator"));
    }
    let count = most.map_or(usize::MAX, |most| most.saturating_add(1));
    if !from_end {
        return pieces(text.splitn(count, by));
    }
    reversed(text.rsplitn(count, by))
}

fn reversed<'a>(found: impl Iterator<Item = &'a str>) -> Result<Value, Error> {
    let mut list: Vec<&str> = found.take(PIECES + 1).collect();
    list.reverse();
    pieces(list)
}

/// Splits at white space, which never gives an empty piece.
fn words(text: &str, from_end: bool, most: Option<usize>) -> Result<Value, Error> {
    let Some(most) = most else {
        return pieces(text.split(is_space).filter(|word| !word.is_empty()));
    };
    let mut found = Vec::new();
    let mut rest = if from_end { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() && found.len() < most.min(PIECES + 1) {
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut else { break };
        let width = rest[cut..].chars().next().map_or(1, char::len_utf8);
        if from_end {
            found.push(&rest[cut + width..]);
            rest = rest[..cut].trim_end_matches(is_space);
        } else {
            found.push(&rest[..cut]);
            rest = rest[cut..].trim_start_matches(is_space);
        }
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    if from_end {
        found.reverse();
    }
    pieces(found)
}

fn lines(text: &str, keep: bool) -> impl Iterator<Item = &str> {
    let ends = |character: char| {
        matches!(character, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(end) = rest.find(ends) else { return Some(std::mem::take(&mut rest)) };
        let after = &rest[end..];
        let width = if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(1, char::len_utf8) };
        let line = &rest[..if keep { end + width } else { end }];
        rest = &rest[end + width..];
        Some(line)
    })
}

/// The part of a text between two indices of characters, as Python counts them, and the index where it begins.
fn window(text: &str, start: Option<i64>, end: Option<i64>) -> (&str, usize) {
    if start.is_none() && end.is_none() {
        return (text, 0);
    }
    let length = text.chars().count();
    let index = |place: i64| match usize::try_from(place) {
        Ok(place) => place.min(length),
        Err(_) => length.saturating_sub(usize::try_from(place.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (index(start.unwrap_or(0)), end.map_or(length, index));
    let byte = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(byte, _)| byte);
    if start > end { ("", start) } else { (&text[byte(start)..byte(end)], start) }
}

fn affix(text: &str, starts: bool, args: &[Value]) -> Result<Value, Error> {
    let (wanted, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let (part, _) = window(text, start, end);
    let has = |affix: &Value| match affix.as_str() {
        Some(affix) => Ok(if starts { part.starts_with(affix) } else { part.ends_with(affix) }),
        None => Err(wrong("a text starts and ends with texts")),
    };
    if wanted.kind() != ValueKind::Seq {
        return has(&wanted).map(Value::from);
    }
    for affix in wanted.try_iter()? {
        if has(&affix)? {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let (part, begins) = window(text, start, end);
    // Behind the end there is not even nothing.
    let is_behind = start.is_some_and(|start| usize::try_from(start).is_ok_and(|start| start > text.chars().count()));
    let found = if is_behind {
        None
    } else if method.starts_with('r') {
        part.rfind(wanted)
    } else {
        part.find(wanted)
    };
    match found {
        Some(byte) => Ok((begins + part[..byte].chars().count()).into()),
        None if method.ends_with("find") => Ok((-1).into()),
        None => Err(wrong("substring not found")),
    }
}

/// A text filled up to a width in characters.
pub(super) fn justify(meter: &mut Meter, text: &str, how: &str, width: i64, fill: char) -> Result<Value, Error> {
    let length = text.chars().count();
    let missing = usize::try_from(width).unwrap_or_default().saturating_sub(length);
    meter.charge(text.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // Where Python puts the odd one.
        _ => missing / 2 + (missing & (length + missing) & 1),
    };
    let filler = |count| std::iter::repeat_n(fill, count);
    Ok(filler(left).chain(text.chars()).chain(filler(missing - left)).collect::<String>().into())
}

fn expand_tabs(meter: &mut Meter, text: &str, size: usize) -> Result<Value, Error> {
    meter.charge(text.len().saturating_add(text.matches('\t').count().saturating_mul(size)))?;
    let mut expanded = String::with_capacity(text.len());
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' => {
                let width = if size == 0 { 0 } else { size - column % size };
                expanded.extend(std::iter::repeat_n(' ', width));
                column += width;
            }
            _ => {
                column = if matches!(character, '\n' | '\r') { 0 } else { column + 1 };
                expanded.push(character);
            }
        }
    }
    Ok(expanded.into())
}
