//! JSON as small models write it, read character by character and written out as JSON.
//!
//! What is valid comes out as it stands. Repaired is only what can mean one thing: a control character in a string, a
//! backslash that begins no escape, half a surrogate pair, single quotes, Python's `True`, `False` and `None`, a key without
//! quotes, a comma before a closing bracket, and, once the text has ended, brackets that weren't closed. Everything else
//! is [`Malformed`]. What came out is never changed by what follows.

use std::ops::Range;

/// The deepest nesting that readers of JSON take without trouble.
const MAX_DEPTH: usize = 100;

/// Bytes of `false`.
const LONGEST_LITERAL: usize = 5;

/// The text means nothing for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Something that began or ended one level below the outermost value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// A key of the outermost object, quotes included, as a place in what came out.
    Key(Range<usize>),
    /// The value after it, likewise.
    Value(Range<usize>),
}

/// Reads one value.
#[derive(Debug, Default)]
pub(super) struct Sloppy {
    /// The JSON so far.
    out: String,
    /// The open brackets: whether each is an object's.
    open: Vec<bool>,
    expects: Expects,
    within: Within,
    /// A comma and the white space after it, which a closing bracket would make one too many.
    comma: String,
    /// Where the member that is being read began in `out`.
    began: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Expects {
    #[default]
    Value,
    /// A first element, or the end of the array.
    FirstElement,
    /// A key, or the end of the object.
    Key,
    Colon,
    CommaOrEnd,
    Nothing,
}

/// The token that is being read.
#[derive(Debug, Default)]
enum Within {
    #[default]
    Nothing,
    String {
        quote: char,
        escape: Escape,
    },
    /// A key without quotes.
    Name,
    /// A number or a literal, which comes out when it is over.
    Word(String),
}

/// An escape that is being read; `high` is the first half of a surrogate pair before it, as four digits.
#[derive(Debug, Default)]
enum Escape {
    #[default]
    No,
    AfterHigh(String),
    Backslash {
        high: Option<String>,
    },
    Unicode {
        high: Option<String>,
        digits: String,
    },
}

impl Sloppy {
    /// The JSON so far.
    pub(super) fn out(&self) -> &str {
        &self.out
    }

    /// Whether the next character belongs to a string whatever it is.
    pub(super) fn in_string(&self) -> bool {
        matches!(self.within, Within::String { .. })
    }

    /// Whether the value is complete.
    pub(super) fn is_done(&self) -> bool {
        self.expects == Expects::Nothing
    }

    /// Where the object began that was opened last, if it is a value of the outermost one's.
    pub(super) fn opened(&self) -> Option<usize> {
        (self.open == [true, true]).then_some(self.began)
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, next: char) -> Result<Option<Member>, Malformed> {
        match &mut self.within {
            Within::String { .. } => return Ok(self.push_string(next)),
            Within::Name if next.is_alphanumeric() || matches!(next, '_' | '-' | '$') => {
                self.out.push(next);
                return Ok(None);
            }
            Within::Name => {
                self.out.push('"');
                let key = self.end_string();
                self.push_other(next)?;
                return Ok(key);
            }
            Within::Word(word) if next.is_ascii_alphanumeric() || matches!(next, '+' | '-' | '.') => {
                word.push(next);
                let is_literal = word.starts_with(|first: char| first.is_ascii_alphabetic());
                return if is_literal && word.len() > LONGEST_LITERAL { Err(Malformed) } else { Ok(None) };
            }
            Within::Word(_) => {
                // If both end a value, one of them is no member.
                let value = self.end_word()?;
                let after = self.push_other(next)?;
                return Ok(value.or(after));
            }
            Within::Nothing => {}
        }
        self.push_other(next)
    }

    /// The text has ended: closes what is open.
    pub(super) fn close(&mut self) -> Result<Vec<Member>, Malformed> {
        let mut members = Vec::new();
        if matches!(self.within, Within::Word(_)) {
            members.extend(self.end_word()?);
        }
        while !self.is_done() {
            // After a comma or a colon something is missing that nobody knows.
            if self.expects != Expects::CommaOrEnd || !self.comma.is_empty() || self.in_string() {
                return Err(Malformed);
            }
            members.extend(self.end_bracket());
        }
        Ok(members)
    }

    fn push_other(&mut self, next: char) -> Result<Option<Member>, Malformed> {
        if matches!(next, ' ' | '\t' | '\n' | '\r') {
            if self.comma.is_empty() { &mut self.out } else { &mut self.comma }.push(next);
            return Ok(None);
        }
        match (self.expects, next) {
            (Expects::CommaOrEnd, ',') if self.comma.is_empty() => {
                self.comma.push(',');
                self.expects = if self.in_object() { Expects::Key } else { Expects::FirstElement };
                Ok(None)
            }
            (Expects::CommaOrEnd | Expects::Key, '}') if self.in_object() => self.end(),
            (Expects::CommaOrEnd | Expects::FirstElement, ']') if !self.in_object() => self.end(),
            (Expects::Colon, ':') => {
                self.out.push(':');
                self.expects = Expects::Value;
                Ok(None)
            }
            (Expects::Key, _) => self.begin_key(next).map(|()| None),
            (Expects::Value | Expects::FirstElement, _) => self.begin_value(next).map(|()| None),
            _ => Err(Malformed),
        }
    }

    fn in_object(&self) -> bool {
        self.open.last().copied().unwrap_or_default()
    }

    /// A closing bracket; a comma before it was one too many, the white space after it isn't.
    fn end(&mut self) -> Result<Option<Member>, Malformed> {
        let comma = std::mem::take(&mut self.comma);
        self.out.push_str(comma.strip_prefix(',').unwrap_or_default());
        Ok(self.end_bracket())
    }

