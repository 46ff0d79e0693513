//! Markers: which there are, and looking for one in text that comes in pieces.

use super::{ParserOptions, Piece, ToolFormat, hermes};
use crate::stop::overlap;

/// Stands before a marker that came as a special token. The text of such a marker that the model spells out in ordinary
/// tokens is text, so the two must differ. Unicode keeps this character out of all text.
pub(crate) const SPECIAL: char = '\u{FDD0}';

/// The markers of an answer, as they come.
#[derive(Debug)]
pub(super) struct Markers {
    /// Opens the reasoning.
    pub(super) open: Option<String>,
    /// Closes it.
    pub(super) close: Option<String>,
    /// Begins a call.
    pub(super) call: Option<String>,
    /// Ends it.
    pub(super) end: String,
    /// Those that are special tokens.
    special: Vec<String>,
}

impl Markers {
    pub(super) fn new(options: &ParserOptions) -> Self {
        let written = |marker: &'static str| {
            if options.special.contains(&marker) { format!("{SPECIAL}{marker}") } else { marker.to_owned() }
        };
        Self {
            open: options.reasoning.map(|format| written(format.open)),
            close: options.reasoning.map(|format| written(format.close)),
            call: options.tools.map(|ToolFormat::Hermes| written(hermes::OPEN)),
            end: written(hermes::CLOSE),
            special: options.special.iter().map(|marker| written(marker)).collect(),
        }
    }

    /// Whether the end of a call is told from the same text within a string.
    pub(super) fn end_is_special(&self) -> bool {
        self.end.starts_with(SPECIAL)
    }

    /// Whether there is any marker to look for beside `close`.
    pub(super) fn any(&self, close: Option<&str>) -> bool {
        self.call.is_some() || close.is_some()
    }

    /// Markers that introduced nothing stay, as the text that they are.
    pub(super) fn write_out(&self, pieces: &mut [Piece]) {
        if self.special.is_empty() {
            return;
        }
        for piece in pieces {
            let (Piece::Text(text) | Piece::Reasoning(text) | Piece::Arguments(text)) = piece else { continue };
            for marker in &self.special {
                if let Some(plain) = marker.strip_prefix(SPECIAL).filter(|_| text.contains(marker)) {
                    *text = text.replace(marker, plain);
                }
            }
        }
    }
}

/// Where a marker is, or could yet be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It begins at this byte.
    At(usize),
    /// It is not there; from this byte on the text could become it.
    NotBefore(usize),
}

impl Found {
    pub(super) fn position(&self) -> usize {
        let (Self::At(at) | Self::NotBefore(at)) = self;
        *at
    }
}

/// Looks for `marker` in all the text there is so far.
pub(super) fn find(text: &str, marker: &str) -> Found {
    match text.find(marker) {
        Some(start) => Found::At(start),
        None => Found::NotBefore(text.len() - overlap(text, marker)),
    }
}

/// The byte at which the white space at the end begins, if it is `held` back.
pub(super) fn trailing_space(text: &str, held: bool) -> usize {
    if held { text.trim_end().len() } else { text.len() }
}
