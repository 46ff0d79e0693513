//! Reasoning between two markers, before the answer.
//!
//! Markers count only where reasoning can begin: at the start of the answer or right after other reasoning. In the midst
//! of an answer `<think>` is something the model writes about. The first closing marker ends the reasoning, however many
//! were opened, because a model that mentions its marker while it thinks would otherwise never get to its answer. White
//! space around the reasoning belongs to the markers and is dropped.

use super::{
    Piece, add_reasoning, add_text,
    marker::{Found, find, trailing_space},
};

/// How a model marks its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReasoningFormat {
    open: &'static str,
    close: &'static str,
}

/// In the order in which a template is asked for them: `<think>` first, since some templates mention the others in prose.
const FORMATS: [ReasoningFormat; 3] = [
    ReasoningFormat { open: "<think>", close: "</think>" },
    ReasoningFormat { open: "[THINK]", close: "[/THINK]" },
    ReasoningFormat { open: "<thinking>", close: "</thinking>" },
];

impl ReasoningFormat {
    /// The format that a chat template speaks of.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        FORMATS.into_iter().find(|format| template.contains(format.open) || template.contains(format.close))
    }

    /// Whether a prompt ends with reasoning opened and not closed.
    pub(crate) fn is_open_after(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but white space so far; `dropped` says that it belongs to an earlier closing marker.
    Before { dropped: bool },
    /// Within the reasoning; `started` once it has text.
    Within { started: bool },
    /// In the answer: all is text.
    Answer,
}

/// Tells reasoning from text.
#[derive(Debug)]
pub(super) struct ReasoningParser {
    format: ReasoningFormat,
    place: Place,
    held: String,
}

impl ReasoningParser {
    pub(super) fn new(format: ReasoningFormat, open: bool) -> Self {
        let place = if open { Place::Within { started: false } } else { Place::Before { dropped: false } };
        Self { format, place, held: String::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.place, Place::Within { .. })
    }

    pub(super) fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(pieces) {}
    }

    /// Unclosed reasoning stays reasoning.
    pub(super) fn finish(&mut self, pieces: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Before { dropped: true } => add_text(pieces, held.trim_start()),
            Place::Before { dropped: false } | Place::Answer => add_text(pieces, &held),
            Place::Within { started: false } => add_reasoning(pieces, held.trim()),
            Place::Within { started: true } => add_reasoning(pieces, held.trim_end()),
        }
    }

    /// Takes one decision; false when more text is needed for the next.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.place {
            Place::Answer => {
                add_text(pieces, &std::mem::take(&mut self.held));
                false
            }
            Place::Before { dropped } => {
                let start = self.held.trim_start();
                if start.is_empty() || (start.len() < self.format.open.len() && self.format.open.starts_with(start)) {
                    return false;
                }
                if let Some(rest) = start.strip_prefix(self.format.open) {
                    self.held = rest.to_owned();
                    self.place = Place::Within { started: false };
                } else {
                    if dropped {
                        self.held = start.to_owned();
                    }
                    self.place = Place::Answer;
                }
                true
            }
            Place::Within { started } => self.step_within(started, pieces),
        }
    }

    fn step_within(&mut self, started: bool, pieces: &mut Vec<Piece>) -> bool {
        if !started {
            let start = self.held.trim_start();
            if start.is_empty() || (start.len() < self.format.open.len() && self.format.open.starts_with(start)) {
                return false;
            }
            // Some models repeat the marker their prompt ended with.
            if let Some(rest) = start.strip_prefix(self.format.open) {
                self.held = rest.to_owned();
                return true;
            }
            self.held = start.to_owned();
            self.place = Place::Within { started: true };
        }
        match find(&self.held, self.format.close) {
            Found::At(at) => {
                add_reasoning(pieces, self.held[..at].trim_end());
                self.held.drain(..at + self.format.close.len());
                self.place = Place::Before { dropped: true };
                true
            }
            Found::NotBefore(end) => {
                let end = trailing_space(&self.held[..end]);
                add_reasoning(pieces, &self.held[..end]);
                self.held.drain(..end);
                false
            }
        }
    }
}