    fn end_bracket(&mut self) -> Option<Member> {
        self.out.push(if self.open.pop().unwrap_or_default() { '}' } else { ']' });
        self.end_value()
    }

    fn end_value(&mut self) -> Option<Member> {
        self.expects = if self.open.is_empty() { Expects::Nothing } else { Expects::CommaOrEnd };
        (self.open.len() == 1).then_some(Member::Value(self.began..self.out.len()))
    }

    fn flush_comma(&mut self) {
        self.out.push_str(&std::mem::take(&mut self.comma));
    }

    fn begin_key(&mut self, next: char) -> Result<(), Malformed> {
        self.flush_comma();
        self.mark();
        self.out.push('"');
        self.within = match next {
            '"' | '\'' => Within::String { quote: next, escape: Escape::No },
            _ if next.is_alphabetic() || matches!(next, '_' | '$') => {
                self.out.push(next);
                Within::Name
            }
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn begin_value(&mut self, next: char) -> Result<(), Malformed> {
        self.flush_comma();
        self.mark();
        match next {
            '"' | '\'' => {
                self.out.push('"');
                self.within = Within::String { quote: next, escape: Escape::No };
            }
            '{' | '[' if self.open.len() < MAX_DEPTH => {
                self.out.push(next);
                self.open.push(next == '{');
                self.expects = if next == '{' { Expects::Key } else { Expects::FirstElement };
            }
            '-' | '0'..='9' | 'a'..='z' | 'A'..='Z' => self.within = Within::Word(next.into()),
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn mark(&mut self) {
        if self.open.len() == 1 {
            self.began = self.out.len();
        }
    }

    fn end_word(&mut self) -> Result<Option<Member>, Malformed> {
        let Within::Word(word) = std::mem::take(&mut self.within) else { return Ok(None) };
        match word.as_str() {
            "True" => self.out.push_str("true"),
            "False" => self.out.push_str("false"),
            "None" => self.out.push_str("null"),
            word if serde_json::from_str::<serde::de::IgnoredAny>(word).is_ok() => self.out.push_str(word),
            _ => return Err(Malformed),
        }
        Ok(self.end_value())
    }

    /// The closing quote of a key or a value is out.
    fn end_string(&mut self) -> Option<Member> {
        self.within = Within::Nothing;
        if self.expects == Expects::Key {
            self.expects = Expects::Colon;
            return (self.open.len() == 1).then_some(Member::Key(self.began..self.out.len()));
        }
        self.end_value()
    }

    fn push_string(&mut self, next: char) -> Option<Member> {
        let Within::String { quote, escape } = &mut self.within else { return None };
        let (quote, out) = (*quote, &mut self.out);
        match std::mem::take(escape) {
            Escape::AfterHigh(high) if next == '\\' => *escape = Escape::Backslash { high: Some(high) },
            Escape::Backslash { high } if next == 'u' => *escape = Escape::Unicode { high, digits: String::new() },
            Escape::Unicode { high, mut digits } if next.is_ascii_hexdigit() => {
                digits.push(next);
                if digits.len() < 4 {
                    *escape = Escape::Unicode { high, digits };
                } else {
                    *escape = write_unit(out, high, digits);
                }
            }
            Escape::No => return self.push_plain(quote, next),
            Escape::AfterHigh(_) => {
                out.push_str(LONE_HALF);
                return self.push_plain(quote, next);
            }
            Escape::Backslash { high } => {
                out.push_str(if high.is_some() { LONE_HALF } else { "" });
                match next {
                    '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => out.extend(['\\', next]),
                    '\'' if quote == '\'' => out.push('\''),
                    _ => {
                        out.push_str(r"\\");
                        return self.push_plain(quote, next);
                    }
                }
            }
            Escape::Unicode { high, digits } => {
                out.push_str(if high.is_some() { LONE_HALF } else { "" });
                out.push_str(r"\\u");
                out.push_str(&digits);
                return self.push_plain(quote, next);
            }
        }
        None
    }

    /// A character of a string that belongs to no escape, or begins one.
    fn push_plain(&mut self, quote: char, next: char) -> Option<Member> {
        let out = &mut self.out;
        match next {
            _ if next == quote => {
                out.push('"');
                return self.end_string();
            }
            '\\' => self.within = Within::String { quote, escape: Escape::Backslash { high: None } },
            '"' => out.push_str("\\\""),
            '\n' => out.push_str(r"\n"),
            '\r' => out.push_str(r"\r"),
            '\t' => out.push_str(r"\t"),
            '\0'..'\u{20}' => out.push_str(&format!(r"\u{:04x}", u32::from(next))),
            _ => out.push(next),
        }
        None
    }
}

/// What stands for half of a surrogate pair, which is no character.
const LONE_HALF: &str = r"\ufffd";

/// Writes a unit of UTF-16 that was escaped, or keeps it until its other half has come.
fn write_unit(out: &mut String, high: Option<String>, digits: String) -> Escape {
    let unit = u16::from_str_radix(&digits, 16).unwrap_or_default();
    match (unit, high) {
        (0xDC00..0xE000, Some(high)) => {
            for half in [high, digits] {
                out.push_str(r"\u");
                out.push_str(&half);
            }
        }
        (0xD800..0xDC00, high) => {
            out.push_str(if high.is_some() { LONE_HALF } else { "" });
            return Escape::AfterHigh(digits);
        }
        (0xDC00..0xE000, None) => out.push_str(LONE_HALF),
        (_, high) => {
            out.push_str(if high.is_some() { LONE_HALF } else { "" });
            out.push_str(r"\u");
            out.push_str(&digits);
        }
    }
    Escape::No
}
