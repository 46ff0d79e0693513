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

use super::{
    KeyValueCache, SequenceKey,
    computed::{Computed, Shared},
};

/// Slots of a slab. From so many sequences of one capacity on, one call for all of them is cheaper than one for each.
pub(super) const SLOTS: usize = 4;

/// Slots of one capacity. There are as many from the first sequence to the last: a slab that grew would copy those that are in
/// it, so more sequences are another slab's.
#[derive(Debug)]
pub(super) struct Slab {
    /// Positions in each slot.
    capacity: i32,
    /// What each sequence begins with: it is not in the slots, nor in a row's length.
    shared: Shared,
    /// By slot. After [`Slab::settle`] there are no gaps.
    rows: Vec<Option<Row>>,
    /// Keys and values by layer, of shape [slots, heads, capacity, head_dim].
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
    /// Of as many sequences as there are slots, whose keys and values are copied. They begin with `shared`, and have no more
    /// positions of their own than the capacity. Layer by layer, so that what one of them had is memory for the next.
    pub(super) fn of(
        capacity: i32,
        shared: Shared,
        sequences: [(SequenceKey, Vec<KeyValueCache>); SLOTS],
    ) -> Result<Self, Exception> {
        let length = |caches: &[KeyValueCache]| caches.first().map_or(0, KeyValueCache::offset);
        let row = |(key, caches): &(SequenceKey, Vec<KeyValueCache>)| Row { sequence: *key, length: length(caches) };
        let rows = sequences.iter().map(|sequence| Some(row(sequence))).collect();
        let mut sequences = sequences.map(|(_, caches)| caches.into_iter());
        let mut layers = Vec::new();
        loop {
            let caches: Vec<KeyValueCache> = sequences.iter_mut().filter_map(Iterator::next).collect();
            if caches.is_empty() {
                return Ok(Self { capacity, shared, rows, layers });
            }
            let pairs: Vec<_> = caches.iter().map(|cache| cache.resized(capacity)).collect::<Result<_, _>>()?;
            let (keys, values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let pair = (concatenate(&keys, 0)?, concatenate(&values, 0)?);
            crate::mlx::evaluate([&pair.0, &pair.1])?;
            layers.push(pair);
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn capacity(&self) -> i32 {
        self.capacity
    }

    /// The sequences, by slot.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().flatten()
    }

    /// Slots that nobody uses.
    pub(super) fn free(&self) -> usize {
        SLOTS.saturating_sub(self.rows().count())
    }

    /// Bytes of the buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|(keys, values)| [keys, values])
    }

    /// Takes a sequence in, whose keys and values are copied. There must be a free slot, and no gap.
    pub(super) fn join(&mut self, sequence: SequenceKey, caches: &[KeyValueCache]) -> Result<(), Exception> {
        self.fill(self.rows.len(), caches)?;
        let length = caches.first().map_or(0, KeyValueCache::offset);
        self.rows.push(Some(Row { sequence, length }));
        Ok(())
    }

    /// Takes a sequence out, if it is here, and gives its keys and values, where they are: until they are dropped, a write to
    /// the slab would copy all of it.
    pub(super) fn leave(&mut self, sequence: SequenceKey) -> Result<Option<Computed>, Exception> {
        let found = self.rows.iter().position(|row| row.is_some_and(|row| row.sequence == sequence));
        let Some((slot, row)) = found.and_then(|slot| Some((slot, self.rows.get_mut(slot)?.take()?))) else {
            return Ok(None);
        };
        Ok(Some(Computed::new(self.shared.clone(), self.caches(slot, row.length)?)))
    }

    /// Moves the last sequences into the gaps that others left.
    pub(super) fn settle(&mut self) -> Result<(), Exception> {
        let mut moved = Vec::new();
        while let Some(gap) = self.rows.iter().position(Option::is_none) {
            let from = self.rows.len() - 1;
            let Some(row) = self.rows.pop().flatten() else { continue };
            let copies: Vec<KeyValueCache> =
                self.caches(from, row.length)?.iter().map(KeyValueCache::copied).collect::<Result<_, _>>()?;
            moved.push((gap, copies));
            if let Some(place) = self.rows.get_mut(gap) {
                *place = Some(row);
            }
        }
        // Nothing may look at the buffers any more when they are written to.
        crate::mlx::evaluate(moved.iter().flat_map(|(_, caches)| caches).flat_map(KeyValueCache::arrays))?;
        moved.iter().try_for_each(|(slot, caches)| self.fill(*slot, caches))
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
        let (slots, rows) = (SLOTS as i32, self.rows.len() as i32);
        // Slots that nobody uses are written at their first position, with what is no number of anybody's.
        let mut at = positions.to_vec();
        at.resize(SLOTS, 0);
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
        self.rows.iter_mut().flatten().for_each(|row| row.length += 1);
    }

    /// What the first so many positions of a slot hold, where it is.
    fn caches(&self, slot: usize, length: i32) -> Result<Vec<KeyValueCache>, Exception> {
        let slot = slot as i32;
        let of = |buffer: &Array| buffer.try_index((slot..slot + 1, .., ..length));
        self.layers.iter().map(|(keys, values)| Ok(KeyValueCache::of(of(keys)?, of(values)?))).collect()
    }

    /// Writes what was computed of a sequence to the beginning of a slot.
    fn fill(&mut self, slot: usize, caches: &[KeyValueCache]) -> Result<(), Exception> {
        let slot = slot as i32;
        for ((keys, values), cache) in self.layers.iter_mut().zip(caches) {
            let Some(new) = cache.all()? else { continue };
            for (buffer, new) in [(keys, new.0), (values, new.1)] {
                let written = buffer.try_index_mut((slot..slot + 1, .., ..new.dim(2)), &new);
                written.map_err(|error| Exception::custom(error.to_string()))?;
            }
        }
        Ok(())
    }
}
