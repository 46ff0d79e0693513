//! Reads a line of a log file back: whether it is a record, its number, and what a loss record stands for.
//!
//! It knows JSON lines and logfmt as anybody would read them, not how they are written. Enter at [`read`].

use serde::Deserialize;

use super::loss::{FIRST, LAST, LOST, TARGET};

/// What ends a line that was torn when the daemon died; no record of any format ends like this.
pub const TORN: &str = "… (torn)";

/// A line without its newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A record with a number.
    Record {
        /// The number.
        sequence: u64,
        /// What it stands for, if it is about lost records.
        lost: Option<Lost>,
    },
    /// The head of a record in text, which has no number.
    Text,
    /// A part of a record.
    Torn,
    /// Anything else.
    Foreign,
}

/// The numbers that a loss record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Lost {
    /// How many.
    #[serde(rename = "lost")]
    pub count: u64,
    /// The lowest.
    #[serde(rename = "lost_first")]
    pub first: u64,
    /// The highest.
    #[serde(rename = "lost_last")]
    pub last: u64,
}

/// Reads a line.
pub fn read(line: &[u8]) -> Line {
    if line.ends_with(TORN.as_bytes()) {
        return Line::Torn;
    }
    let Ok(text) = std::str::from_utf8(line) else { return Line::Foreign };
    let record = if text.starts_with('{') { json(text) } else { logfmt(text) };
    record.unwrap_or(if is_text(text) { Line::Text } else { Line::Foreign })
}

fn json(text: &str) -> Option<Line> {
    #[derive(Deserialize)]
    struct Record {
        seq: u64,
        target: String,
    }
    let record: Record = serde_json::from_str(text).ok()?;
    let lost = if record.target == TARGET { serde_json::from_str(text).ok() } else { None };
    Some(Line::Record { sequence: record.seq, lost })
}

fn logfmt(text: &str) -> Option<Line> {
    let (mut sequence, mut own) = (None, false);
    let [mut count, mut first, mut last] = [None; 3];
    for pair in Pairs(text) {
        let (key, value) = pair?;
        match key {
            "seq" => sequence = value.parse().ok(),
            // A module path needs no quotes.
            "target" => own = value == TARGET,
            LOST => count = value.parse().ok(),
            FIRST => first = value.parse().ok(),
            LAST => last = value.parse().ok(),
            _ => {}
        }
    }
    let lost = || Some(Lost { count: count?, first: first?, last: last? });
    Some(Line::Record { sequence: sequence?, lost: if own { lost() } else { None } })
}

/// The keys and values of a logfmt line, the latter as written; `None` for what is neither.
struct Pairs<'a>(&'a str);

impl<'a> Iterator for Pairs<'a> {
    type Item = Option<(&'a str, &'a str)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let pair = split_pair(self.0);
        self.0 = pair.map_or("", |(_, rest)| rest);
        Some(pair.map(|(pair, _)| pair))
    }
}

/// The first pair, and what follows the space behind it.
fn split_pair(text: &str) -> Option<((&str, &str), &str)> {
    let (key, rest) = text.split_once('=')?;
    let end = if rest.starts_with('"') {
        let mut escaped = false;
        let closing = |(_, byte): &(usize, u8)| {
            let closes = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            closes
        };
        rest.bytes().enumerate().skip(1).find(closing)?.0 + 1
    } else {
        rest.find(' ').unwrap_or(rest.len())
    };
    let (value, rest) = rest.split_at(end);
    let plain = !key.is_empty() && !key.contains([' ', '"']) && (value.starts_with('"') || !value.contains('"'));
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(' ')? };
    plain.then_some(((key, value), rest))
}

/// `2026-11-20T23:11:34.123456Z | INFO     | …`
fn is_text(text: &str) -> bool {
    let Some((timestamp, rest)) = text.split_once(" | ") else { return false };
    timestamp.parse::<jiff::Timestamp>().is_ok() && rest.contains(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64) -> Line {
        Line::Record { sequence, lost: None }
    }

    #[test]
    fn finds_the_key_and_not_its_image_in_a_message() {
        let json = r#"{"timestamp":"t","target":"a","message":"x\",\"seq\":9,","seq":41,"a":{"seq":7}}"#;
        assert_eq!(read(json.as_bytes()), record(41));
        assert_eq!(read(br#"timestamp=t message="a seq=9 \" seq=8 \\" seq=42 b=1"#), record(42));
    }

    #[test]
    fn loss_record_says_what_it_stands_for() {
        let lost = Some(Lost { count: 3, first: 4, last: 9 });
        let json = format!(r#"{{"target":"{TARGET}","seq":10,"lost":3,"lost_first":4,"lost_last":9}}"#);
        assert_eq!(read(json.as_bytes()), Line::Record { sequence: 10, lost });
        let logfmt = format!("target={TARGET} message=\"3 lost\" seq=10 lost=3 lost_first=4 lost_last=9");
        assert_eq!(read(logfmt.as_bytes()), Line::Record { sequence: 10, lost });
        // Anybody may have fields of these names.
        assert_eq!(read(json.replace(TARGET, "other").as_bytes()), record(10));
        assert_eq!(read(logfmt.replace(TARGET, "other").as_bytes()), record(10));
    }

    #[test]
    fn everything_else_is_no_record() {
        for foreign in [
            "",
            "plain words",
            "{\"seq\":1}",
            "{\"target\":\"a\",\"seq\":1} {}",
            "{\"target\":\"a\",\"seq\":-1}",
            "{\"target\":\"a\",\"message\":\"torn,",
            "a=1 message=\"torn seq=5",
            "a=1 b=2",
            "seq=x",
            "seq=1  two spaces=3",
            "a=\"b\"c=d seq=1",
        ] {
            assert_eq!(read(foreign.as_bytes()), Line::Foreign, "{foreign}");
        }
        assert_eq!(read(b"seq=1 a=\xff"), Line::Foreign);
        assert_eq!(read("a=1 seq=4… (torn)".as_bytes()), Line::Torn);
        assert_eq!(read(b"2026-11-20T23:11:34.123456Z | INFO     | a::b:88 - message seq=3"), Line::Text);
        assert_eq!(read(b"2026-11-20T23:11:34.123456+01:00 | INFO     | a::b:88 - message"), Line::Text);
    }
}
