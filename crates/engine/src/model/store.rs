//! The keys and values of all sequences of a model that are computed, wherever they are cheapest.
//!
//! A sequence has buffers of its own, or a slot of a slab that it shares with others of about its length. Padding to the
//! longest is what costs, not the number of calls, so a slab's capacities double: no sequence is padded to more than twice its
//! length. Nobody but the store knows where a sequence is.

use std::collections::{BTreeMap, HashMap};

use mlx_rs::{
    Array,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp},
};

use super::{
    KeyValueCache, Segment, SequenceKey,
    kernels::Kernels,
    layout::{Group, Layout, Place},
    slab::Slab,
};

/// The smallest capacity of a slab, in positions.
const SMALLEST: i32 = 256;

/// The largest one by device: what is longer has enough to do in a call of its own, which on a CPU comes sooner.
const LARGEST: i32 = 8192;
const LARGEST_COMPOSED: i32 = 512;

/// From so many sequences of one capacity on, which make a slab, one call for all of them is cheaper than one for each.
const TOGETHER: usize = 4;

/// The keys and values of a model's sequences.
#[derive(Debug)]
pub(crate) struct KeyValueStore {
    layers: usize,
    kernels: Kernels,
    own: HashMap<SequenceKey, Vec<KeyValueCache>>,
    slabs: Vec<Slab>,
}

impl KeyValueStore {
    /// An empty store for a model of so many layers.
    pub(crate) fn new(layers: usize, kernels: Kernels) -> Self {
        Self { layers, kernels, own: HashMap::new(), slabs: Vec::new() }
    }

    /// Takes a sequence in, with what was computed of it, layer by layer, if anything was; otherwise with room for so many
    /// positions.
    pub(crate) fn join(&mut self, sequence: SequenceKey, computed: Option<Vec<KeyValueCache>>, room: i32) {
        let empty = || (0..self.layers).map(|_| KeyValueCache::with_room(room)).collect();
        self.own.insert(sequence, computed.unwrap_or_else(empty));
    }

    /// Takes a sequence out, and gives what was computed of it, layer by layer. That may lie in what others use, so it should
    /// be gone before the next forward.
    pub(crate) fn leave(&mut self, sequence: SequenceKey) -> Result<Option<Vec<KeyValueCache>>, Exception> {
        let own = self.own.remove(&sequence);
        if own.is_some() {
            return Ok(own);
        }
        let found = self.slabs.iter_mut().find_map(|slab| slab.leave(sequence).transpose()).transpose();
        self.slabs.retain(|slab| slab.rows().next().is_some());
        found
    }

    /// Drops all that was computed of a sequence, which stays.
    pub(crate) fn reset(&mut self, sequence: SequenceKey) {
        // What it left behind may be what can't be computed.
        drop(self.leave(sequence));
        self.join(sequence, None, 0);
    }

    /// Positions of a sequence that are computed.
    #[cfg(test)]
    pub(crate) fn positions(&self, sequence: SequenceKey) -> i32 {
        let own = self.own.get(&sequence).and_then(|caches| caches.first()).map(KeyValueCache::offset);
        let mut rows = self.slabs.iter().flat_map(Slab::rows);
        let mut slabbed = || rows.find(|row| row.sequence == sequence).map(|row| row.length);
        own.or_else(&mut slabbed).unwrap_or_default()
    }

    /// Bytes of all buffers, room for more positions included.
    pub(crate) fn bytes(&self) -> u64 {
        let own = self.own.values().flatten().map(KeyValueCache::bytes).sum::<u64>();
        own + self.slabs.iter().map(Slab::bytes).sum::<u64>()
    }

