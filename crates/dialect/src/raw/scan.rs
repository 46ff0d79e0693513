//! The reading place in foreign JSON: passes over spaces, texts, words and whole values, and allocates nothing for them.

use std::borrow::Cow;

use memchr::memchr2;

use super::{Node, Raw};

/// Texts up to this length, in bytes, are the rule.
const SHORT: usize = 16;

/// A place in a text that is being read.
pub(super) struct Scan<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub(super) fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    pub(super) fn is_at(&mut self, byte: u8) -> bool {
        self.space();
        self.peek() == Some(byte)
    }

    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let found = self.is_at(byte);
        self.at += usize::from(found);
        found
    }

    /// Passes a text, quotes included, and says whether something in it is escaped.
    pub(super) fn string(&mut self) -> Option<bool> {
        self.eat(b'"').then_some(())?;
        let mut escaped = false;
        loop {
            let rest = self.text.as_bytes().get(self.at..)?;
            // Keys and most values are short, and looking for their ends by hand takes less than setting out to do it fast.
            let end = |byte: &u8| matches!(byte, b'"' | b'\\');
            let near = rest.iter().take(SHORT).position(end);
            self.at += near.or_else(|| Some(SHORT + memchr2(b'"', b'\\', rest.get(SHORT..)?)?))?;
            match self.peek()? {
                b'"' => break,
                // What is escaped may be a quote.
                _ => self.at += 2,
            }
            escaped = true;
        }
        self.at += 1;
        Some(escaped)
    }

    pub(super) fn key(&mut self) -> Option<Cow<'a, str>> {
        self.space();
        let begin = self.at;
        let escaped = self.string()?;
        let key = self.text.get(begin + 1..self.at - 1)?;
        self.eat(b':').then_some(())?;
        Some(if escaped { Cow::Owned(unescape(key)) } else { Cow::Borrowed(key) })
    }

    /// Passes a key and its colon, and puts it into an index.
    pub(super) fn key_of(&mut self, nodes: &mut Vec<Node>) -> Option<()> {
        self.space();
        let begin = self.at as u32;
        let escaped = self.string()?;
        nodes.push(Node { begin, end: self.at as u32, size: 1, escaped });
        self.eat(b':').then_some(())
    }

    /// Passes a number or the like.
    pub(super) fn word(&mut self) {
        while self.peek().is_some_and(is_word) {
            self.at += 1;
        }
    }

    /// Passes a value of which is known that it is one.
    pub(super) fn skip(&mut self) -> Option<Raw<'a>> {
        self.space();
        let begin = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                byte if is_word(byte) => self.word(),
                _ => self.at += 1,
            }
            if depth == 0 {
                return self.text.get(begin..self.at).map(Raw::plain);
            }
        }
    }

    /// Passes a value if there is one.
    pub(super) fn value(&mut self) -> Option<Raw<'a>> {
        self.space();
        let begin = self.at;
        // What closes the lists and objects that are open. Not by recursion: nobody bounds how deep foreign JSON goes.
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                opening @ (b'{' | b'[') => {
                    self.at += 1;
                    let close = if opening == b'{' { b'}' } else { b']' };
                    if !self.eat(close) {
                        open.push(close);
                        if close == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                byte if is_word(byte) => self.word(),
                _ => return None,
            }
            loop {
                let Some(close) = open.last().copied() else { return self.text.get(begin..self.at).map(Raw::plain) };
                if self.eat(b',') {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                }
                self.eat(close).then_some(())?;
                open.pop();
            }
        }
    }
}

/// What numbers, `true`, `null` and `NaN` consist of.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// Resolves the escapes of a JSON text.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units: Vec<u16> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let unit = rest.strip_prefix("\\u").and_then(|hex| u16::from_str_radix(hex.get(..4)?, 16).ok());
        if let Some(unit) = unit {
            // Two of them may be one character, so they are resolved together.
            units.push(unit);
            rest = &rest[6..];
            continue;
        }
        resolve(&mut units, &mut out);
        let mut chars = rest.chars();
        match (chars.next(), chars.clone().next()) {
            (Some('\\'), Some(escaped)) => {
                out.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    other => other,
                });
                chars.next();
            }
            (Some(plain), _) => out.push(plain),
            (None, _) => {}
        }
        rest = chars.as_str();
    }
    resolve(&mut units, &mut out);
    out
}

fn resolve(units: &mut Vec<u16>, out: &mut String) {
    out.extend(char::decode_utf16(units.drain(..)).map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER)));
}
