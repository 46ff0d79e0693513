//! The keys and values of one attention layer, for one sequence.

use std::ops::Range;

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::{
        concatenate,
        indexing::{Ellipsis, TryIndexMutOp, TryIndexOp},
        zeros_dtype,
    },
};

/// Positions that the buffers grow by, so that most steps write in place.
pub(crate) const BLOCK: i32 = 256;

/// Keys and values of the positions seen so far, in buffers of shape [1, heads, positions, head_dim].
#[derive(Debug, Default)]
pub(crate) struct KeyValueCache {
    buffers: Option<(Array, Array)>,
    offset: i32,
    /// Positions that the first buffers have room for.
    room: i32,
}

impl KeyValueCache {
    /// Empty, for a sequence that will have at least so many positions: buffers that grow are copied.
    pub(super) fn with_room(positions: i32) -> Self {
        Self { room: positions, ..Self::default() }
    }

    /// Of keys and values of shape [1, heads, positions, head_dim], without room for more.
    pub(super) fn of(keys: Array, values: Array) -> Self {
        let offset = keys.dim(2);
        Self { buffers: Some((keys, values)), offset, room: 0 }
    }

    /// The same in buffers of its own, without room for more. Nothing is computed yet.
    pub(super) fn copied(&self) -> Result<Self, Exception> {
        let Some((keys, values)) = self.all()? else { return Ok(Self::default()) };
        Ok(Self::of(keys.contiguous()?, values.contiguous()?))
    }

    /// Makes the first buffers before there is anything to be written to them, for keys and values like these. Nothing is
    /// computed yet.
    pub(super) fn reserve(&mut self, [keys, values]: [Like; 2]) -> Result<(), Exception> {
        if self.buffers.is_none() && self.room > 0 {
            self.buffers = Some((keys.zeros(in_blocks(self.room))?, values.zeros(in_blocks(self.room))?));
        }
        Ok(())
    }

    /// Both buffers, made as long as so many positions, of which there are no more in use. Nothing is computed yet.
    pub(super) fn resized(&self, positions: i32) -> Result<(Array, Array), Exception> {
        let Some((keys, values)) = &self.buffers else { return Err(Exception::custom("a sequence without positions")) };
        let resized = |buffer: &Array| match positions - buffer.dim(2) {
            0 => Ok(buffer.clone()),
            missing if missing > 0 => concatenate(&[buffer, &Like::of(buffer).zeros(missing)?], 2),
            _ => buffer.try_index((Ellipsis, ..positions, ..)),
        };
        Ok((resized(keys)?, resized(values)?))
    }

    /// Keys and values of all positions, if there are any.
    pub(super) fn all(&self) -> Result<Option<(Array, Array)>, Exception> {
        let all = |buffer: &Array| buffer.try_index((Ellipsis, ..self.offset, ..));
        self.buffers.as_ref().map(|(keys, values)| Ok((all(keys)?, all(values)?))).transpose()
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
            None => {
                let room = in_blocks(added.max(self.room));
                (Like::of(keys).zeros(room)?, Like::of(values).zeros(room)?)
            }
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

    /// Some of the positions held, in buffers of their own: a slice would keep all of the buffer that it is cut from.
    /// Nothing is computed yet.
    pub(crate) fn run(&self, positions: Range<usize>) -> Result<KeyValueRun, Exception> {
        let held = usize::try_from(self.offset).unwrap_or_default();
        match &self.buffers {
            Some((keys, values)) if positions.end <= held && !positions.is_empty() => {
                KeyValueRun::cut(keys, values, positions)
            }
            _ => Err(Exception::custom(format!("positions {positions:?} of {held} can't be taken"))),
        }
    }

    /// Starts with the positions of these runs, in order, in buffers of its own that have room for more, so many positions at
    /// least in all. Nothing is computed yet. Without runs it is empty.
    pub(crate) fn from_runs(runs: &[&KeyValueRun], room: i32) -> Result<Self, Exception> {
        let Some(first) = runs.first() else { return Ok(Self::with_room(room)) };
        let offset: i32 = runs.iter().map(|run| run.keys.dim(2)).sum();
        // At least one position is free, so that the buffers are no run's even if there is one only.
        let free = in_blocks(room.max(offset + 1)) - offset;
        let joined = |part: for<'a> fn(&'a KeyValueRun) -> &'a Array| {
            let like = part(first);
            let room = Like::of(like).zeros(free)?;
            let parts: Vec<&Array> = runs.iter().map(|run| part(run)).chain([&room]).collect();
            concatenate(&parts, 2)
        };
        Ok(Self { buffers: Some((joined(|run| &run.keys)?, joined(|run| &run.values)?)), offset, room: 0 })
    }
}