    /// Orders the tokens of a forward, after moving sequences to where they are cheapest. Each sequence may have one segment.
    pub(crate) fn arrange(&mut self, segments: &[Segment]) -> Result<Layout, Exception> {
        self.place(segments)?;
        let index: HashMap<SequenceKey, usize> =
            segments.iter().enumerate().map(|(index, segment)| (segment.sequence, index)).collect();
        let mut layout = Layout { order: Vec::new(), rows: 0, positions: Vec::new(), groups: Vec::new() };
        for (slab, at) in self.slabs.iter().zip(0..) {
            let positions: Vec<i32> = slab.rows().map(|row| row.length).collect();
            layout.order.extend(slab.rows().filter_map(|row| index.get(&row.sequence)));
            layout.positions.extend(&positions);
            let tokens = positions.len() as i32;
            layout.rows += tokens;
            layout.groups.push(Group::new(tokens, Place::Slab { slab: at, positions }));
        }
        for logits in [true, false] {
            for (at, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.logits == logits) {
                let Some(caches) = self.own.get(&segment.sequence) else { continue };
                let before = caches.first().map_or(0, KeyValueCache::offset);
                layout.order.push(at);
                layout.positions.extend(before..before + segment.tokens);
                layout.rows += if logits { segment.tokens } else { 0 };
                let place = Place::Own { sequence: segment.sequence, before };
                layout.groups.push(Group::new(segment.tokens, place));
            }
        }
        Ok(layout)
    }

