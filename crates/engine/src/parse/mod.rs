//! What the generated text means: reasoning, answer, tool calls.
//!
//! One format per file. Text comes in pieces cut anywhere; the pieces that come out, neighbours of a kind joined, are the
//! same for any cut. Nothing that the model wrote is lost: markers that turn out to introduce nothing stay text. White
//! space next to a call, and around reasoning, belongs to the markers and is dropped.

mod hermes;
mod marker;
mod reasoning;
mod sloppy;

use hermes::{CallReader, Next};
pub(crate) use marker::SPECIAL;
use marker::{Found, Markers, find, trailing_space};
pub(crate) use reasoning::ReasoningFormat;

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// For the reader.
    Text(String),
    /// Thoughts before the answer.
    Reasoning(String),
    /// A call of this function begins; whether there is such a function is the caller's business.
    Call(String),
    /// More of its arguments, which together are a JSON object as text.
    Arguments(String),
    /// It is complete.
    CallEnd,
    /// It was none after all; its text follows, all of it.
    CallDropped,
}

/// How a model writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen2.5, Qwen3.
    Hermes,
}

impl ToolFormat {
    /// The format a chat template asks for, if it is one that we read.
    ///
    /// Templates of other families use the same marker around XML, so what tells those is looked for first.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        if template.contains("<function=") || template.contains("<arg_key>") {
            return None;
        }
        (template.contains("<tool_call>") && template.contains("tools")).then_some(Self::Hermes)
    }
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// At its start: reasoning may follow.
    #[default]
    Start,
    /// The prompt already opened the reasoning.
    Reasoning,
    /// The prompt already began the answer, which goes on.
    Answer,
}

/// How to read one answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParserOptions {
    /// How the model marks its reasoning, if it reasons.
    pub(crate) reasoning: Option<ReasoningFormat>,
    /// Where the answer begins.
    pub(crate) begins: Beginning,
    /// The tool-call format; `None` when the request has no tools, and then the markers are text like any other.
    pub(crate) tools: Option<ToolFormat>,
    /// The functions that there are. A call within the reasoning counts only if it is of one of them: a model that thinks
    /// about calls may well write one of its own invention.
    pub(crate) functions: Vec<String>,
    /// The markers that are special tokens of this model, and only count as such.
    pub(crate) special: Vec<&'static str>,
}

impl ParserOptions {
    /// The markers that mean something in this answer.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &'static str> {
        let reasoning = self.reasoning.map(|format| [format.open, format.close]);
        let tools = self.tools.map(|ToolFormat::Hermes| [hermes::OPEN, hermes::CLOSE]);
        reasoning.into_iter().chain(tools).flatten()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space so far; `dropped` says that it belongs to an earlier closing marker.
    Before { dropped: bool },
    /// Within the reasoning; `started` once it has text.
    Within { started: bool },
    /// In the answer.
    Answer,
}

/// A tool call that is being read, or what could yet be one.
#[derive(Debug)]
struct OpenCall {
    reader: CallReader,
    /// What is text if it is none: white space, the opening marker, and what was read.
    text: String,
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) struct Parser {
    markers: Markers,
    functions: Vec<String>,
    place: Place,
    call: Option<OpenCall>,
    /// Whether white space belongs to the call before it.
    after_call: bool,
    held: String,
}

impl Parser {
    pub(crate) fn new(options: &ParserOptions) -> Self {
        let place = match (options.reasoning, options.begins) {
            (None, _) | (_, Beginning::Answer) => Place::Answer,
            (Some(_), Beginning::Start) => Place::Before { dropped: false },
            (Some(_), Beginning::Reasoning) => Place::Within { started: false },
        };
        Self {
            markers: Markers::new(options),
            functions: options.functions.clone(),
            place,
            call: None,
            after_call: false,
            held: String::new(),
        }
    }

    /// Whether the text so far ends within the reasoning.
    pub(crate) fn in_reasoning(&self) -> bool {
        matches!(self.place, Place::Within { .. }) && self.call.is_none()
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.held.push_str(text);
        while self.step(&mut pieces) {}
        if let Some(call) = &mut self.call {
            call.reader.flush(&mut pieces);
        }
        self.markers.write_out(&mut pieces);
        pieces
    }

    /// Gives out what was held back. `cut` says that the model had more to say.
    pub(crate) fn finish(&mut self, cut: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if let Some(mut call) = self.call.take() {
            // Some models end their turn instead of closing the last call. What is held could only be a closing marker.
            if call.reader.finish(cut, &mut pieces).is_ok() {
                self.held.clear();
            } else {
                self.give_up(call, &mut pieces);
            }
        }
        let held = std::mem::take(&mut self.held);
        let space = if self.after_call { held.len() - held.trim_start().len() } else { 0 };
        let held = &held[space..];
        match self.place {
            Place::Before { dropped: true } => add_text(&mut pieces, held.trim_start()),
            Place::Before { dropped: false } | Place::Answer => add_text(&mut pieces, held),
            // Unclosed reasoning stays reasoning.
            Place::Within { started: false } => add_reasoning(&mut pieces, held.trim()),
            Place::Within { started: true } => add_reasoning(&mut pieces, held.trim_end()),
        }
        self.markers.write_out(&mut pieces);
        pieces
    }

