//! Looking for a marker in text that comes in pieces.

use crate::stop::overlap;

/// Where a marker is, or could yet be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It begins at this byte.
    At(usize),
    /// It is not there; from this byte on the text could become it.
    NotBefore(usize),
}

/// Looks for `marker` in all the text there is so far.
pub(super) fn find(text: &str, marker: &str) -> Found {
    match text.find(marker) {
        Some(start) => Found::At(start),
        None => Found::NotBefore(text.len() - overlap(text, marker)),
    }
}

/// The byte at which the white space at the end begins.
pub(super) fn trailing_space(text: &str) -> usize {
    text.trim_end().len()
}