    /// Appends the keys and values of a forward's tokens in one layer, of shape [tokens, key_value_heads, head_dim], and gives
    /// what their queries of shape [tokens, heads, head_dim] find, of shape [tokens, heads · head_dim]. With `rows_only` the
    /// queries are those whose logits are asked for; `None` when there are none.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        layout: &mut Layout,
        (queries, keys, values): (&Array, &Array, &Array),
        how: How,
    ) -> Result<Option<Array>, Exception> {
        let kernels = self.kernels;
        let mut found = Vec::with_capacity(layout.groups.len());
        let mut start = 0;
        for group in &mut layout.groups {
            let end = start + group.tokens;
            let of = |all: &Array| -> Result<Array, Exception> {
                let part = all.try_index(start..end)?;
                match &group.place {
                    Place::Own { .. } => part.transpose_axes(&[1, 0, 2])?.expand_dims(0),
                    Place::Slab { .. } => part.expand_dims(2),
                }
            };
            let new = (&of(keys)?, &of(values)?);
            let (all_keys, all_values) = match &group.place {
                Place::Own { sequence, .. } => {
                    let cache = self.own.get_mut(sequence).and_then(|caches| caches.get_mut(layer));
                    cache.ok_or_else(|| Exception::custom("a sequence without a place"))?.append(new.0, new.1)?
                }
                Place::Slab { slab, positions } => {
                    let slab = self.slabs.get_mut(*slab);
                    let slab = slab.ok_or_else(|| Exception::custom("a place without a slab"))?;
                    slab.append(layer, new, positions, group.longest())?
                }
            };
            if !(how.rows_only && start >= layout.rows) {
                let queries = of(queries)?;
                let is_slab = matches!(group.place, Place::Slab { .. });
                let mut pair = (all_keys, all_values);
                // A lone token sees the end of its window: the rest need not be looked at.
                let longest = group.longest();
                let seen = match how.window {
                    Some(window) if !is_slab && group.tokens == 1 && window < longest => {
                        let end = |all: &Array| all.try_index((.., .., longest - window..));
                        pair = (end(&pair.0)?, end(&pair.1)?);
                        super::kernels::Seen::All
                    }
                    window => group.seen(kernels, window)?,
                };
                let out = kernels.attend(&queries, (&pair.0, &pair.1), how.scale, seen)?;
                let out = if is_slab { out } else { out.transpose_axes(&[0, 2, 1, 3])? };
                found.push(out.reshape(&[end - start, -1])?);
            }
            start = end;
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.pop()),
            _ => Ok(Some(concatenate(&found, 0)?)),
        }
    }

    /// All layers have appended the tokens of a forward.
    pub(super) fn advance(&mut self, layout: &Layout) {
        for group in &layout.groups {
            if let Place::Slab { slab, .. } = &group.place
                && let Some(slab) = self.slabs.get_mut(*slab)
            {
                slab.advance();
            }
        }
    }

    /// The buffers that a forward wrote to.
    pub(crate) fn written<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = &'a Array> {
        layout.groups.iter().flat_map(|group| -> Vec<&'a Array> {
            match &group.place {
                Place::Own { sequence, .. } => {
                    self.own.get(sequence).into_iter().flatten().flat_map(KeyValueCache::arrays).collect()
                }
                Place::Slab { slab, .. } => self.slabs.get(*slab).into_iter().flat_map(Slab::arrays).collect(),
            }
        })
    }

    /// Moves sequences to where they are cheapest in this forward.
    fn place(&mut self, segments: &[Segment]) -> Result<(), Exception> {
        let steps: HashMap<SequenceKey, &Segment> =
            segments.iter().map(|segment| (segment.sequence, segment)).collect();
        let lone = |segment: &Segment| segment.logits && segment.tokens == 1;
        // A slab computes one token of each of its sequences, as long as they fit.
        let mut out = Vec::new();
        for slab in &self.slabs {
            let stays = |row: &&super::slab::Row| {
                steps.get(&row.sequence).is_some_and(|segment| lone(segment)) && row.length < slab.capacity()
            };
            out.extend(slab.rows().filter(|row| !stays(row)).map(|row| row.sequence));
        }
        for sequence in out {
            self.unslab(sequence)?;
        }
        self.slabs.iter_mut().try_for_each(Slab::settle)?;
        let longest = if self.kernels == Kernels::Composed { LARGEST_COMPOSED } else { LARGEST };
        let mut joining: BTreeMap<i32, Vec<SequenceKey>> = BTreeMap::new();
        for segment in segments.iter().filter(|segment| lone(segment)) {
            let length = self.own.get(&segment.sequence).and_then(|caches| caches.first()).map(KeyValueCache::offset);
            // One without positions has nothing to show what its buffers look like.
            if let Some(length) = length.filter(|length| (1..longest).contains(length)) {
                joining.entry(capacity(length + 1)).or_default().push(segment.sequence);
            }
        }
        for (capacity, mut sequences) in joining {
            for slab in self.slabs.iter_mut().filter(|slab| slab.capacity() == capacity) {
                let joins = sequences.split_off(sequences.len().saturating_sub(slab.free()));
                join(slab, joins, &mut self.own)?;
            }
            while sequences.len() >= TOGETHER {
                let mut slab = Slab::new(capacity);
                let joins = sequences.split_off(sequences.len().saturating_sub(slab.free()));
                join(&mut slab, joins, &mut self.own)?;
                self.slabs.push(slab);
            }
        }
        Ok(())
    }

    /// Gives a sequence buffers of its own.
    fn unslab(&mut self, sequence: SequenceKey) -> Result<(), Exception> {
        if let Some(caches) = self.leave(sequence)? {
            let caches: Vec<_> = caches.iter().map(KeyValueCache::copied).collect::<Result<_, _>>()?;
            crate::mlx::evaluate(caches.iter().flat_map(KeyValueCache::arrays))?;
            self.own.insert(sequence, caches);
        }
        Ok(())
    }
}

/// How a layer attends.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) scale: f32,
    /// Keys that a token sees at most, its own included.
    pub(super) window: Option<i32>,
    /// Whether only those tokens attend whose logits are asked for.
    pub(super) rows_only: bool,
}

/// Moves sequences from buffers of their own to a slab that has room for them.
fn join(
    slab: &mut Slab,
    sequences: Vec<SequenceKey>,
    own: &mut HashMap<SequenceKey, Vec<KeyValueCache>>,
) -> Result<(), Exception> {
    if sequences.is_empty() {
        return Ok(());
    }
    for sequence in sequences {
        if let Some(caches) = own.remove(&sequence) {
            slab.join(sequence, &caches)?;
        }
    }
    crate::mlx::evaluate(slab.arrays())
}

/// The smallest capacity that holds so many positions.
fn capacity(positions: i32) -> i32 {
    let mut capacity = SMALLEST;
    while capacity < positions {
        capacity *= 2;
    }
    capacity
}
