//! The keys and values of all sequences of a model that are computed, wherever they are cheapest.
//!
//! A sequence has buffers of its own, or a slot of a slab that it shares with others of about its length. Padding to the
//! longest is what costs, not the number of calls, so a slab's capacities double: no sequence is padded to more than twice its
//! length. Nobody but the store knows where a sequence is.
//!
//! Where attention is composed a sequence may begin with spans that others have too. They lie where the prefix cache has them,
//! nothing of them is copied, and in each layer all who begin with one look at it in one call.

use std::{collections::HashMap, rc::Rc};

use mlx_rs::{
    Array,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp},
};

use super::{
    KeyValueCache, Segment, SequenceKey,
    computed::{self, Computed, Shared, Span},
    kernels::{Kernels, Partial, Seen, attend_partly},
    key_value::Like,
    layout::{Group, Layout, Place},
    slab::{SLOTS, Slab},
};

/// The smallest capacity of a slab, in positions.
const SMALLEST: i32 = 256;

/// The largest one by device: what is longer has enough to do in a call of its own, which on a CPU comes sooner.
const LARGEST: i32 = 8192;
const LARGEST_COMPOSED: i32 = 512;

/// How many sequences move to slabs before one forward, which their readers wait for.
const MOVES: usize = 4;

/// The keys and values of a model's sequences.
#[derive(Debug)]
pub(crate) struct KeyValueStore {
    layers: usize,
    kernels: Kernels,
    own: HashMap<SequenceKey, Computed>,
    slabs: Vec<Slab>,
    /// Keys and values by layer, once some were computed.
    like: Vec<[Like; 2]>,
}

impl KeyValueStore {
    /// An empty store for a model of so many layers.
    pub(crate) fn new(layers: usize, kernels: Kernels) -> Self {
        Self { layers, kernels, own: HashMap::new(), slabs: Vec::new(), like: Vec::new() }
    }

    /// Takes a sequence in, with what was computed of it, layer by layer, if anything was; otherwise with room for so many
    /// positions.
    pub(crate) fn join(&mut self, sequence: SequenceKey, computed: Option<Computed>, room: i32) {
        let empty = || (0..self.layers).map(|_| KeyValueCache::with_room(room)).collect();
        self.own.insert(sequence, computed.unwrap_or_else(|| Computed::new(Shared::default(), empty())));
    }

    /// Makes buffers for a sequence that joined, about so many bytes of them: to touch new memory takes its time, and in the
    /// first forward it would all be taken at once. Says how many bytes are left over, or that it isn't done.
    pub(crate) fn reserve(&mut self, sequence: SequenceKey, bytes: u64) -> Result<Option<u64>, Exception> {
        let mut left = bytes;
        let mut made = Vec::new();
        let computed = self.own.get_mut(&sequence);
        for (cache, like) in computed.into_iter().flat_map(|computed| &mut computed.own).zip(&self.like) {
            if left == 0 {
                break;
            }
            if cache.bytes() == 0 {
                cache.reserve(*like)?;
                left = left.saturating_sub(cache.bytes());
                made.extend(cache.arrays().cloned());
            }
        }
        crate::mlx::evaluate(&made)?;
        Ok((left > 0).then_some(left))
    }

