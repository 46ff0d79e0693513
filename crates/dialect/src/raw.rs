//! Foreign JSON, read where it lies and only as far as it is asked for.
//!
//! Whoever observes an answer must not be stricter than the client that it is for. So the brackets have to match and the
//! keys have to be strings, and nothing else is checked before somebody wants it: not halves of surrogate pairs, not
//! escapes, not numbers that JSON doesn't know (`NaN`), not how deep it goes. Of a key given twice the last counts, as with
//! the parsers of most languages.

use std::borrow::Cow;

use self::scan::{Scan, is_word, unescape};

mod scan;

/// No count of anything is larger, and above it floats skip whole numbers.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;

/// How many values an answer has as a rule.
const USUAL_NODES: usize = 64;
/// The most values that an index has. What holds more is read without one, which takes longer and no memory.
const MAX_NODES: usize = 1 << 18;

/// A JSON value, as the text it stands in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    text: &'a str,
    /// Its own node and those of what is in it; none without an index.
    nodes: &'a [Node],
}

/// A key or a value: where it begins and ends in the whole text, how many nodes it has with all that is in it, and whether it
/// is a text in which something is escaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    begin: u32,
    end: u32,
    size: u32,
    escaped: bool,
}

impl<'a> Raw<'a> {
    /// The one value that a text is; `None` if it is none, or more than one.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut scan = Scan { text, at: 0 };
        let value = scan.value()?;
        scan.space();
        (scan.at == text.len()).then_some(value)
    }

    /// The same with an index, which makes every further look short, in room that is used again.
    pub(super) fn indexed(text: &'a str, room: &'a mut Vec<Node>) -> Option<Self> {
        match index(text, room)? {
            Indexed::Whole => Some(Self { text: room.first()?.of(text)?, nodes: room }),
            Indexed::TooMuch => Self::parse(text),
        }
    }

    fn plain(text: &'a str) -> Self {
        Self { text, nodes: &[] }
    }

    /// The values that it holds, or keys and values in turn, by its index.
    fn children(self) -> Children<'a> {
        let begin = self.nodes.first().map_or(0, |own| own.begin);
        Children { text: self.text, begin, rest: self.nodes.get(1..).unwrap_or_default() }
    }

    /// What is in a text, or in a key, which is one.
    fn inner(self) -> Option<Cow<'a, str>> {
        let inner = self.text.get(1..self.text.len().checked_sub(1)?)?;
        let escaped = self.nodes.first().map_or_else(|| inner.contains('\\'), |own| own.escaped);
        Some(if escaped { Cow::Owned(unescape(inner)) } else { Cow::Borrowed(inner) })
    }

    /// Its text.
    pub(super) fn json(self) -> &'a str {
        self.text
    }

    pub(super) fn is_object(self) -> bool {
        self.text.starts_with('{')
    }

    pub(super) fn is_list(self) -> bool {
        self.text.starts_with('[')
    }

    pub(super) fn is_text(self) -> bool {
        self.text.starts_with('"')
    }

    pub(super) fn is_null(self) -> bool {
        self.text == "null"
    }

    /// Whether it says nothing: null, or an empty text, list or object.
    pub(super) fn is_blank(self) -> bool {
        match self.text.as_bytes() {
            b"null" | b"\"\"" => true,
            [b'[' | b'{', inner @ .., _] => inner.trim_ascii().is_empty(),
            _ => false,
        }
    }

    /// Whether a flag or an error that it stands for isn't raised, as most languages have it: it says nothing, `false` or 0.
    /// An object of which each member is such says no more.
    pub(super) fn is_false(self) -> bool {
        let one =
            |value: Self| value.is_blank() || value.text == "false" || !value.is_text() && value.count() == Some(0);
        one(self) || self.is_object() && self.members().all(|(_, value)| one(value))
    }

    /// Keys and values of an object in their order; none of anything else.
    pub(super) fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Raw<'a>)> {
        let mut children = self.children();
        let mut scan = Scan { text: self.text, at: 1 };
        let mut more = self.is_object() && self.nodes.is_empty() && !scan.is_at(b'}');
        let is_indexed_object = self.is_object() && !self.nodes.is_empty();
        std::iter::from_fn(move || {
            if is_indexed_object {
                let (key, value) = (children.next()?, children.next()?);
                return Some((key.inner()?, value));
            }
            if !more {
                return None;
            }
            let key = scan.key()?;
            let value = scan.skip()?;
            more = scan.eat(b',');
            Some((key, value))
        })
    }

    /// The values of a list; none of anything else.
    pub(super) fn items(self) -> impl Iterator<Item = Raw<'a>> {
        let mut children = self.children();
        let mut scan = Scan { text: self.text, at: 1 };
        let mut more = self.is_list() && self.nodes.is_empty() && !scan.is_at(b']');
        let is_indexed_list = self.is_list() && !self.nodes.is_empty();
        std::iter::from_fn(move || {
            if is_indexed_list {
                return children.next();
            }
            if !more {
                return None;
            }
            let value = scan.skip()?;
            more = scan.eat(b',');
            Some(value)
        })
    }

    /// A member that isn't null.
    pub(super) fn get(self, name: &str) -> Option<Raw<'a>> {
        let [value] = self.pick([name]);
        value
    }

    /// Several of them, for one look at the object.
    pub(super) fn pick<const N: usize>(self, names: [&str; N]) -> [Option<Raw<'a>>; N] {
        let mut picked = [None; N];
        for (key, value) in self.members() {
            if let Some(place) = names.iter().position(|name| key == *name).and_then(|at| picked.get_mut(at)) {
                *place = Some(value).filter(|value| !value.is_null());
            }
        }
        picked
    }

    /// A text, with a replacement character for what is none (half a surrogate pair).
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        if self.is_text() { self.inner() } else { None }
    }

    /// A text that isn't empty.
    pub(super) fn word(self) -> Option<Cow<'a, str>> {
        self.text().filter(|text| !text.is_empty())
    }

    /// A whole number that isn't negative, in whatever way it is written: `7`, `7.0`, `"7"`.
    pub(super) fn count(self) -> Option<u64> {
        let text = self.text.trim_matches('"');
        if let Ok(count) = text.parse::<u64>() {
            return Some(count).filter(|count| *count as f64 <= MAX_COUNT);
        }
        let number: f64 = text.parse().ok()?;
        ((0.0..=MAX_COUNT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
    }
}

/// What an index says is in a list or an object.
struct Children<'a> {
    text: &'a str,
    /// Where the text begins in the whole one.
    begin: u32,
    rest: &'a [Node],
}

