//! Server-sent events: an incremental parser that keeps the bytes of every frame, and the encoder.
//!
//! Knows nothing of what the frames say. The format is the one of the WHATWG HTML standard, section "Server-sent events",
//! but for two things: a stream that ended well may leave out the last blank line, as clients let it, and a field `error`,
//! by which some servers say what went wrong, is read.

use bytes::{Bytes, BytesMut};
use serde::Serialize;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One block of lines up to its blank line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Every byte of the block, line ends included. The raws of all frames of a stream, joined, are the stream.
    pub raw: Bytes,
    /// The `event` field; empty when the block has none.
    pub(super) event: Bytes,
    /// The `data` lines joined by line feeds; `None` when the block has none (a comment, a stray blank line).
    pub(super) data: Option<Bytes>,
    /// The `error` field.
    pub(super) error: Option<Bytes>,
    /// Whether any of its lines is none of an event stream.
    pub(super) is_foreign: bool,
}

/// Why a stream is no sequence of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A frame is longer than allowed.
    #[error("a frame of the event stream is longer than {limit} bytes")]
    FrameTooLong {
        /// The most bytes a frame may have.
        limit: usize,
    },
}

/// Splits a byte stream into [`Frame`]s; any chunking of the same bytes gives the same frames.
#[derive(Debug)]
pub struct Parser {
    buffer: BytesMut,
    /// Where the line begins that is being read.
    line: usize,
    /// The first byte not looked at yet.
    cursor: usize,
    /// Whether the line before, in the same frame, ended in a carriage return alone.
    bare_return: bool,
    /// Whether a frame was given out already; a byte order mark counts only before that.
    begun: bool,
    limit: usize,
}

impl Parser {
    /// A parser that refuses frames longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), line: 0, cursor: 0, bare_return: false, begun: false, limit }
    }

    /// Takes more of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole frame, or `None` until more is pushed.
    ///
    /// # Errors
    /// When a frame exceeds the limit; the stream can't be read on after that.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SseError> {
        while let Some(offset) = self.buffer[self.cursor..].iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            let at = self.cursor + offset;
            let blank = at == self.line;
            let mut next = at + 1;
            let mut bare_return = false;
            if self.buffer[at] == b'\r' {
                // In a stream of bare returns the blank line is complete with its return. Everywhere else a line feed
                // may belong to it, and the next byte has to be waited for.
                if blank && self.bare_return {
                    bare_return = true;
                } else if let Some(byte) = self.buffer.get(next) {
                    bare_return = *byte != b'\n';
                    next += usize::from(!bare_return);
                } else {
                    self.cursor = at;
                    return self.check_length(self.buffer.len()).map(|()| None);
                }
            }
            if blank {
                self.check_length(next)?;
                return Ok(Some(self.take(next)));
            }
            self.line = next;
            self.cursor = next;
            self.bare_return = bare_return;
        }
        self.cursor = self.buffer.len();
        self.check_length(self.cursor).map(|()| None)
    }

    /// What is left when the stream has ended: a last frame without its blank line.
    pub fn finish(&mut self) -> Option<Frame> {
        (!self.buffer.is_empty()).then(|| self.take(self.buffer.len()))
    }

    /// How many bytes wait for the end of their frame.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    fn check_length(&self, length: usize) -> Result<(), SseError> {
        if length > self.limit { Err(SseError::FrameTooLong { limit: self.limit }) } else { Ok(()) }
    }

    fn take(&mut self, end: usize) -> Frame {
        let raw = self.buffer.split_to(end).freeze();
        let first = !std::mem::replace(&mut self.begun, true);
        (self.line, self.cursor, self.bare_return) = (0, 0, false);
        read_fields(raw, first)
    }
}

fn read_fields(raw: Bytes, first: bool) -> Frame {
    let text = if first { raw.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&raw) } else { &raw };
    let mut event = Bytes::new();
    let mut data: Option<Bytes> = None;
    let mut error = None;
    let mut is_foreign = false;
    // The empty line within a CRLF pair is no field and falls through.
    for line in text.split(|byte| matches!(byte, b'\r' | b'\n')) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => event = raw.slice_ref(value),
            b"error" => error = Some(raw.slice_ref(value)),
            b"data" => {
                data = Some(match data {
                    None => raw.slice_ref(value),
                    Some(before) => [&before, value].join(&b'\n').into(),
                });
            }
            // `id`, `retry` and comments mean nothing to an answer; they are in `raw`.
            b"" | b"id" | b"retry" => {}
            _ => is_foreign = true,
        }
    }
    Frame { raw, event, data, error, is_foreign }
}

/// Whether a text begins as event streams do.
pub(super) fn begins(text: &str) -> bool {
    ["data:", "event:", "id:", "retry:", ":"].iter().any(|field| text.trim_start().starts_with(field))
}

/// Whether a frame has its blank line.
pub(super) fn is_finished(raw: &[u8]) -> bool {
    let lines = raw.strip_suffix(b"\r\n").or_else(|| raw.strip_suffix(b"\n")).or_else(|| raw.strip_suffix(b"\r"));
    lines.is_some_and(|lines| matches!(lines.last(), None | Some(b'\r' | b'\n')))
}

/// Appends a frame whose data is `data` as one line of JSON.
pub(super) fn write(out: &mut Vec<u8>, event: Option<&str>, data: &impl Serialize) {
    begin(out, event);
    super::json::write(out, data);
    out.extend_from_slice(b"\n\n");
}

