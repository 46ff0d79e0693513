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

/// The largest one: what is longer has enough to do in a call of its own.
const LARGEST: i32 = 8192;

/// From so many sequences of one capacity on, one call for all of them is cheaper than one for each.
const TOGETHER: usize = 4;

/// The keys and values of a model's sequences.
#[derive(Debug)]
pub(crate) struct KeyValueStore {
    layers: usize,
    kernels: Kernels,
    own: HashMap<SequenceKey, Vec<KeyValueCache>>,
    /// By capacity.
    slabs: BTreeMap<i32, Slab>,
}

impl KeyValueStore {
    /// An empty store for a model of so many layers.
    pub(crate) fn new(layers: usize, kernels: Kernels) -> Self {
        Self { layers, kernels, own: HashMap::new(), slabs: BTreeMap::new() }
    }

    /// Takes a sequence in, with what was computed of it, layer by layer, if anything was.
    pub(crate) fn join(&mut self, sequence: SequenceKey, computed: Option<Vec<KeyValueCache>>) {
        let empty = || (0..self.layers).map(|_| KeyValueCache::default()).collect();
        self.own.insert(sequence, computed.unwrap_or_else(empty));
    }

    /// Takes a sequence out, and gives what was computed of it, layer by layer.
    pub(crate) fn leave(&mut self, sequence: SequenceKey) -> Result<Option<Vec<KeyValueCache>>, Exception> {
        self.unslab(sequence)?;
        Ok(self.own.remove(&sequence))
    }

    /// Drops all that was computed of a sequence, which stays.
    pub(crate) fn reset(&mut self, sequence: SequenceKey) {
        // What it left behind may be what can't be computed.
        drop(self.leave(sequence));
        self.join(sequence, None);
    }

    /// Positions of a sequence that are computed.
    #[cfg(test)]
    pub(crate) fn positions(&self, sequence: SequenceKey) -> i32 {
        let own = self.own.get(&sequence).and_then(|caches| caches.first()).map(KeyValueCache::offset);
        let slabbed = || self.slabs.values().find_map(|slab| slab.slot(sequence).map(|slot| slab.rows()[slot].length));
        own.or_else(slabbed).unwrap_or_default()
    }

    /// Bytes of all buffers, room for more positions included.
    pub(crate) fn bytes(&self) -> u64 {
        let own = self.own.values().flatten().map(KeyValueCache::bytes).sum::<u64>();
        own + self.slabs.values().map(Slab::bytes).sum::<u64>()
    }

    /// Orders the tokens of a forward, after moving sequences to where they are cheapest. Each sequence may have one segment.
    pub(crate) fn arrange(&mut self, segments: &[Segment]) -> Result<Layout, Exception> {
        self.place(segments)?;
        let index: HashMap<SequenceKey, usize> =
            segments.iter().enumerate().map(|(index, segment)| (segment.sequence, index)).collect();
        let mut layout = Layout { order: Vec::new(), rows: 0, positions: Vec::new(), groups: Vec::new() };
        for (capacity, slab) in &self.slabs {
            let positions: Vec<i32> = slab.rows().iter().map(|row| row.length).collect();
            layout.order.extend(slab.rows().iter().filter_map(|row| index.get(&row.sequence)));
            layout.positions.extend(&positions);
            let tokens = positions.len() as i32;
            layout.rows += tokens;
            layout.groups.push(Group::new(tokens, Place::Slab { capacity: *capacity, positions }));
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
                Place::Slab { capacity, positions } => {
                    let slab = self.slabs.get_mut(capacity);
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
            if let Place::Slab { capacity, .. } = &group.place
                && let Some(slab) = self.slabs.get_mut(capacity)
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
                Place::Slab { capacity, .. } => self.slabs.get(capacity).into_iter().flat_map(Slab::arrays).collect(),
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
        for (capacity, slab) in &self.slabs {
            let stays = |row: &&super::slab::Row| {
                steps.get(&row.sequence).is_some_and(|segment| lone(segment)) && row.length < *capacity
            };
            out.extend(slab.rows().iter().filter(|row| !stays(row)).map(|row| row.sequence));
        }
        for sequence in out {
            self.unslab(sequence)?;
        }
        let mut joining: BTreeMap<i32, Vec<SequenceKey>> = BTreeMap::new();
        for segment in segments.iter().filter(|segment| lone(segment)) {
            let length = self.own.get(&segment.sequence).and_then(|caches| caches.first()).map(KeyValueCache::offset);
            // One without positions has nothing to show what its buffers look like.
            if let Some(length) = length.filter(|length| (1..LARGEST).contains(length)) {
                joining.entry(capacity(length + 1)).or_default().push(segment.sequence);
            }
        }
        for (capacity, sequences) in joining {
            let there = self.slabs.get(&capacity).map_or(0, |slab| slab.rows().len());
            if there + sequences.len() < TOGETHER {
                continue;
            }
            let slab = self.slabs.entry(capacity).or_insert_with(|| Slab::new(capacity));
            for sequence in sequences {
                if let Some(caches) = self.own.remove(&sequence) {
                    slab.join(sequence, &caches)?;
                }
            }
            crate::mlx::evaluate(slab.arrays())?;
        }
        Ok(())
    }

    /// Gives a sequence buffers of its own, if it has a slot.
    fn unslab(&mut self, sequence: SequenceKey) -> Result<(), Exception> {
        let place = self.slabs.iter_mut().find_map(|(_, slab)| slab.slot(sequence).map(|slot| (slab, slot)));
        if let Some((slab, slot)) = place {
            let caches = slab.leave(slot)?;
            self.own.insert(sequence, caches);
            self.slabs.retain(|_, slab| !slab.rows().is_empty());
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

/// The smallest capacity that holds so many positions.
fn capacity(positions: i32) -> i32 {
    let mut capacity = SMALLEST;
    while capacity < positions {
        capacity *= 2;
    }
    capacity
}
