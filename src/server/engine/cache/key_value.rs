//! The keys and values of one attention layer, for one sequence.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{
        concatenate,
        indexing::{Ellipsis, TryIndexMutOp, TryIndexOp},
        zeros_dtype,
    },
};

/// Positions that the buffers grow by, so that most steps write in place.
const BLOCK: i32 = 256;

/// Keys and values of the positions seen so far, in buffers of shape [1, heads, positions, head_dim].
#[derive(Debug, Default)]
pub(crate) struct KeyValueCache {
    buffers: Option<(Array, Array)>,
    offset: i32,
}

impl KeyValueCache {
    /// Positions held.
    pub(crate) fn offset(&self) -> i32 {
        self.offset
    }

    /// Bytes of the buffers, unused positions included.
    pub(crate) fn bytes(&self) -> u64 {
        self.buffers.as_ref().map_or(0, |(keys, values)| (keys.nbytes() + values.nbytes()) as u64)
    }

    /// The buffers, for evaluation.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flat_map(|(keys, values)| [keys, values])
    }

    /// Appends the keys and values of new positions, and gives those of all positions.
    pub(crate) fn append(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array), Exception> {
        let added = keys.dim(2);
        let start = self.offset;
        let end = start + added;
        let mut buffers = match self.buffers.take() {
            Some((old_keys, old_values)) if end > old_keys.dim(2) => {
                (grown(&old_keys, start, keys)?, grown(&old_values, start, values)?)
            }
            Some(buffers) => buffers,
            None => (zeros(keys)?, zeros(values)?),
        };
        buffers
            .0
            .try_index_mut((Ellipsis, start..end, ..), keys)
            .map_err(|error| Exception::custom(error.to_string()))?;
        buffers
            .1
            .try_index_mut((Ellipsis, start..end, ..), values)
            .map_err(|error| Exception::custom(error.to_string()))?;
        let all = (buffers.0.try_index((Ellipsis, ..end, ..))?, buffers.1.try_index((Ellipsis, ..end, ..))?);
        self.buffers = Some(buffers);
        self.offset = end;
        Ok(all)
    }

    /// Forgets the last `count` positions, as many as there are.
    #[cfg_attr(not(test), expect(dead_code, reason = "a cache of prompts will go back to the prefix that fits"))]
    pub(crate) fn trim(&mut self, count: i32) {
        self.offset -= count.clamp(0, self.offset);
    }
}

/// Room for `added`, in whole blocks.
fn zeros(added: &Array) -> Result<Array, Exception> {
    let positions = (added.dim(2) + BLOCK - 1) / BLOCK * BLOCK;
    zeros_dtype(&[added.dim(0), added.dim(1), positions, added.dim(3)], added.dtype())
}

/// The used part of a buffer, followed by room for `added`.
fn grown(buffer: &Array, used: i32, added: &Array) -> Result<Array, Exception> {
    let used = buffer.try_index((Ellipsis, ..used, ..))?;
    concatenate(&[used, zeros(added)?], 2)
}

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::{BLOCK, KeyValueCache};

    fn positions(first: i32, count: i32) -> Array {
        let values: Vec<f32> = (first..first + count).map(|value| value as f32).collect();
        Array::from_slice(&values, &[1, 1, count, 1])
    }

    fn contents(array: &Array) -> Vec<f32> {
        array.contiguous().unwrap().to_vec_exact().unwrap()
    }

    #[test]
    fn positions_stay_in_order_across_blocks() {
        let mut cache = KeyValueCache::default();
        let mut written = 0;
        for count in [3, 1, BLOCK - 5, 1, 1, 1, 2 * BLOCK + 7, 1] {
            let added = positions(written, count);
            let (keys, values) = cache.append(&added, &added).unwrap();
            written += count;
            let expected: Vec<f32> = (0..written).map(|value| value as f32).collect();
            assert_eq!(contents(&keys), expected);
            assert_eq!(contents(&values), expected);
        }
        assert_eq!(cache.offset(), written);
        assert!(cache.bytes() >= 8 * written as u64);
    }

    #[test]
    fn trimmed_positions_are_written_again() {
        let mut cache = KeyValueCache::default();
        cache.append(&positions(0, 10), &positions(0, 10)).unwrap();
        cache.trim(4);
        let (keys, _) = cache.append(&positions(100, 2), &positions(100, 2)).unwrap();
        assert_eq!(contents(&keys), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 100.0, 101.0]);
        cache.trim(1000);
        assert_eq!(cache.offset(), 0);
    }
}