impl<'a> Iterator for Children<'a> {
    type Item = Raw<'a>;

    fn next(&mut self) -> Option<Raw<'a>> {
        let node = self.rest.first()?;
        let (nodes, others) = self.rest.split_at_checked(node.size as usize)?;
        self.rest = others;
        let text = self.text.get((node.begin - self.begin) as usize..(node.end - self.begin) as usize)?;
        Some(Raw { text, nodes })
    }
}

impl Node {
    fn of(self, text: &str) -> Option<&str> {
        text.get(self.begin as usize..self.end as usize)
    }
}

/// What became of an index.
enum Indexed {
    Whole,
    TooMuch,
}

/// Makes the index of a text; `None` if that isn't one value.
fn index(text: &str, nodes: &mut Vec<Node>) -> Option<Indexed> {
    nodes.clear();
    nodes.reserve(USUAL_NODES);
    if u32::try_from(text.len()).is_err() {
        return Some(Indexed::TooMuch);
    }
    let mut scan = Scan { text, at: 0 };
    // The node of the list or object that is open. Until it is closed its size is the place of the one around it.
    let mut open: Option<usize> = None;
    loop {
        scan.space();
        let begin = scan.at as u32;
        let (mut opened, mut escaped) = (false, false);
        match scan.peek()? {
            b'"' => escaped = scan.string()?,
            b'{' | b'[' => {
                scan.at += 1;
                opened = true;
            }
            byte if is_word(byte) => scan.word(),
            _ => return None,
        }
        nodes.push(Node { begin, end: scan.at as u32, size: 1, escaped });
        if nodes.len() > MAX_NODES {
            return Some(Indexed::TooMuch);
        }
        if opened {
            let place = nodes.len() - 1;
            nodes.last_mut()?.size = open.map_or(NOWHERE, |around| around as u32);
            open = Some(place);
            if !scan.is_at(close_of(text, begin)?) {
                if text.as_bytes().get(begin as usize) == Some(&b'{') {
                    scan.key_of(nodes)?;
                }
                continue;
            }
        }
        loop {
            let Some(place) = open else {
                scan.space();
                return (scan.at == text.len()).then_some(Indexed::Whole);
            };
            let close = close_of(text, nodes.get(place)?.begin)?;
            if !opened && scan.eat(b',') {
                if close == b'}' {
                    scan.key_of(nodes)?;
                }
                break;
            }
            opened = false;
            scan.eat(close).then_some(())?;
            let (end, size) = (scan.at as u32, (nodes.len() - place) as u32);
            let node = nodes.get_mut(place)?;
            open = Some(node.size).filter(|around| *around != NOWHERE).map(|around| around as usize);
            (node.end, node.size) = (end, size);
        }
    }
}

/// Stands for no place in an index.
const NOWHERE: u32 = u32::MAX;

