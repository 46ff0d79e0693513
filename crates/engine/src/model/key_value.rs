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
    /// Of keys and values of shape [1, heads, positions, head_dim], without room for more.
    pub(super) fn of(keys: Array, values: Array) -> Self {
        let offset = keys.dim(2);
        Self { buffers: Some((keys, values)), offset }
    }

    /// Keys and values of all positions, if there are any.
    pub(super) fn all(&self) -> Result<Option<(Array, Array)>, Exception> {
        self.map(|buffer| buffer.try_index((Ellipsis, ..self.offset, ..)))
    }

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

    /// The first so many positions, as many as there are, on the same buffers. They have no room left there, so that what is
    /// appended goes to buffers of its own.
    pub(crate) fn prefix(&self, positions: usize) -> Result<Self, Exception> {
        let end = i32::try_from(positions).unwrap_or(i32::MAX).min(self.offset);
        let buffers = self.map(|buffer| buffer.try_index((Ellipsis, ..end, ..)))?;
        Ok(Self { buffers, offset: end })
    }

    /// The same in buffers that share no memory with any other. Nothing is computed yet.
    pub(crate) fn compact(&self) -> Result<Self, Exception> {
        Ok(Self { buffers: self.map(Array::contiguous)?, offset: self.offset })
    }

    fn map(&self, change: impl Fn(&Array) -> Result<Array, Exception>) -> Result<Option<(Array, Array)>, Exception> {
        let changed = self.buffers.as_ref().map(|(keys, values)| Ok((change(keys)?, change(values)?)));
        changed.transpose()
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
    use crate::mlx;

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
    fn sequences_that_share_a_prefix_do_not_write_into_each_other() {
        for length in [10, BLOCK - 1, BLOCK, BLOCK + 1] {
            let mut cache = KeyValueCache::default();
            cache.append(&positions(0, length), &positions(0, length)).unwrap();
            let kept = cache.prefix(length as usize).unwrap().compact().unwrap();
            mlx::evaluate(kept.arrays()).unwrap();
            assert_eq!(kept.bytes(), 8 * length as u64, "no room is kept");
            // Two that go on from its first positions, one from all of them, and the one that it came from.
            for shared in [length - 4, length - 4, length] {
                let mut other = kept.prefix(shared as usize).unwrap();
                assert_eq!((other.offset(), other.bytes()), (shared, 8 * shared as u64));
                for step in 0..3 {
                    let added = positions(1000 * (step + 1), 1);
                    let (keys, values) = other.append(&added, &added).unwrap();
                    let mut expected: Vec<f32> = (0..shared).map(|value| value as f32).collect();
                    expected.extend((0..=step).map(|step| 1000.0 * (step as f32 + 1.0)));
                    assert_eq!((contents(&keys), contents(&values)), (expected.clone(), expected));
                }
            }
            cache.append(&positions(5000, 2), &positions(5000, 2)).unwrap();
            mlx::evaluate(cache.arrays()).unwrap();
            let all: Vec<f32> = (0..length).map(|value| value as f32).collect();
            kept.arrays().for_each(|array| assert_eq!(contents(array), all));
        }
    }

    #[test]
    fn writing_in_place_spares_whoever_holds_the_same_buffer() {
        let mut cache = KeyValueCache::default();
        cache.append(&positions(0, 10), &positions(0, 10)).unwrap();
        mlx::evaluate(cache.arrays()).unwrap();
        let held: Vec<Array> = cache.arrays().cloned().collect();
        let before = contents(&held[0]);
        // There is room, so that no other buffer is made by us.
        cache.append(&positions(100, 3), &positions(100, 3)).unwrap();
        mlx::evaluate(cache.arrays()).unwrap();
        assert_eq!(cache.arrays().next().unwrap().dim(2), BLOCK);
        held.iter().for_each(|array| assert_eq!(contents(array), before));
        assert_ne!(contents(cache.arrays().next().unwrap()), before);
    }

    #[test]
    fn there_are_no_more_positions_in_a_prefix_than_there_were() {
        let mut cache = KeyValueCache::default();
        assert_eq!(cache.prefix(3).unwrap().offset(), 0);
        cache.append(&positions(0, 10), &positions(0, 10)).unwrap();
        let all = cache.prefix(1000).unwrap();
        assert_eq!((all.offset(), all.bytes()), (10, 80));
    }
}