    /// Takes one decision; false when more text is needed for the next.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.call.is_some() {
            return self.step_call(pieces);
        }
        if self.after_call {
            let space = self.held.len() - self.held.trim_start().len();
            self.held.drain(..space);
            if self.held.is_empty() {
                return false;
            }
            self.after_call = false;
        }
        match self.place {
            Place::Before { dropped } => self.step_before(dropped),
            Place::Within { started: false } => self.step_into(),
            Place::Within { started: true } => {
                let Some(close) = self.markers.close.clone() else { return self.step_text(None, pieces) };
                self.step_text(Some(&close), pieces)
            }
            Place::Answer => self.step_text(None, pieces),
        }
    }

    fn step_before(&mut self, dropped: bool) -> bool {
        let Some(rest) = self.after_open() else { return false };
        match rest {
            Some(rest) => {
                self.held = rest;
                self.place = Place::Within { started: false };
            }
            None => {
                if dropped {
                    self.held = self.held.trim_start().to_owned();
                }
                self.place = Place::Answer;
            }
        }
        true
    }

    /// At the beginning of the reasoning, where some models repeat the marker that their prompt ended with.
    fn step_into(&mut self) -> bool {
        let Some(rest) = self.after_open() else { return false };
        match rest {
            Some(rest) => self.held = rest,
            None => {
                self.held = self.held.trim_start().to_owned();
                self.place = Place::Within { started: true };
            }
        }
        true
    }

    /// What follows the marker that opens reasoning, `Some(None)` if it isn't there, and `None` while it could yet be.
    fn after_open(&self) -> Option<Option<String>> {
        let start = self.held.trim_start();
        let open = self.markers.open.as_deref().unwrap_or_default();
        if start.is_empty() || (start.len() < open.len() && open.starts_with(start)) {
            return None;
        }
        Some(start.strip_prefix(open).map(str::to_owned))
    }

    /// Passes text on up to the next marker: that of a call, or the one that closes the reasoning.
    fn step_text(&mut self, close: Option<&str>, pieces: &mut Vec<Piece>) -> bool {
        let look =
            |marker: Option<&str>| marker.map_or(Found::NotBefore(self.held.len()), |marker| find(&self.held, marker));
        let (call, close_at) = (look(self.markers.call.as_deref()), look(close));
        let first = call.position().min(close_at.position());
        // White space is held back too: it may belong to a marker.
        let end = trailing_space(&self.held[..first], self.markers.any(close));
        let passed: String = self.held.drain(..end).collect();
        self.add(&passed, pieces);
        let at = first - end;
        if close_at == Found::At(first) {
            self.held.drain(..at + close.map_or(0, str::len));
            self.place = Place::Before { dropped: true };
            return true;
        }
        if call == Found::At(first) {
            let names = matches!(self.place, Place::Within { .. }).then(|| self.functions.clone());
            let text = self.held.drain(..at + self.markers.call.as_deref().map_or(0, str::len)).collect();
            self.call = Some(OpenCall { reader: CallReader::new(names), text });
            return true;
        }
        false
    }

    fn step_call(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let Some(mut call) = self.call.take() else { return true };
        let mut read = 0;
        while let Some(next) = self.held[read..].chars().next() {
            let rest = &self.held[read..];
            if !call.reader.in_string() || self.markers.end_is_special() {
                let end = self.markers.end.as_str();
                if rest.starts_with(end) {
                    let before = read;
                    read += end.len();
                    if call.reader.finish(false, pieces).is_ok() {
                        self.after_call = self.place == Place::Answer;
                        self.held.drain(..read);
                    } else {
                        call.text.extend(self.held.drain(..before));
                        self.give_up(call, pieces);
                    }
                    return true;
                }
                if end.starts_with(rest) {
                    break;
                }
            }
            match call.reader.push(next, pieces) {
                Ok(Next::Same) => {}
                Ok(Next::Another) => {
                    // The calls before this one are told, and no text whatever follows.
                    call.text.clear();
                    self.held.drain(..read);
                    read = 0;
                }
                Err(_) => {
                    call.text.extend(self.held.drain(..read));
                    self.give_up(call, pieces);
                    return true;
                }
            }
            read += next.len_utf8();
        }
        call.text.extend(self.held.drain(..read));
        self.call = Some(call);
        false
    }

    /// What was read as a call is none. What follows it is read as if there had been none.
    fn give_up(&mut self, mut call: OpenCall, pieces: &mut Vec<Piece>) {
        call.reader.drop_call(pieces);
        let end = call.text.trim_end().len();
        self.held.insert_str(0, &call.text[end..]);
        self.add(&call.text[..end], pieces);
    }

    fn add(&self, text: &str, pieces: &mut Vec<Piece>) {
        match self.place {
            Place::Within { .. } => add_reasoning(pieces, text),
            Place::Before { .. } | Place::Answer => add_text(pieces, text),
        }
    }
}

fn add_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

fn add_reasoning(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Reasoning(last)) => last.push_str(text),
        _ => pieces.push(Piece::Reasoning(text.to_owned())),
    }
}

#[cfg(test)]
mod tests;
