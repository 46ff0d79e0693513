//! What differs between devices in how a function is best computed.
//!
//! On a GPU MLX has kernels of its own for the functions that cost most. On a CPU they fall apart into plain operations, and
//! MLX's exponential works on one number at a time, in 24 ns; its powers come from the C library, in less than half of that,
//! and on Linux those of two by a shorter way still. There we compose them ourselves, from operations that its loops do well.

use mlx_rs::{
    Array, Device, DeviceType,
    error::Exception,
    fast::{self, ScaledDotProductAttentionMask},
    ops,
};

/// Binary logarithm of e.
const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// How functions are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// By MLX's own kernels.
    Fused,
    /// From plain operations, in floats of 32 bits.
    Composed,
}

/// Which keys a query sees.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    /// All of them.
    All,
    /// As [`Kernels::mask`] says.
    Masked(&'a Array),
}

impl Kernels {
    /// The fastest ones for the device that MLX computes on.
    pub(crate) fn for_device() -> Result<Self, Exception> {
        Ok(match Device::try_default()?.get_type()? {
            DeviceType::Cpu => Self::Composed,
            DeviceType::Gpu => Self::Fused,
        })
    }

    /// e to the power of x, of floats of 32 bits; exact at 0 and minus infinity.
    pub(crate) fn exp(self, x: &Array) -> Result<Array, Exception> {
        match self {
            Self::Fused => x.exp(),
            Self::Composed => exp2(&x.multiply(Array::from_f32(LOG2_E))?),
        }
    }

    /// x · sigmoid(x)
    pub(super) fn silu(self, x: &Array) -> Result<Array, Exception> {
        match self {
            Self::Fused => x.multiply(ops::sigmoid(x)?),
            Self::Composed => {
                let one = Array::from_f32(1.0);
                x.divide(exp2(&x.multiply(Array::from_f32(-LOG2_E))?)?.add(one)?)
            }
        }
    }

    /// A mask from booleans, true where a key is seen, in the form that [`Self::attend`] takes.
    pub(super) fn mask(self, seen: Array) -> Result<Array, Exception> {
        match self {
            Self::Fused => Ok(seen),
            // Added, because MLX's loop for sums is faster than the one for choices.
            Self::Composed => ops::select(seen, Array::from_f32(0.0), Array::from_f32(f32::NEG_INFINITY)),
        }
    }

    /// softmax(queries · keysᵀ · scale) · values, of shape [rows, heads, positions, head_dim], for queries of that shape and
    /// keys and values of shape [rows, key_value_heads, keys, head_dim]. A mask broadcasts to [rows, 1, positions, keys].
    pub(super) fn attend(
        self,
        queries: &Array,
        (keys, values): (&Array, &Array),
        scale: f32,
        seen: Seen<'_>,
    ) -> Result<Array, Exception> {
        match self {
            Self::Fused => {
                let mask = match seen {
                    Seen::All => None,
                    Seen::Masked(mask) => Some(ScaledDotProductAttentionMask::Array(mask)),
                };
                fast::scaled_dot_product_attention(queries, keys, values, scale, mask, None)
            }
            Self::Composed => {
                let found = composed_attention(queries, (keys, values), scale, seen)?.whole()?;
                found.reshape(&[queries.dim(0), queries.dim(1), queries.dim(2), -1])
            }
        }
    }
}

/// What queries find among some of the keys that they see.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    /// Of weights and values.
    values: Array,
    /// Of the weights, each of which is two to the power of how far its score is below the largest; the last dimension is 1.
    sum: Array,
    largest: Array,
}

impl Partial {
    /// Changes the shape of what was found; the last dimension stays.
    pub(super) fn map(self, change: impl Fn(&Array) -> Result<Array, Exception>) -> Result<Self, Exception> {
        let Self { values, sum, largest } = self;
        Ok(Self { values: change(&values)?, sum: change(&sum)?, largest: change(&largest)? })
    }

