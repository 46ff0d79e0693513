//! Keys and values of sequences of about the same length, in one buffer a layer, so that one call attends for all of them.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{
        broadcast_to, concatenate,
        indexing::{TryIndexMutOp, TryIndexOp, put_along_axis},
        zeros_dtype,
    },
};

use super::{KeyValueCache, SequenceKey};

/// Slots that a slab grows and shrinks by.
const SLOTS: i32 = 4;

/// Slots of one capacity. Those in use come first, without gaps.
#[derive(Debug)]
pub(super) struct Slab {
    /// Positions in each slot.
    capacity: i32,
    rows: Vec<Row>,
    /// Keys and values by layer, of shape [slots, heads, capacity, head_dim]; empty until the first sequence joins.
    layers: Vec<(Array, Array)>,
}

/// A slot in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) sequence: SequenceKey,
    /// Positions in use.
    pub(super) length: i32,
}

impl Slab {
    pub(super) fn new(capacity: i32) -> Self {
        Self { capacity, rows: Vec::new(), layers: Vec::new() }
    }

    /// The sequences, by slot.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The slot of a sequence.
    pub(super) fn slot(&self, sequence: SequenceKey) -> Option<usize> {
        self.rows.iter().position(|row| row.sequence == sequence)
    }

    /// Bytes of the buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|(keys, values)| [keys, values])
    }

    /// Takes a sequence in, whose keys and values are copied.
    pub(super) fn join(&mut self, sequence: SequenceKey, caches: &[KeyValueCache]) -> Result<(), Exception> {
        let length = caches.first().map_or(0, KeyValueCache::offset);
        let slot = self.rows.len() as i32;
        if self.layers.is_empty() {
            self.layers = caches.iter().map(|cache| self.room_like(cache)).collect::<Result<_, _>>()?;
        } else if self.slots() == slot {
            for (keys, values) in &mut self.layers {
                *keys = grown(keys)?;
                *values = grown(values)?;
            }
        }
        for ((keys, values), cache) in self.layers.iter_mut().zip(caches) {
            let Some((new_keys, new_values)) = cache.all()? else { continue };
            write(keys, (slot..slot + 1, .., ..length), &new_keys)?;
            write(values, (slot..slot + 1, .., ..length), &new_values)?;
        }
        self.rows.push(Row { sequence, length });
        Ok(())
    }

    /// Takes a sequence out, with a copy of its keys and values. The last slot's move into the gap.
    pub(super) fn leave(&mut self, slot: usize) -> Result<Vec<KeyValueCache>, Exception> {
        let Some(row) = self.rows.get(slot).copied() else { return Ok(Vec::new()) };
        let (at, last) = (slot as i32, self.rows.len() as i32 - 1);
        let mut caches = Vec::with_capacity(self.layers.len());
        for (keys, values) in &self.layers {
            let of = |buffer: &Array| buffer.try_index((at..at + 1, .., ..row.length))?.contiguous();
            caches.push(KeyValueCache::of(of(keys)?, of(values)?));
        }
        crate::mlx::evaluate(caches.iter().flat_map(KeyValueCache::arrays))?;
        self.rows.swap_remove(slot);
        if self.rows.is_empty() {
            self.layers.clear();
            return Ok(caches);
        }
        let kept = (last + SLOTS - 1) / SLOTS * SLOTS;
        for (keys, values) in &mut self.layers {
            for buffer in [keys, values] {
                if at != last {
                    let moved = buffer.try_index((last..last + 1, .., ..))?;
                    write(buffer, (at..at + 1, .., ..), &moved)?;
                }
                // Half empty, so that one that comes and goes doesn't copy each time.
                if kept + SLOTS < buffer.dim(0) {
                    *buffer = buffer.try_index((..kept, .., ..))?.contiguous()?;
                }
            }
        }
        Ok(caches)
    }

    /// Appends one position to each sequence, given keys and values of shape [sequences, heads, 1, head_dim], and gives those
    /// of the first `longest` positions.
    pub(super) fn append(
        &mut self,
        layer: usize,
        (keys, values): (&Array, &Array),
        positions: &[i32],
        longest: i32,
    ) -> Result<(Array, Array), Exception> {
        let (slots, rows) = (self.slots(), self.rows.len() as i32);
        // Slots that nobody uses are written at their first position, with what is no number of anybody's.
        let mut at = positions.to_vec();
        at.resize(slots as usize, 0);
        let at = Array::from_slice(&at, &[slots, 1, 1, 1]);
        let Some((all_keys, all_values)) = self.layers.get_mut(layer) else {
            return Err(Exception::custom("a slab without layers"));
        };
        for (buffer, new) in [(&mut *all_keys, keys), (&mut *all_values, values)] {
            let padded = if slots == rows {
                None
            } else {
                let idle = zeros_dtype(&[slots - rows, new.dim(1), 1, new.dim(3)], new.dtype())?;
                Some(concatenate(&[new, &idle], 0)?)
            };
            let new = padded.as_ref().unwrap_or(new);
            let at = broadcast_to(&at, new.shape())?;
            *buffer = put_along_axis(&*buffer, &at, new, 2)?;
        }
        Ok((all_keys.try_index((..rows, .., ..longest))?, all_values.try_index((..rows, .., ..longest))?))
    }

    /// Each sequence has one position more.
    pub(super) fn advance(&mut self) {
        self.rows.iter_mut().for_each(|row| row.length += 1);
    }

    fn slots(&self) -> i32 {
        self.layers.first().map_or(0, |(keys, _)| keys.dim(0))
    }

    fn room_like(&self, cache: &KeyValueCache) -> Result<(Array, Array), Exception> {
        let Some((keys, values)) = cache.all()? else { return Err(Exception::custom("a sequence without positions")) };
        let room = |like: &Array| zeros_dtype(&[SLOTS, like.dim(1), self.capacity, like.dim(3)], like.dtype());
        Ok((room(&keys)?, room(&values)?))
    }
}

fn grown(buffer: &Array) -> Result<Array, Exception> {
    let more = zeros_dtype(&[SLOTS, buffer.dim(1), buffer.dim(2), buffer.dim(3)], buffer.dtype())?;
    concatenate(&[buffer, &more], 0)
}

fn write<I>(buffer: &mut Array, at: I, new: &Array) -> Result<(), Exception>
where
    Array: for<'a> TryIndexMutOp<I, &'a Array>,
{
    buffer.try_index_mut(at, new).map_err(|error| Exception::custom(error.to_string()))
}
