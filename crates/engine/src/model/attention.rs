//! Attention of grouped queries, and the gated feed-forward layer beside it. Both see tokens side by side, whosever they are;
//! only the [store](KeyValueStore) knows which belong together.

use mlx_rs::{Array, error::Exception, fast, ops::indexing::TryIndexOp};

use super::{
    KeyValueStore, Layout,
    kernels::Kernels,
    linear::{Linear, Stacked},
    rope::{Rope, Rotation},
    store::How,
};

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention {
    /// To queries, keys and values, in this order.
    pub(super) input: Stacked,
    pub(super) output: Linear,
    /// Of each head of queries and keys, before the rotation.
    pub(super) head_norms: Option<HeadNorms>,
    pub(super) heads: i32,
    pub(super) key_value_heads: i32,
    pub(super) head_dim: i32,
    pub(super) mask: Mask,
}

/// The norms of a layer's queries and keys, which are taken together.
#[derive(Debug)]
pub(super) struct HeadNorms {
    /// Of shape [heads + key_value_heads, head_dim].
    pub(super) weights: Array,
    pub(super) epsilon: f32,
}

/// What a token sees of the positions before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mask {
    /// All of them.
    Causal,
    /// So many positions, its own included.
    SlidingWindow(i32),
}

/// What a forward gives every layer.
pub(super) struct Forward<'a> {
    pub(super) store: &'a mut KeyValueStore,
    pub(super) layout: &'a mut Layout,
    pub(super) rope: &'a Rope,
    pub(super) rotation: Rotation,
}

impl Attention {
    /// Attends from new tokens, x of shape [tokens, hidden], to all that the store holds of their sequences. With `rows_only`
    /// only from those whose logits are asked for; `None` when there are none.
    pub(super) fn forward(
        &self,
        layer: usize,
        x: &Array,
        forward: &mut Forward<'_>,
        rows_only: bool,
    ) -> Result<Option<Array>, Exception> {
        let turned = self.heads + self.key_value_heads;
        let heads = self.input.forward(x)?.reshape(&[x.dim(0), -1, self.head_dim])?;
        let mut turning = heads.try_index((.., ..turned))?;
        if let Some(norms) = &self.head_norms {
            turning = fast::rms_norm(&turning, None, norms.epsilon)?.multiply(&norms.weights)?;
        }
        let turned_heads = forward.rope.rotate(&turning, &forward.rotation)?;
        let queries = turned_heads.try_index((.., ..self.heads))?;
        let keys = turned_heads.try_index((.., self.heads..))?;
        let values = heads.try_index((.., turned..))?;
        let window = match self.mask {
            Mask::Causal => None,
            Mask::SlidingWindow(window) => Some(window),
        };
        let how = How { scale: (self.head_dim as f32).powf(-0.5), window, rows_only };
        let found = forward.store.attend(layer, forward.layout, (&queries, &keys, &values), how)?;
        found.map(|found| self.output.forward(&found)).transpose()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let norms = self.head_norms.iter().map(|norms| &norms.weights);
        self.input.arrays().chain(self.output.arrays()).chain(norms)
    }
}

/// A feed-forward layer: down(silu(gate(x)) · up(x)).
#[derive(Debug)]
pub(crate) struct FeedForward {
    /// To gate and up, in this order.
    pub(super) input: Stacked,
    pub(super) down: Linear,
    pub(super) kernels: Kernels,
}

impl FeedForward {
    pub(super) fn forward(&self, x: &Array) -> Result<Array, Exception> {
        let both = self.input.forward(x)?.split_equal(2, -1)?;
        let [gate, up] = both.as_slice() else { return Err(Exception::custom("a split into two gave another number")) };
        self.down.forward(&self.kernels.silu(gate)?.multiply(up)?)
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.input.arrays().chain(self.down.arrays())
    }
}
