//! The keys and values of sequences that ended, for prompts that begin alike.

use std::convert::Infallible;

use super::{
    lookup::PrefixLookup,
    radix::{RadixTree, Run},
};
use crate::{
    mlx::{self, Array, Exception},
    model::{KeyValueCache, KeyValueRun, ModelName},
};

/// Whether the state of every layer can be cut at any token. Keys and values can, and today's layers have nothing else. A
/// plan with recurrent or windowed layers can't: its states go into the tree as snapshots.
const CUTTABLE: bool = true;

/// What was computed for sequences that ended. What they begin with in common is held once. It holds no more than its
/// limit, the least recently used goes first, and nobody who is given a part of it can change it.
#[derive(Debug)]
pub(crate) struct PrefixCache(RadixTree<Layers, Infallible>);

/// The keys and values of a span of tokens, layer by layer, in memory that nobody shares.
#[derive(Debug)]
struct Layers(Vec<KeyValueRun>);

impl Run for Layers {
    type Error = Exception;

    fn bytes(&self) -> u64 {
        self.0.iter().map(KeyValueRun::bytes).sum()
    }

    fn split(&self, at: usize) -> Result<(Self, Self), Exception> {
        let halves = self.0.iter().map(|layer| layer.split(at)).collect::<Result<Vec<_>, _>>()?;
        let (head, tail): (Vec<_>, Vec<_>) = halves.into_iter().unzip();
        mlx::evaluate(head.iter().chain(&tail).flat_map(KeyValueRun::arrays))?;
        Ok((Self(head), Self(tail)))
    }
}

impl PrefixCache {
    /// An empty cache of at most so many bytes; 0 is off.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self(RadixTree::new(limit_bytes))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Bytes held for a model.
    pub(crate) fn bytes_of(&self, model: &ModelName) -> u64 {
        self.0.bytes_of(model)
    }

    /// How much of a prompt was computed before, and the keys and values of that, layer by layer, in buffers that are the
    /// caller's and have room for so many positions; `None` when it is nothing. When the cache is off it isn't searched.
    pub(crate) fn restore(
        &mut self,
        model: &ModelName,
        prompt: &[u32],
        room: i32,
    ) -> Result<(PrefixLookup, Option<Vec<KeyValueCache>>), Exception> {
        if self.0.limit_bytes() == 0 {
            return Ok((PrefixLookup::off(prompt.len()), None));
        }
        let found = self.0.lookup(model, prompt);
        // Every layer that there is can be cut, so that none was saved.
        if let Some(never) = found.snapshot {
            match *never {}
        }
        let Some((Layers(first), _)) = found.spans.first() else { return Ok((found.lookup, None)) };
        let mut layers = Vec::with_capacity(first.len());
        for layer in 0..first.len() {
            let runs = found.spans.iter().filter_map(|(Layers(runs), taken)| Some(runs.get(layer)?.first(*taken)));
            let runs = runs.collect::<Result<Vec<_>, _>>()?;
            layers.push(KeyValueCache::from_runs(&runs.iter().collect::<Vec<_>>(), room)?);
        }
        mlx::evaluate(layers.iter().flat_map(KeyValueCache::arrays))?;
        Ok((found.lookup, Some(layers)))
    }

    /// Keeps the keys and values of these tokens, which are the first of those that `layers` hold. What the cache holds
    /// already isn't copied.
    pub(crate) fn keep(
        &mut self,
        model: &ModelName,
        tokens: &[u32],
        layers: &[KeyValueCache],
    ) -> Result<(), Exception> {
        let mut copies: Vec<Array> = Vec::new();
        let kept = self.0.insert(model, tokens, CUTTABLE, Vec::new(), |range| {
            let runs = layers.iter().map(|layer| layer.run(range.clone())).collect::<Result<Vec<_>, _>>()?;
            copies.extend(runs.iter().flat_map(KeyValueRun::arrays).cloned());
            Ok(Layers(runs))
        })?;
        // Only now, since room was made for them.
        if kept { mlx::evaluate(&copies) } else { Ok(()) }
    }

    /// Drops what was not used for longest; false when there is nothing.
    pub(crate) fn evict(&mut self) -> bool {
        self.0.evict()
    }

    /// Drops all of a model's.
    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.0.forget(model);
    }
}
