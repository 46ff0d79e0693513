//! Attention of grouped queries over a key-value cache, and the gated feed-forward layer beside it.

use std::rc::Rc;

use mlx_rs::{
    Array,
    error::Exception,
    fast::{self, ScaledDotProductAttentionMask},
    ops::{
        self,
        indexing::{Ellipsis, TryIndexOp},
    },
};

use super::{KeyValueCache, linear::Linear, norm::Norm, rope::Rope};

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    /// Of each head, before the rotation.
    pub(super) head_norms: Option<HeadNorms>,
    pub(super) heads: i32,
    pub(super) key_value_heads: i32,
    pub(super) head_dim: i32,
    pub(super) rope: Rc<Rope>,
    pub(super) mask: Mask,
}

/// The norms of a layer's queries and keys.
#[derive(Debug)]
pub(super) struct HeadNorms {
    pub(super) query: Norm,
    pub(super) key: Norm,
}

/// What a token sees of the positions before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mask {
    /// All of them.
    Causal,
    /// So many positions, its own included.
    SlidingWindow(i32),
}

impl Attention {
    /// Attends from new positions, x of shape [1, positions, hidden], to all that the cache holds.
    pub(crate) fn forward(&self, x: &Array, cache: &mut KeyValueCache) -> Result<Array, Exception> {
        let length = x.dim(1);
        let heads = |x: Array, count: i32| x.reshape(&[1, length, count, self.head_dim]);
        let mut queries = heads(self.query.forward(x)?, self.heads)?;
        let mut keys = heads(self.key.forward(x)?, self.key_value_heads)?;
        if let Some(norms) = &self.head_norms {
            queries = norms.query.forward(&queries)?;
            keys = norms.key.forward(&keys)?;
        }
        let values = heads(self.value.forward(x)?, self.key_value_heads)?.transpose_axes(&[0, 2, 1, 3])?;
        let offset = cache.offset();
        let queries = self.rope.apply(&queries.transpose_axes(&[0, 2, 1, 3])?, offset)?;
        let keys = self.rope.apply(&keys.transpose_axes(&[0, 2, 1, 3])?, offset)?;
        let (keys, values) = cache.append(&keys, &values)?;
        let attended = self.attend(&queries, &keys, &values)?;
        let joined = attended.transpose_axes(&[0, 2, 1, 3])?.reshape(&[1, length, self.heads * self.head_dim])?;
        self.output.forward(&joined)
    }

    fn attend(&self, queries: &Array, keys: &Array, values: &Array) -> Result<Array, Exception> {
        let scale = (self.head_dim as f32).powf(-0.5);
        let (added, total) = (queries.dim(2), keys.dim(2));
        let window = match self.mask {
            Mask::SlidingWindow(window) if total > window => Some(window),
            Mask::SlidingWindow(_) | Mask::Causal => None,
        };
        match (added, window) {
            (1, None) => fast::scaled_dot_product_attention(queries, keys, values, scale, None, None),
            (1, Some(window)) => {
                let keys = keys.try_index((Ellipsis, total - window.., ..))?;
                let values = values.try_index((Ellipsis, total - window.., ..))?;
                fast::scaled_dot_product_attention(queries, keys, values, scale, None, None)
            }
            (_, None) => {
                let mask = ScaledDotProductAttentionMask::Causal;
                fast::scaled_dot_product_attention(queries, keys, values, scale, mask, None)
            }
            (_, Some(window)) => {
                let mask = window_mask(added, total, window)?;
                fast::scaled_dot_product_attention(queries, keys, values, scale, &mask, None)
            }
        }
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let projections = [&self.query, &self.key, &self.value, &self.output];
        let norms = self.head_norms.iter().flat_map(|norms| [&norms.query.weight, &norms.key.weight]);
        projections.into_iter().flat_map(Linear::arrays).chain(norms)
    }
}

/// Which of `total` positions the last `added` ones see: themselves and those before them, `window` in all.
fn window_mask(added: i32, total: i32, window: i32) -> Result<Array, Exception> {
    let seen: Vec<i32> = (0..total).collect();
    let seen = Array::from_slice(&seen, &[1, total]);
    let from: Vec<i32> = (total - added..total).collect();
    let from = Array::from_slice(&from, &[added, 1]);
    from.ge(&seen)?.logical_and(from.lt(seen.add(Array::from_int(window))?)?)
}

/// A feed-forward layer: down(silu(gate(x)) · up(x)).
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl FeedForward {
    pub(crate) fn forward(&self, x: &Array) -> Result<Array, Exception> {
        let gate = self.gate.forward(x)?;
        let activated = gate.multiply(ops::sigmoid(&gate)?)?;
        self.down.forward(&activated.multiply(self.up.forward(x)?)?)
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.gate, &self.up, &self.down].into_iter().flat_map(Linear::arrays)
    }
}

#[cfg(test)]
mod tests {
    use super::window_mask;

    #[test]
    fn a_window_ends_at_the_token_itself() {
        let mask = window_mask(2, 4, 2).unwrap().to_vec_exact::<bool>().unwrap();
        let expected = [[false, true, true, false], [false, false, true, true]].concat();
        assert_eq!(mask, expected);
    }
}
