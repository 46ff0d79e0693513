//! Passing over JSON at the speed of memory: what a field holds is looked at by whoever wants it.
//!
//! It takes what the grammar takes and nothing else, but doesn't say what is wrong with the rest.

use std::ops::Range;

use memchr::memchr2;

/// A text above this length, in bytes, is a long one.
const LONG_TEXT: usize = 16 * 1024;

/// A place in a text that is being read.
pub(super) struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    /// Where long texts are, between their quotes.
    pub(super) long_texts: Vec<Range<usize>>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0, long_texts: Vec::new() }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Passes spaces and this byte, if it is what comes next.
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Whether nothing comes any more.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.space();
        self.at == self.text.len()
    }

    /// Passes a name and its colon, and says where it is, quotes included.
    pub(super) fn name(&mut self) -> Option<Range<usize>> {
        let name = self.quoted()?;
        self.eat(b':').then_some(name)
    }

    /// Passes a value and says where it is.
    pub(super) fn value(&mut self) -> Option<Range<usize>> {
        self.space();
        let begin = self.at;
        // What closes the lists and objects that are open. Not by recursion: nobody bounds how deep a body goes.
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek()? {
                b'"' => self.text()?,
                opening @ (b'{' | b'[') => {
                    self.at += 1;
                    let close = if opening == b'{' { b'}' } else { b']' };
                    if !self.eat(close) {
                        open.push(close);
                        if close == b'}' {
                            self.name()?;
                        }
                        continue;
                    }
                }
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => self.number()?,
            }
            loop {
                let Some(close) = open.last().copied() else { return Some(begin..self.at) };
                if self.eat(b',') {
                    if close == b'}' {
                        self.name()?;
                    }
                    break;
                }
                self.eat(close).then_some(())?;
                open.pop();
            }
        }
    }

    fn text(&mut self) -> Option<()> {
        let Range { start, end } = self.quoted()?;
        if end - start > LONG_TEXT {
            self.long_texts.push(start + 1..end - 1);
        }
        Some(())
    }

    /// Passes a text, and says where it is, quotes included.
    fn quoted(&mut self) -> Option<Range<usize>> {
        self.eat(b'"').then_some(())?;
        let begin = self.at - 1;
        loop {
            let rest = self.text.get(self.at..)?;
            let (plain, rest) = rest.split_at_checked(memchr2(b'"', b'\\', rest)?)?;
            // Without a way out, which is how a compiler makes it look at many bytes at once.
            if plain.iter().fold(false, |found, byte| found | (*byte < b' ')) {
                return None;
            }
            self.at += plain.len();
            self.at += match rest {
                [b'"', ..] => break,
                [_, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                [_, b'u', digits @ ..] if digits.get(..4)?.iter().all(u8::is_ascii_hexdigit) => 6,
                _ => return None,
            };
        }
        self.at += 1;
        Some(begin..self.at)
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let is_there = self.text.get(self.at..)?.starts_with(word);
        self.at += word.len();
        is_there.then_some(())
    }

    fn number(&mut self) -> Option<()> {
        self.at += usize::from(self.peek() == Some(b'-'));
        let begins_with_0 = self.peek() == Some(b'0');
        if self.digits()? > 1 && begins_with_0 {
            return None;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        Some(())
    }

    /// Passes digits, of which there must be one, and says how many.
    fn digits(&mut self) -> Option<usize> {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Some(self.at - begin).filter(|digits| *digits > 0)
    }
}
