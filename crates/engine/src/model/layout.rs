//! Which tokens of a forward belong to which sequence, and where their keys and values are.

use mlx_rs::{Array, error::Exception};

use super::{
    computed::Shared,
    kernels::{self, Kernels, Seen},
};

/// Names a sequence to the [store](super::KeyValueStore).
pub(crate) type SequenceKey = u64;

/// The tokens of one sequence in a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) sequence: SequenceKey,
    /// How many, at least 1.
    pub(crate) tokens: i32,
    /// Whether what follows each of them is asked for.
    pub(crate) logits: bool,
}

/// The order of a forward's tokens: those whose logits are asked for come first.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Of the segments that were given, in the order in which their tokens must be.
    pub(crate) order: Vec<usize>,
    /// Tokens whose logits are asked for.
    pub(super) rows: i32,
    /// Where each token stands in its sequence.
    pub(super) positions: Vec<i32>,
    pub(super) groups: Vec<Group>,
}

/// Tokens that attend in one call.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) tokens: i32,
    pub(super) place: Place,
    /// What each of its sequences begins with, which all of the tokens see.
    pub(super) shared: Shared,
    /// By window; made when the first layer asks.
    masks: Vec<(Option<i32>, Option<Array>)>,
}

/// Where the keys and values of a group are, but those that its sequences share. Positions count from where these end.
#[derive(Debug)]
pub(super) enum Place {
    /// In buffers of the sequence's own, with so many positions before these.
    Own { sequence: SequenceKey, before: i32 },
    /// In this slab: one token of each of its sequences, whose positions these are.
    Slab { slab: usize, positions: Vec<i32> },
}

impl Group {
    pub(super) fn new(tokens: i32, place: Place, shared: Shared) -> Self {
        Self { tokens, place, shared, masks: Vec::new() }
    }

    pub(super) fn is_slab(&self) -> bool {
        matches!(self.place, Place::Slab { .. })
    }

    /// Keys in its place, those of the token that stands furthest.
    pub(super) fn longest(&self) -> i32 {
        match &self.place {
            Place::Own { before, .. } => before + self.tokens,
            Place::Slab { positions, .. } => positions.iter().max().map_or(0, |last| last + 1),
        }
    }

    /// Which of the last `keys` keys each token sees, where it isn't all of them.
    pub(super) fn seen(&mut self, kernels: Kernels, window: Option<i32>) -> Result<Seen<'_>, Exception> {
        let longest = self.longest();
        let window = window.filter(|window| *window < longest);
        let at = match self.masks.iter().position(|(of, _)| *of == window) {
            Some(at) => at,
            None => {
                let mask = match &self.place {
                    Place::Own { .. } if self.tokens == 1 && window.is_none() => None,
                    Place::Own { .. } => Some(kernels::causal(self.tokens, longest, window)?),
                    Place::Slab { positions, .. } if window.is_none() && all_equal(positions) => None,
                    Place::Slab { positions, .. } => Some(kernels::up_to(positions, longest, window)?),
                };
                self.masks.push((window, mask.map(|mask| kernels.mask(mask)).transpose()?));
                self.masks.len() - 1
            }
        };
        Ok(self.masks.get(at).and_then(|(_, mask)| mask.as_ref()).map_or(Seen::All, Seen::Masked))
    }
}

fn all_equal(positions: &[i32]) -> bool {
    positions.windows(2).all(|pair| pair.first() == pair.last())
}