    /// What such queries find among no keys.
    pub(super) fn nothing(&self, queries: i32) -> Result<Self, Exception> {
        let like =
            |array: &Array, fill: f32| ops::full::<f32>(&[queries, array.dim(1), array.dim(2)], Array::from_f32(fill));
        // Not infinite: the difference of two such scores must be a number.
        Ok(Self { values: like(&self.values, 0.0)?, sum: like(&self.sum, 0.0)?, largest: like(&self.largest, -1e30)? })
    }

    /// What several groups of queries find, one after another.
    pub(super) fn concatenated(parts: &[Self]) -> Result<Self, Exception> {
        if let [part] = parts {
            return Ok(part.clone());
        }
        let all = |of: fn(&Self) -> &Array| ops::concatenate(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        Ok(Self { values: all(|part| &part.values)?, sum: all(|part| &part.sum)?, largest: all(|part| &part.largest)? })
    }

    /// What the same queries find among both these keys and others.
    pub(super) fn and(self, other: &Self) -> Result<Self, Exception> {
        let largest = ops::maximum(&self.largest, &other.largest)?;
        let ours = exp2(&self.largest.subtract(&largest)?)?;
        let theirs = exp2(&other.largest.subtract(&largest)?)?;
        let both = |ours_of: &Array, theirs_of: &Array| ours_of.multiply(&ours)?.add(theirs_of.multiply(&theirs)?);
        Ok(Self { values: both(&self.values, &other.values)?, sum: both(&self.sum, &other.sum)?, largest })
    }

    /// What they find among all keys that there are.
    pub(super) fn whole(self) -> Result<Array, Exception> {
        self.values.divide(self.sum)
    }
}

/// What queries find among these keys, and how much that weighs beside others; shapes are those of [`Kernels::attend`].
pub(super) fn attend_partly(
    queries: &Array,
    pair: (&Array, &Array),
    scale: f32,
    seen: Seen<'_>,
) -> Result<Partial, Exception> {
    let found = composed_attention(queries, pair, scale, seen)?;
    found.map(|array| array.reshape(&[queries.dim(0), queries.dim(1), queries.dim(2), -1]))
}

/// Queries of the heads that share a key head are one matrix, so that a key is read once for all of them. What they find has the
/// shape [rows, key_value_heads, heads / key_value_heads · positions, …].
fn composed_attention(
    queries: &Array,
    (keys, values): (&Array, &Array),
    scale: f32,
    seen: Seen<'_>,
) -> Result<Partial, Exception> {
    let (rows, heads, positions) = (queries.dim(0), queries.dim(1), queries.dim(2));
    let (key_value_heads, length) = (keys.dim(1), keys.dim(2));
    let shared = heads / key_value_heads;
    let queries = queries.multiply(Array::from_f32(scale * LOG2_E))?;
    let queries = queries.reshape(&[rows, key_value_heads, shared * positions, -1])?;
    let mut scores = queries.matmul(keys.transpose_axes(&[0, 1, 3, 2])?)?;
    if let Seen::Masked(mask) = seen {
        let split = scores.reshape(&[rows, key_value_heads * shared, positions, length])?;
        scores = split.add(mask)?.reshape(&[rows, key_value_heads, shared * positions, length])?;
    }
    let largest = scores.max_axis(-1, true)?;
    let weights = exp2(&scores.subtract(&largest)?)?;
    let sum = weights.sum_axis(-1, true)?;
    Ok(Partial { values: weights.matmul(values)?, sum, largest })
}

/// 2 to the power of x.
fn exp2(x: &Array) -> Result<Array, Exception> {
    Array::from_f32(2.0).power(x)
}

/// Of `total` keys, those that the last `added` positions see, as booleans of shape [added, total]: their own and those before
/// it, `window` in all if there is one.
pub(super) fn causal(added: i32, total: i32, window: Option<i32>) -> Result<Array, Exception> {
    let key = ops::arange::<_, i32>(None, total, None)?.reshape(&[1, total])?;
    let query = ops::arange::<_, i32>(total - added, total, None)?.reshape(&[added, 1])?;
    limited(&query, &key, window)
}

/// Of `total` keys, those that one query each sees, the last of which stand at `positions`, as booleans of shape
/// [queries, 1, 1, total].
pub(super) fn up_to(positions: &[i32], total: i32, window: Option<i32>) -> Result<Array, Exception> {
    let rows = i32::try_from(positions.len()).unwrap_or(i32::MAX);
    let key = ops::arange::<_, i32>(None, total, None)?.reshape(&[1, 1, 1, total])?;
    limited(&Array::from_slice(positions, &[rows, 1, 1, 1]), &key, window)
}

fn limited(query: &Array, key: &Array, window: Option<i32>) -> Result<Array, Exception> {
    let seen = query.ge(key)?;
    match window {
        None => Ok(seen),
        Some(window) => seen.logical_and(query.lt(key.add(Array::from_int(window))?)?),
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Array, Dtype, random};

    use super::*;

    fn normal(shape: &[i32], seed: u64) -> Array {
        random::normal::<f32>(shape, None, None, Some(&random::key(seed).unwrap())).unwrap()
    }

    fn most_different(a: &Array, b: &Array) -> f32 {
        let difference = a.subtract(b).unwrap().abs().unwrap();
        difference.max(None).unwrap().try_item_exact::<f32>().unwrap()
    }

    #[test]
    fn both_attend_alike() {
        for (rows, heads, positions, length) in [(1, 4, 1, 7), (3, 4, 1, 40), (1, 8, 5, 5), (1, 4, 9, 30)] {
            let (queries, keys, values) = (
                normal(&[rows, heads, positions, 8], 1),
                normal(&[rows, 2, length, 8], 2),
                normal(&[rows, 2, length, 8], 3),
            );
            for window in [None, Some(4)] {
                let seen = if positions == 1 {
                    let ends: Vec<i32> = (0..rows).map(|row| length - 1 - row).collect();
                    up_to(&ends, length, window).unwrap()
                } else {
                    causal(positions, length, window).unwrap()
                };
                let [fused, composed] = [Kernels::Fused, Kernels::Composed].map(|kernels| {
                    let mask = kernels.mask(seen.clone()).unwrap();
                    kernels.attend(&queries, (&keys, &values), 0.3, Seen::Masked(&mask)).unwrap()
                });
                assert!(most_different(&fused, &composed) < 1e-5);
            }
            let [fused, composed] = [Kernels::Fused, Kernels::Composed]
                .map(|kernels| kernels.attend(&queries, (&keys, &values), 0.3, Seen::All).unwrap());
            assert!(most_different(&fused, &composed) < 1e-5);
        }
    }

    #[test]
    fn both_bend_alike() {
        let x = Array::from_slice(&[-200.0_f32, -30.0, -1.5, -0.0, 0.0, 1e-3, 2.0, 30.0, 80.0], &[9]);
        let [fused, composed] = [Kernels::Fused, Kernels::Composed].map(|kernels| kernels.silu(&x).unwrap());
        assert!(most_different(&fused, &composed) < 1e-5);
        let [fused, composed] = [Kernels::Fused, Kernels::Composed].map(|kernels| kernels.exp(&x).unwrap());
        let relative = composed.divide(fused.add(Array::from_f32(1e-30)).unwrap()).unwrap();
        let relative = relative.to_vec_exact::<f32>().unwrap();
        assert!(relative[1..].iter().all(|ratio| (ratio - 1.0).abs() < 1e-5), "{relative:?}");
        let edges = Kernels::Composed.exp(&Array::from_slice(&[0.0, f32::NEG_INFINITY], &[2])).unwrap();
        assert_eq!(edges.to_vec_exact::<f32>().unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn a_window_ends_at_the_token_itself() {
        let mask = causal(2, 4, Some(2)).unwrap().to_vec_exact::<bool>().unwrap();
        assert_eq!(mask, [[false, true, true, false], [false, false, true, true]].concat());
        let mask = up_to(&[0, 2], 4, None).unwrap();
        assert_eq!((mask.shape(), mask.dtype()), (&[2, 1, 1, 4][..], Dtype::Bool));
        assert_eq!(
            mask.to_vec_exact::<bool>().unwrap(),
            [[true, false, false, false], [true, true, true, false]].concat()
        );
    }
}
