//! Doors for the targets in `fuzz/`, which see public names only. Not in any build but theirs.

use jiff::Zoned;

use super::{
    parse::{Beginning, Parser, ParserOptions, Piece, ReasoningFormat, ToolFormat},
    stop::StopMatcher,
    template::{ChatTemplate, Variables},
};

/// Cuts a text into pieces of these lengths in bytes, or more where a character would be cut; the rest is the last piece.
fn cut<'a>(text: &'a str, lengths: &[u8]) -> Vec<&'a str> {
    let mut rest = text;
    let mut pieces = Vec::new();
    for length in lengths {
        let end = (usize::from(*length)..rest.len()).find(|end| rest.is_char_boundary(*end)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

/// Reads an answer whole and in pieces, which must come to the same.
pub fn read_answer(text: &str, lengths: &[u8], begins_in_reasoning: bool, tools: bool) {
    let options = ParserOptions {
        reasoning: ReasoningFormat::of_template("<think>"),
        begins: if begins_in_reasoning { Beginning::Reasoning } else { Beginning::Start },
        tools: tools.then_some(ToolFormat::Hermes),
        functions: vec!["f".to_owned()],
        special: Vec::new(),
    };
    let read = |pieces: &[&str]| {
        let mut parser = Parser::new(&options);
        let mut found: Vec<Piece> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        found.extend(parser.finish(false));
        joined(found)
    };
    assert_eq!(read(&cut(text, lengths)), read(&[text]));
}

/// Neighbours of a kind as one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (piece, joined.last_mut()) {
            (Piece::Text(text), Some(Piece::Text(last))) => last.push_str(&text),
            (Piece::Reasoning(text), Some(Piece::Reasoning(last))) => last.push_str(&text),
            (Piece::Arguments(text), Some(Piece::Arguments(last))) => last.push_str(&text),
            (piece, _) => joined.push(piece),
        }
    }
    joined
}

/// Looks for stop sequences in a text whole and in pieces, which must come to the same and let none of them through.
pub fn look_for_stops(text: &str, stops: &[String], lengths: &[u8]) {
    let look = |pieces: &[&str]| {
        let mut matcher = StopMatcher::new(stops);
        let mut passed = String::new();
        for piece in pieces {
            let now = matcher.push(piece);
            passed.push_str(&now.text);
            if now.matched.is_some() {
                return (passed, now.matched);
            }
        }
        passed.push_str(&matcher.finish());
        (passed, None)
    };
    let whole = look(&[text]);
    assert_eq!(look(&cut(text, lengths)), whole);
    let mut stops = stops.iter().filter(|stop| !stop.is_empty());
    assert!(stops.all(|stop| !whole.0.contains(stop)));
    assert!(whole.1.is_some() || whole.0 == text);
}

/// Renders a text as a chat template, which may fail and no more.
pub fn render_template(source: &str) {
    if let Ok(template) = ChatTemplate::new(source, None) {
        let _rendered = template.render(Variables::default(), Zoned::default());
    }
}
