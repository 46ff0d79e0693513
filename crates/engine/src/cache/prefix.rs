//! The keys and values of sequences that ended, for prompts that begin alike.

use std::{convert::Infallible, io, ops::Range, rc::Rc};

use mlx_manager_signal::event::PromptNotKept;

use super::{
    disk::{DiskCache, DiskEvent, DiskSettings, Read, ReadId},
    lookup::PrefixLookup,
    radix::{Leaving, RadixTree, Run},
};
use crate::{
    mlx::{self, Array, Exception},
    model::{self, Computed, KeyValueCache, KeyValueRun, ModelName, Shared, Span},
};

/// Whether the state of every layer can be cut at any token. Keys and values can, and today's layers have nothing else. A
/// plan with recurrent or windowed layers can't: its states go into the tree as snapshots.
const CUTTABLE: bool = true;

/// The fewest positions of a span that sequences share. To copy fewer takes less time than to look at them apart in each layer
/// for each token of the answer.
const SHARED: usize = 512;

/// What was computed for sequences that ended. What they begin with in common is held once. It holds no more than its
/// limit, the least recently used goes first, to disk if there is one, and nobody who is given a part of it can change it.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    tree: RadixTree<Layers, Infallible>,
    disk: Option<DiskCache>,
}

/// The keys and values of a span of tokens, in memory that it has for itself.
#[derive(Debug)]
struct Layers(Span);

impl Run for Layers {
    type Error = Exception;

    fn bytes(&self) -> u64 {
        model::bytes(&self.0)
    }

    fn is_used(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }

    fn split(&self, at: usize) -> Result<(Self, Self), Exception> {
        let halves = self.0.iter().map(|layer| layer.split(at)).collect::<Result<Vec<_>, _>>()?;
        let (head, tail): (Vec<_>, Vec<_>) = halves.into_iter().unzip();
        mlx::evaluate(head.iter().chain(&tail).flat_map(KeyValueRun::arrays))?;
        Ok((Self(head.into()), Self(tail.into())))
    }
}

impl PrefixCache {
    /// An empty cache of at most so many bytes; 0 is off. `tell` hears of its disk, on another thread.
    pub(crate) fn new(
        limit_bytes: u64,
        disk: Option<&DiskSettings>,
        tell: impl Fn(DiskEvent) + Clone + Send + 'static,
    ) -> Self {
        let disk = disk.filter(|disk| disk.limit_bytes > 0 && limit_bytes > 0);
        let disk = disk.map(|settings| DiskCache::new(settings, limit_bytes, tell));
        Self { tree: RadixTree::new(limit_bytes), disk }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.tree.bytes()
    }

    /// Bytes held that may go.
    pub(crate) fn unused_bytes(&self) -> u64 {
        self.tree.unused_bytes()
    }

    /// Bytes held for a model.
    pub(crate) fn bytes_of(&self, model: &ModelName) -> u64 {
        self.tree.bytes_of(model)
    }

    /// Bytes that [`Self::restore`] would let a prompt share.
    pub(crate) fn shareable_bytes(&self, model: &ModelName, prompt: &[u32]) -> u64 {
        self.tree.common_bytes(model, prompt, SHARED)
    }

    /// How much of a prompt was computed before, and that, with room for so many positions; `None` when it is nothing. With
    /// `shares` long spans are those of the cache, which keeps them as long as the caller does; all else is the caller's.
    /// When the cache is off it isn't searched.
    pub(crate) fn restore(
        &mut self,
        model: &ModelName,
        prompt: &[u32],
        room: i32,
        shares: bool,
    ) -> Result<(PrefixLookup, Option<Computed>), Exception> {
        if self.tree.limit_bytes() == 0 {
            return Ok((PrefixLookup::off(prompt.len()), None));
        }
        if shares {
            self.tree.fork(model, prompt, SHARED)?;
        }
        let found = self.tree.lookup(model, prompt);
        // Every layer that there is can be cut, so that none was saved.
        if let Some(never) = found.snapshot {
            match *never {}
        }
        let Some((Layers(first), _)) = found.spans.first() else { return Ok((found.lookup, None)) };
        let (mut shared, mut copied, mut start) = (Shared::default(), Vec::new(), 0);
        for (Layers(span), taken) in &found.spans {
            if shares && *taken >= SHARED && *taken == model::positions(span) {
                shared.push(start, Rc::clone(span));
            } else {
                copied.push((span, *taken));
            }
            start += taken;
        }
        let room = room - i32::try_from(shared.positions()).unwrap_or(room);
        let mut own = Vec::with_capacity(first.len());
        for layer in 0..first.len() {
            let runs = copied.iter().filter_map(|(span, taken)| Some(span.get(layer)?.first(*taken)));
            let runs = runs.collect::<Result<Vec<_>, _>>()?;
            own.push(KeyValueCache::from_runs(&runs.iter().collect::<Vec<_>>(), room)?);
        }
        mlx::evaluate(own.iter().flat_map(KeyValueCache::arrays))?;
        Ok((found.lookup, Some(Computed::new(shared, own))))
    }