/// What closes the list or object that begins there.
fn close_of(text: &str, begin: u32) -> Option<u8> {
    match text.as_bytes().get(begin as usize)? {
        b'{' => Some(b'}'),
        _ => Some(b']'),
    }
}

/// A text, in which what is none is replaced.
pub(super) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    // It mostly is one, and looking just for that takes a tenth of the time.
    str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(text: &str) -> Raw<'_> {
        Raw::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn what_other_parsers_refuse_is_read() {
        let odd = parse(r#"{"a":"\ud83d","b":NaN,"c":[-Infinity,1e999],"\udc00":"\x\u12","a" : "last","n":null}"#);
        assert_eq!(odd.get("a").unwrap().text().unwrap(), "last");
        assert_eq!(odd.get("b").unwrap().json(), "NaN");
        assert_eq!(odd.get("c").unwrap().items().count(), 2);
        assert!(odd.get("n").is_none());
        assert_eq!(parse(r#""\ud83d\ude00 \ud83d!\n\"\\\/""#).text().unwrap(), "\u{1f600} \u{fffd}!\n\"\\/");
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert!(Raw::parse(&deep).is_some());
    }

    #[test]
    fn what_is_no_json_is_none() {
        for text in ["", " ", "{not json", "{not: 1}", r#"{"a":}"#, "[1,]", "[1}", "{} {}", r#"{"a" 1}"#, "\"\\\"", "<"]
        {
            assert!(Raw::parse(text).is_none() && Raw::indexed(text, &mut Vec::new()).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_too_much_for_an_index_is_read_without_one() {
        let text = format!("{{\"a\":[{}0],\"b\":7}}", "0,".repeat(MAX_NODES));
        let mut room = Vec::new();
        let raw = Raw::indexed(&text, &mut room).unwrap();
        assert_eq!(raw.get("a").unwrap().items().count(), MAX_NODES + 1);
        assert_eq!(raw.get("b").unwrap().count(), Some(7));
        assert!(raw.nodes.is_empty());
    }

    #[test]
    fn counts_are_read_in_every_spelling_and_nothing_else_is_one() {
        for text in ["7", "7.0", "\"7\"", "0.7e1"] {
            assert_eq!(parse(text).count(), Some(7), "{text}");
        }
        for text in ["-1", "1.5", "true", "null", "NaN", "1e300", "18446744073709551615", "{}"] {
            assert_eq!(parse(text).count(), None, "{text}");
        }
    }

    #[test]
    fn blank_is_what_says_nothing() {
        assert!(["null", "\"\"", "[]", "{ }", "[\n]"].iter().all(|text| parse(text).is_blank()));
        assert!(!["0", "false", "\" \"", "[null]"].iter().any(|text| parse(text).is_blank()));
    }

    #[test]
    fn false_is_what_clients_take_for_no_error() {
        let falsy = ["null", "\"\"", "{}", "false", "0", "0.0", "-0", "[ ]", r#"{"code":0,"message":""}"#];
        assert!(falsy.iter().all(|text| parse(text).is_false()));
        assert!(
            !["true", "1", "\"0\"", "\"false\"", "[0]", "NaN", r#"{"code":1}"#]
                .iter()
                .any(|text| parse(text).is_false())
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u32>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|members| json!(members.into_iter().collect::<serde_json::Map<_, _>>())),
            ]
        })
    }

    /// The same tree, read by this reader alone.
    fn tree(raw: Raw<'_>) -> Value {
        if raw.is_object() {
            raw.members().map(|(key, value)| (key.into_owned(), tree(value))).collect::<serde_json::Map<_, _>>().into()
        } else if raw.is_list() {
            raw.items().map(tree).collect()
        } else if let Some(text) = raw.text() {
            text.into()
        } else {
            serde_json::from_str(raw.json()).unwrap()
        }
    }

    proptest! {
        #[test]
        fn good_json_is_read_as_others_read_it(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let read: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(tree(parse(&text)), read.clone());
            prop_assert_eq!(tree(Raw::indexed(&text, &mut Vec::new()).unwrap()), read);
        }

        #[test]
        fn no_text_makes_it_panic(text in r#"([\[\]{}:,"\\ a1é]|\\u[0-9a-fé]{0,4}){0,40}"#) {
            let mut room = Vec::new();
            let read = [Raw::parse(&text), Raw::indexed(&text, &mut room)];
            prop_assert_eq!(read[0].is_some(), read[1].is_some());
            for raw in read.into_iter().flatten() {
                raw.members().for_each(|(_, value)| { value.text(); value.count(); });
                raw.items().for_each(|value| { value.is_blank(); });
                raw.text();
            }
        }
    }
}