    /// Takes a sequence out, and gives what was computed of it. That may lie in what others use, so it should be gone before the
    /// next forward.
    pub(crate) fn leave(&mut self, sequence: SequenceKey) -> Result<Option<Computed>, Exception> {
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
    pub(crate) fn positions(&self, sequence: SequenceKey) -> usize {
        let of_slab = |slab: &Slab| {
            let row = slab.rows().find(|row| row.sequence == sequence)?;
            Some(slab.shared().positions() + row.length as usize)
        };
        let own = self.own.get(&sequence).map(Computed::positions);
        own.or_else(|| self.slabs.iter().find_map(of_slab)).unwrap_or_default()
    }

    /// Bytes of all buffers, room for more positions included, and of what is shared by nobody but these sequences.
    pub(crate) fn bytes(&self) -> u64 {
        let mut spans: Vec<(&Span, usize)> = Vec::new();
        for (shared, _) in self.shared() {
            for span in shared.spans() {
                match spans.iter_mut().find(|(other, _)| Rc::ptr_eq(other, span)) {
                    Some((_, holders)) => *holders += 1,
                    None => spans.push((span, 1)),
                }
            }
        }
        let lone = spans.iter().filter(|(span, holders)| Rc::strong_count(span) == *holders);
        self.buffers() + lone.map(|(span, _)| computed::bytes(span)).sum::<u64>()
    }

    /// Bytes that the sequences would have if they shared nothing.
    pub(crate) fn unshared_bytes(&self) -> u64 {
        let bytes = |shared: &Shared| shared.spans().iter().map(|span| computed::bytes(span)).sum::<u64>();
        self.buffers() + self.shared().map(|(shared, sequences)| bytes(shared) * sequences as u64).sum::<u64>()
    }

    fn buffers(&self) -> u64 {
        let own = self.own.values().flat_map(|computed| &computed.own).map(KeyValueCache::bytes).sum::<u64>();
        own + self.slabs.iter().map(Slab::bytes).sum::<u64>()
    }

    /// What is shared, wherever that is said, and by how many sequences.
    fn shared(&self) -> impl Iterator<Item = (&Shared, usize)> {
        let slabs = self.slabs.iter().map(|slab| (slab.shared(), slab.rows().count()));
        self.own.values().map(|computed| (&computed.shared, 1)).chain(slabs)
    }

    /// Orders the tokens of a forward, after moving sequences to where they are cheapest. Each sequence may have one segment.
    pub(crate) fn arrange(&mut self, segments: &[Segment]) -> Result<Layout, Exception> {
        self.place(segments)?;
        let index: HashMap<SequenceKey, usize> =
            segments.iter().enumerate().map(|(index, segment)| (segment.sequence, index)).collect();
        let mut parts = Vec::new();
        for (at, slab) in self.slabs.iter().enumerate() {
            let members = slab.rows().filter_map(|row| index.get(&row.sequence).copied()).collect();
            let positions: Vec<i32> = slab.rows().map(|row| row.length).collect();
            let place = Place::Slab { slab: at, positions: positions.clone() };
            let group = Group::new(positions.len() as i32, place, slab.shared().clone());
            parts.push(Part { members, positions, logits: true, group });
        }
        for (at, segment) in segments.iter().enumerate() {
            let Some(computed) = self.own.get(&segment.sequence) else { continue };
            let before = computed.own.first().map_or(0, KeyValueCache::offset);
            let place = Place::Own { sequence: segment.sequence, before };
            let group = Group::new(segment.tokens, place, computed.shared.clone());
            let positions = (before..before + segment.tokens).collect();
            parts.push(Part { members: vec![at], positions, logits: segment.logits, group });
        }
        sort(&mut parts);
        let mut layout = Layout { order: Vec::new(), rows: 0, positions: Vec::new(), groups: Vec::new() };
        for Part { members, positions, logits, group } in parts {
            let shared = i32::try_from(group.shared.positions()).unwrap_or(i32::MAX);
            layout.order.extend(members);
            layout.positions.extend(positions.iter().map(|position| shared + position));
            layout.rows += if logits { group.tokens } else { 0 };
            layout.groups.push(group);
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
        let mut found = Vec::with_capacity(layout.groups.len());
        let mut start = 0;
        for groups in layout.groups.chunk_by_mut(|one, next| one.shared.is_empty() == next.shared.is_empty()) {
            let first = start;
            let mut parts = Vec::new();
            for group in groups.iter_mut() {
                let (from, end) = (start, start + group.tokens);
                start = end;
                let of = |all: &Array| -> Result<Array, Exception> {
                    let part = all.try_index(from..end)?;
                    if group.is_slab() { part.expand_dims(2) } else { part.transpose_axes(&[1, 0, 2])?.expand_dims(0) }
                };
                let new = (&of(keys)?, &of(values)?);
                let queries = of(queries)?;
                let pair = self.append(layer, group, new)?;
                if how.rows_only && from >= layout.rows {
                    continue;
                }
                if group.shared.is_empty() {
                    found.push(attend_alone(self.kernels, group, &queries, pair, how)?);
                } else {
                    // Models with windows share nothing.
                    let seen = group.seen(self.kernels, None)?;
                    let part = attend_partly(&queries, (&pair.0, &pair.1), how.scale, seen)?;
                    parts.push(part.map(|array| by_token(array, group))?);
                }
            }
            if !parts.is_empty() {
                let attending = groups.get(..parts.len()).unwrap_or_default();
                let tokens = attending.iter().map(|group| group.tokens).sum::<i32>();
                let queries = queries.try_index(first..first + tokens)?;
                found.push(attend_shared(layer, attending, &queries, &parts, how.scale)?.reshape(&[tokens, -1])?);
            }
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.pop()),
            _ => Ok(Some(concatenate(&found, 0)?)),
        }
    }

    /// Appends a group's keys and values in one layer, and gives all that its place holds.
    fn append(&mut self, layer: usize, group: &Group, new: (&Array, &Array)) -> Result<(Array, Array), Exception> {
        match &group.place {
            Place::Own { sequence, .. } => {
                if self.like.len() == layer {
                    self.like.push([Like::of(new.0), Like::of(new.1)]);
                }
                let cache = self.own.get_mut(sequence).and_then(|computed| computed.own.get_mut(layer));
                cache.ok_or_else(|| Exception::custom("a sequence without a place"))?.append(new.0, new.1)
            }
            Place::Slab { slab, positions } => {
                let slab = self.slabs.get_mut(*slab).ok_or_else(|| Exception::custom("a place without a slab"))?;
                slab.append(layer, new, positions, group.longest())
            }
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
                    let own = self.own.get(sequence).into_iter().flat_map(|computed| &computed.own);
                    own.flat_map(KeyValueCache::arrays).collect()
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
        let mut joining: Vec<(i32, Shared, Vec<SequenceKey>)> = Vec::new();
        for segment in segments.iter().filter(|segment| lone(segment)) {
            let Some(computed) = self.own.get(&segment.sequence) else { continue };
            let length = computed.own.first().map_or(0, KeyValueCache::offset);
            // One without positions has nothing to show what its buffers look like.
            if !(1..longest).contains(&length) {
                continue;
            }
            let capacity = capacity(length + 1);
            let alike = joining.iter_mut().find(|(of, shared, _)| *of == capacity && shared.is(&computed.shared));
            match alike {
                Some((.., sequences)) => sequences.push(segment.sequence),
                None => joining.push((capacity, computed.shared.clone(), vec![segment.sequence])),
            }
        }
        let mut moves = MOVES;
        for (capacity, shared, mut sequences) in joining {
            let fits = |slab: &&mut Slab| slab.capacity() == capacity && slab.shared().is(&shared);
            for slab in self.slabs.iter_mut().filter(fits) {
                let joins = sequences.split_off(sequences.len().saturating_sub(slab.free().min(moves)));
                moves -= joins.len();
                join(slab, joins, &mut self.own)?;
            }
            if let Some(members) = sequences.last_chunk::<SLOTS>().filter(|_| moves >= SLOTS) {
                let members = members.map(|key| (key, self.own.remove(&key).map_or_else(Vec::new, |one| one.own)));
                self.slabs.push(Slab::of(capacity, shared, members)?);
                moves -= SLOTS;
            }
        }
        Ok(())
    }

    /// Gives a sequence buffers of its own.
    fn unslab(&mut self, sequence: SequenceKey) -> Result<(), Exception> {
        if let Some(Computed { shared, own }) = self.leave(sequence)? {
            let own: Vec<_> = own.iter().map(KeyValueCache::copied).collect::<Result<_, _>>()?;
            crate::mlx::evaluate(own.iter().flat_map(KeyValueCache::arrays))?;
            self.own.insert(sequence, Computed::new(shared, own));
        }
        Ok(())
    }
}

/// Tokens of a forward that attend in one call, and which segments they are.
struct Part {
    members: Vec<usize>,
    /// In the group's place.
    positions: Vec<i32>,
    logits: bool,
    group: Group,
}

/// Those that ask for logits come first, then those that share nothing; those that share a span are neighbours.
fn sort(parts: &mut [Part]) {
    let mut spans: Vec<Span> = Vec::new();
    parts.sort_by_cached_key(|part| {
        let mut number = |span: &Span| {
            spans.iter().position(|other| Rc::ptr_eq(other, span)).unwrap_or_else(|| {
                spans.push(Rc::clone(span));
                spans.len() - 1
            })
        };
        (!part.logits, part.group.shared.spans().iter().map(&mut number).collect::<Vec<_>>())
    });
}

/// What a group finds that shares nothing, of shape [tokens, heads · head_dim].
fn attend_alone(
    kernels: Kernels,
    group: &mut Group,
    queries: &Array,
    mut pair: (Array, Array),
    how: How,
) -> Result<Array, Exception> {
    // A lone token sees the end of its window: the rest need not be looked at.
    let longest = group.longest();
    let (is_slab, tokens) = (group.is_slab(), group.tokens);
    let seen = match how.window {
        Some(window) if !is_slab && tokens == 1 && window < longest => {
            let end = |all: &Array| all.try_index((.., .., longest - window..));
            pair = (end(&pair.0)?, end(&pair.1)?);
            Seen::All
        }
        window => group.seen(kernels, window)?,
    };
    let found = kernels.attend(queries, (&pair.0, &pair.1), how.scale, seen)?;
    let found = if is_slab { found } else { found.transpose_axes(&[0, 2, 1, 3])? };
    found.reshape(&[tokens, -1])
}

/// What groups find that share spans, given what they found in their own places, of shape [tokens, heads, head_dim]. A span is
/// looked at once for all neighbours that begin with it.
fn attend_shared(
    layer: usize,
    groups: &[Group],
    queries: &Array,
    own: &[Partial],
    scale: f32,
) -> Result<Array, Exception> {
    let mut all = Partial::concatenated(own)?;
    let span = |group: &Group, depth: usize| group.shared.spans().get(depth).map(Rc::as_ptr);
    let depths = groups.iter().map(|group| group.shared.spans().len()).max().unwrap_or_default();
    for depth in 0..depths {
        let mut parts = Vec::new();
        let mut start = 0;
        for alike in groups.chunk_by(|one, next| span(one, depth) == span(next, depth)) {
            let tokens = alike.iter().map(|group| group.tokens).sum::<i32>();
            let queries = queries.try_index(start..start + tokens)?;
            start += tokens;
            let shared = alike.first().and_then(|group| group.shared.spans().get(depth));
            let Some(run) = shared.and_then(|span| span.get(layer)) else {
                parts.push(all.nothing(tokens)?);
                continue;
            };
            let [keys, values] = run.arrays();
            let queries = queries.transpose_axes(&[1, 0, 2])?.expand_dims(0)?;
            let part = attend_partly(&queries, (keys, values), scale, Seen::All)?;
            parts.push(part.map(|array| array.transpose_axes(&[0, 2, 1, 3])?.squeeze_axes(&[0]))?);
        }
        all = all.and(&Partial::concatenated(&parts)?)?;
    }
    all.whole()
}

/// What a group found, of shape [rows, heads, positions, …], as [tokens, heads, …].
fn by_token(found: &Array, group: &Group) -> Result<Array, Exception> {
    if group.is_slab() { found.squeeze_axes(&[2]) } else { found.transpose_axes(&[0, 2, 1, 3])?.squeeze_axes(&[0]) }
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
    own: &mut HashMap<SequenceKey, Computed>,
) -> Result<(), Exception> {
    if sequences.is_empty() {
        return Ok(());
    }
    for sequence in sequences {
        if let Some(computed) = own.remove(&sequence) {
            slab.join(sequence, &computed.own)?;
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