/// Keys and values of consecutive positions, each of shape [1, heads, positions, head_dim]. They never change.
#[derive(Debug)]
pub(crate) struct KeyValueRun {
    keys: Array,
    values: Array,
}

impl KeyValueRun {
    /// Of keys and values that never change.
    pub(super) fn of(keys: Array, values: Array) -> Self {
        Self { keys, values }
    }

    /// How many positions there are.
    pub(crate) fn positions(&self) -> usize {
        usize::try_from(self.keys.dim(2)).unwrap_or_default()
    }

    /// Bytes of both.
    pub(crate) fn bytes(&self) -> u64 {
        (self.keys.nbytes() + self.values.nbytes()) as u64
    }

    /// Both, for evaluation.
    pub(crate) fn arrays(&self) -> [&Array; 2] {
        [&self.keys, &self.values]
    }

    /// Of parts in order, of which there is at least one, each in memory that nobody shares.
    pub(super) fn joined(mut parts: Vec<Self>) -> Result<Self, Exception> {
        if parts.len() > 1 {
            let all = |of: fn(&Self) -> &Array| concatenate(&parts.iter().map(of).collect::<Vec<_>>(), 2);
            return Ok(Self { keys: all(|part| &part.keys)?, values: all(|part| &part.values)? });
        }
        parts.pop().ok_or_else(|| Exception::custom("no positions"))
    }

    /// Its first so many positions, on the same memory.
    pub(crate) fn first(&self, positions: usize) -> Result<Self, Exception> {
        let end = i32::try_from(positions).unwrap_or(i32::MAX).min(self.keys.dim(2));
        let first = |array: &Array| array.try_index((Ellipsis, ..end, ..));
        Ok(Self { keys: first(&self.keys)?, values: first(&self.values)? })
    }

    /// Its first `at` positions and the others, in buffers of their own. Nothing is computed yet.
    pub(crate) fn split(&self, at: usize) -> Result<(Self, Self), Exception> {
        Ok((self.part(0..at)?, self.part(at..self.positions())?))
    }

    /// Some of its positions, in buffers of their own. Nothing is computed yet.
    pub(crate) fn part(&self, positions: Range<usize>) -> Result<Self, Exception> {
        Self::cut(&self.keys, &self.values, positions)
    }

    fn cut(keys: &Array, values: &Array, positions: Range<usize>) -> Result<Self, Exception> {
        let index = |position| i32::try_from(position).map_err(|_| Exception::custom("more than 2^31 positions"));
        let (start, end) = (index(positions.start)?, index(positions.end)?);
        let own = |array: &Array| array.try_index((Ellipsis, start..end, ..))?.contiguous();
        Ok(Self { keys: own(keys)?, values: own(values)? })
    }
}

/// What the keys or the values of a sequence are like in one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Like {
    heads: i32,
    head_dim: i32,
    dtype: Dtype,
}

impl Like {
    /// As these of shape [1, heads, positions, head_dim].
    pub(super) fn of(array: &Array) -> Self {
        Self { heads: array.dim(1), head_dim: array.dim(3), dtype: array.dtype() }
    }