    /// Keeps the keys and values of these tokens, which are the first of those that were `computed`. What the cache holds
    /// already isn't copied.
    pub(crate) fn keep(&mut self, model: &ModelName, tokens: &[u32], computed: &Computed) -> Result<(), Exception> {
        let mut copies: Vec<Array> = Vec::new();
        let Self { tree, disk } = self;
        let make = |range: Range<usize>| {
            let runs = computed.copy(range)?;
            copies.extend(runs.iter().flat_map(KeyValueRun::arrays).cloned());
            Ok(Layers(runs.into()))
        };
        let kept = tree.insert(model, tokens, CUTTABLE, Vec::new(), make, |leaving| spill(disk, &leaving))?;
        // Only now, since room was made for them.
        if kept { mlx::evaluate(&copies) } else { Ok(()) }
    }

    /// Drops what was not used for longest; false when there is nothing that may go.
    pub(crate) fn evict(&mut self) -> bool {
        let Self { tree, disk } = self;
        tree.evict(|leaving| spill(disk, &leaving))
    }

    /// Drops everything that may go, and sends nothing of it to disk: where memory has run out there is none for that.
    pub(crate) fn drop_all(&mut self) {
        while self.tree.evict(|_| {}) {}
    }

    /// Drops all of a model's, on disk too.
    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.tree.forget(model);
        self.disk.iter_mut().for_each(|disk| disk.forget(model));
    }

    /// Begins to read from disk what is there of a prompt and not in memory, when that is enough to be worth it.
    pub(crate) fn recall(&mut self, model: &ModelName, prompt: &[u32]) -> Option<ReadId> {
        let disk = self.disk.as_mut()?;
        disk.read(model, prompt, self.tree.matched(model, prompt))
    }

    /// Keeps in memory what was read: which tokens of its prompt that is.
    pub(crate) fn recalled(&mut self, id: ReadId, sorted: &[Vec<u8>]) -> Range<usize> {
        let Some(read) = self.disk.as_mut().and_then(|disk| disk.arrived(id, sorted)) else { return 0..0 };
        self.keep_read(&read, sorted).unwrap_or_else(|error| {
            PromptNotKept { error: &error }.emit();
            self.forget(&read.model);
            0..0
        })
    }

    fn keep_read(&mut self, read: &Read, sorted: &[Vec<u8>]) -> Result<Range<usize>, Exception> {
        let Read { model, tokens, from, layout } = read;
        let Self { tree, disk } = self;
        // What comes before it may have given way meanwhile.
        if tree.matched(model, tokens) < *from {
            return Ok(0..0);
        }
        let layers = layout.layers(sorted, tokens.len() - from)?;
        let mut parts: Vec<Array> = Vec::new();
        let make = |range: Range<usize>| {
            let part = |layer: &KeyValueRun| layer.part(range.start - from..range.end - from);
            let runs = layers.iter().map(part).collect::<Result<Vec<_>, _>>()?;
            parts.extend(runs.iter().flat_map(KeyValueRun::arrays).cloned());
            Ok(Layers(runs.into()))
        };
        let kept = tree.insert(model, tokens, CUTTABLE, Vec::new(), make, |leaving| spill(disk, &leaving))?;
        if !kept {
            return Ok(0..0);
        }
        mlx::evaluate(&parts)?;
        Ok(*from..tokens.len())
    }

    /// Goes on without the disk.
    pub(crate) fn disk_failed(&mut self, error: &io::Error) {
        if let Some(disk) = self.disk.take() {
            disk.fail(error);
        }
    }

    /// Bytes on disk.
    #[cfg(test)]
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, DiskCache::bytes)
    }
}

/// What goes from memory goes to disk, if there is one.
fn spill(disk: &mut Option<DiskCache>, leaving: &Leaving<'_, Layers>) {
    let Some(disk) = disk else { return };
    let runs: Vec<&[KeyValueRun]> = leaving.runs.iter().map(|Layers(span)| &**span).collect();
    if let Err(error) = disk.spill(leaving.model, leaving.tokens, &runs) {
        PromptNotKept { error: &error }.emit();
    }
}
