//! How an architecture fills the shared decoder: the parts in which architectures differ.

use super::{attention::Mask, linear::Bias, rope::RopePairs};

/// What an architecture makes of a config.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) head_dim: i32,
    pub(super) key_value_heads: i32,
    /// Of the query, key and value projections.
    pub(super) input_bias: Bias,
    /// Of the attention's output projection.
    pub(super) output_bias: Bias,
    pub(super) query_key_norm: QueryKeyNorm,
    pub(super) mlp: Mlp,
    pub(super) head: Head,
    pub(super) rope_base: f32,
    pub(super) rope_pairs: RopePairs,
    /// One per layer.
    pub(super) masks: Vec<Mask>,
}

/// Whether queries and keys are normed before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryKeyNorm {
    /// They aren't.
    None,
    /// Each head by itself, with one set of weights for all heads of a layer.
    PerHead,
}

/// What follows the attention in each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mlp {
    /// One gated feed-forward layer, whose three projections have this.
    Dense(Bias),
}

/// What turns the last hidden state into logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// The table of the embedding.
    Tied,
    /// A projection of its own.
    Separate,
}

impl Head {
    /// `tie_word_embeddings` of config.json.
    pub(super) fn of(tied: bool) -> Self {
        if tied { Self::Tied } else { Self::Separate }
    }
}