    /// Room for so many positions.
    fn zeros(self, positions: i32) -> Result<Array, Exception> {
        zeros_dtype(&[1, self.heads, positions, self.head_dim], self.dtype)
    }
}

fn in_blocks(positions: i32) -> i32 {
    (positions + BLOCK - 1) / BLOCK * BLOCK
}

/// The used part of a buffer, followed by room for `added`.
fn grown(buffer: &Array, used: i32, added: &Array) -> Result<Array, Exception> {
    let used = buffer.try_index((Ellipsis, ..used, ..))?;
    concatenate(&[used, Like::of(added).zeros(in_blocks(added.dim(2)))?], 2)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use mlx_rs::Array;

    use super::{BLOCK, KeyValueCache, KeyValueRun};
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

    fn keys_of(run: &KeyValueRun) -> Vec<f32> {
        let [keys, values] = run.arrays().map(contents);
        assert_eq!(keys, values);
        keys
    }

    fn counting(positions: Range<i32>) -> Vec<f32> {
        positions.map(|value| value as f32).collect()
    }

    #[test]
    fn sequences_that_share_a_run_do_not_write_into_each_other() {
        for length in [10, BLOCK - 1, BLOCK, BLOCK + 1] {
            let mut cache = KeyValueCache::default();
            cache.append(&positions(0, length), &positions(0, length)).unwrap();
            let run = cache.run(0..length as usize).unwrap();
            mlx::evaluate(run.arrays()).unwrap();
            assert_eq!(run.bytes(), 8 * length as u64, "no room is kept");
            // Two that go on from its first positions, one from all of them, and the one that it came from.
            for shared in [length - 4, length - 4, length] {
                let mut other = KeyValueCache::from_runs(&[&run.first(shared as usize).unwrap()], 0).unwrap();
                assert_eq!(other.offset(), shared);
                for step in 0..3 {
                    let added = positions(1000 * (step + 1), 1);
                    let (keys, values) = other.append(&added, &added).unwrap();
                    let mut expected = counting(0..shared);
                    expected.extend((0..=step).map(|step| 1000.0 * (step as f32 + 1.0)));
                    assert_eq!((contents(&keys), contents(&values)), (expected.clone(), expected));
                }
            }
            cache.append(&positions(5000, 2), &positions(5000, 2)).unwrap();
            mlx::evaluate(cache.arrays()).unwrap();
            assert_eq!(keys_of(&run), counting(0..length));
        }
    }

    #[test]
    fn runs_are_cut_and_joined_at_any_position() {
        let mut cache = KeyValueCache::default();
        cache.append(&positions(0, 300), &positions(0, 300)).unwrap();
        let (first, rest) = (cache.run(0..70).unwrap(), cache.run(70..300).unwrap());
        let (second, third) = rest.split(187).unwrap();
        let expected = [counting(0..70), counting(70..257), counting(257..300)];
        assert_eq!([&first, &second, &third].map(keys_of), expected);
        assert_eq!([&first, &second, &third].map(KeyValueRun::bytes), [70, 187, 43].map(|length| 8 * length));
        let joined = KeyValueCache::from_runs(&[&first, &second, &third.first(5).unwrap()], 0).unwrap();
        assert_eq!(keys_of(&joined.run(0..262).unwrap()), counting(0..262));
        assert_eq!((joined.offset(), joined.bytes()), (262, 8 * 2 * BLOCK as u64), "there is room for more");
        assert_eq!(KeyValueCache::from_runs(&[], 0).unwrap().offset(), 0);
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
    fn positions_that_are_not_there_can_not_be_taken() {
        let mut cache = KeyValueCache::default();
        assert!(cache.run(0..1).is_err());
        cache.append(&positions(0, 10), &positions(0, 10)).unwrap();
        assert!(cache.run(0..10).is_ok() && cache.run(5..11).is_err() && cache.run(5..5).is_err());
    }
}