/// Appends a frame whose data is `data` as it is, line by line.
pub(super) fn write_text(out: &mut Vec<u8>, event: Option<&str>, data: &[u8]) {
    for (index, line) in data.split(|byte| *byte == b'\n').enumerate() {
        if index == 0 {
            begin(out, event);
        } else {
            out.extend_from_slice(b"\ndata: ");
        }
        out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
    }
    out.extend_from_slice(b"\n\n");
}

/// Writes a comment, as a frame of its own. It must be one line.
pub(super) fn write_comment(out: &mut Vec<u8>, comment: &str) {
    out.extend_from_slice(b": ");
    out.extend_from_slice(comment.as_bytes());
    out.extend_from_slice(b"\n\n");
}

fn begin(out: &mut Vec<u8>, event: Option<&str>) {
    if let Some(event) = event {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Frames, and why there are no more.
    pub(crate) fn parse(chunks: &[&[u8]], limit: usize) -> (Vec<Frame>, Option<SseError>) {
        let mut parser = Parser::new(limit);
        let mut frames = Vec::new();
        for chunk in chunks {
            parser.push(chunk);
            loop {
                match parser.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
        (frames, None)
    }

    fn read(text: &str) -> Vec<(String, Option<String>)> {
        let (frames, error) = parse(&[text.as_bytes()], 1000);
        assert_eq!(error, None, "{text:?}");
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        frames.iter().map(|frame| (text(&frame.event), frame.data.as_ref().map(text))).collect()
    }

    fn frame(event: &str, data: &str) -> (String, Option<String>) {
        (event.to_owned(), Some(data.to_owned()))
    }

    #[test]
    fn every_line_end_and_field_form_is_read() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["\u{feff}event: a", "data: 1", "", ": note", "data:2", "data", "data:  3", "id: 7", "", ""];
            assert_eq!(read(&text.join(end)), [frame("a", "1"), frame("", "2\n\n 3")], "{end:?}");
        }
        assert_eq!(read(": only a comment\n\n"), [(String::new(), None)]);
        assert_eq!(read("data: x\r\n\r\n\r\ndata: y\r\n\r\n").len(), 3);
    }

    #[test]
    fn a_frame_is_given_out_with_its_last_byte() {
        for text in ["data: x\n\n", "data: x\r\n\r\n", "data: x\r\r"] {
            let mut parser = Parser::new(100);
            parser.push(&text.as_bytes()[..text.len() - 1]);
            assert_eq!(parser.next_frame(), Ok(None), "{text:?}");
            parser.push(&text.as_bytes()[text.len() - 1..]);
            assert_eq!(parser.next_frame().unwrap().unwrap().raw, text, "{text:?}");
        }
    }

    #[test]
    fn an_unfinished_frame_is_none_before_the_end() {
        for (text, data) in [
            ("data: x", Some("x")),
            ("data: x\r", Some("x")),
            ("data: x\r\n", Some("x")),
            ("event: a\n", None),
            ("da", None),
            (":c\ndata: x\n", Some("x")),
        ] {
            assert_eq!(read(text), [], "{text:?}");
            let mut parser = Parser::new(100);
            parser.push(text.as_bytes());
            assert_eq!((parser.next_frame(), parser.pending()), (Ok(None), text.len()));
            let last = parser.finish().unwrap();
            assert_eq!((&last.raw[..], last.data.as_deref()), (text.as_bytes(), data.map(str::as_bytes)), "{text:?}");
            assert_eq!(parser.finish(), None);
        }
        for text in ["data: a\n\ndata: b", "data: a\n\n: bye"] {
            assert_eq!(read(text), [frame("", "a")], "{text:?}");
        }
    }

    #[test]
    fn a_frame_is_finished_by_a_blank_line() {
        for text in ["a\n\n", "a\r\n\r\n", "a\r\r", "a\r\n\n", "a\n\r", "a\n\r\n", "\n", "\r\n", "\r"] {
            assert!(is_finished(text.as_bytes()), "{text:?}");
        }
        for text in ["", "a", "a\n", "a\r\n", "a\r"] {
            assert!(!is_finished(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused() {
        assert_eq!(parse(&[b"data: 6789\n\n"], 12).1, None);
        assert_eq!(parse(&[b"data: 6789\n\n"], 11).1, Some(SseError::FrameTooLong { limit: 11 }));
        assert_eq!(parse(&[b"data: 6789012"], 11).1, Some(SseError::FrameTooLong { limit: 11 }));
    }

    #[test]
    fn written_frames_are_read_back() {
        let mut out = Vec::new();
        write(&mut out, Some("ping"), &serde_json::json!({"a": "line\nline"}));
        write_text(&mut out, None, b"one\r\ntwo");
        assert_eq!(out, b"event: ping\ndata: {\"a\":\"line\\nline\"}\n\ndata: one\ndata: two\n\n");
        assert_eq!(
            read(std::str::from_utf8(&out).unwrap()),
            [frame("ping", r#"{"a":"line\nline"}"#), frame("", "one\ntwo")]
        );
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(
            text in "(data: ?|event:|:|a|é|\u{feff}|\r\n|\n|\r|\n\n|\r\n\r\n){0,24}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let whole = parse(&[bytes], 64);
            prop_assert_eq!(&whole, &parse(&chunks, 64));
            let joined: Vec<u8> = whole.0.iter().flat_map(|frame| frame.raw.to_vec()).collect();
            prop_assert!(bytes.starts_with(&joined));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&[&bytes], 100);
        }
    }
}
