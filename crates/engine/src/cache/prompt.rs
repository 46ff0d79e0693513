//! The keys and values of sequences that ended, for prompts that begin alike.

use super::prefix::PrefixIndex;
use crate::{
    mlx::{self, Exception},
    model::{KeyValueCache, ModelName},
};

/// What was computed for sequences that ended. It holds no more than its limit, the least recently used goes first, and
/// nobody who is given a part of it can change it.
#[derive(Debug)]
pub(crate) struct PromptCache(PrefixIndex<Vec<KeyValueCache>>);

impl PromptCache {
    /// An empty cache of at most so many bytes; 0 is off.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self(PrefixIndex::new(limit_bytes))
    }

    /// Whether it may hold anything.
    pub(crate) fn is_on(&self) -> bool {
        self.0.limit_bytes() > 0
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Bytes held for a model.
    pub(crate) fn bytes_of(&self, model: &ModelName) -> u64 {
        self.0.bytes_of(model)
    }

    /// Keys and values, layer by layer, of as many of the first tokens as were computed before.
    pub(crate) fn longest(
        &mut self,
        model: &ModelName,
        tokens: &[u32],
    ) -> Result<Option<Vec<KeyValueCache>>, Exception> {
        let found = self.0.longest(model, tokens);
        found.map(|(length, layers)| layers.iter().map(|layer| layer.prefix(length)).collect()).transpose()
    }

    /// Keeps the keys and values of these tokens, which are the first of those that `layers` hold.
    pub(crate) fn keep(
        &mut self,
        model: &ModelName,
        tokens: Vec<u32>,
        layers: &[KeyValueCache],
    ) -> Result<(), Exception> {
        let layers = layers.iter().map(|layer| layer.prefix(tokens.len()));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let bytes = layers.iter().map(KeyValueCache::bytes).sum();
        if !self.0.make_room(model, &tokens, bytes) {
            return Ok(());
        }
        // Copied, since a slice would keep all of the buffer it is cut from.
        let layers = layers.iter().map(KeyValueCache::compact).collect::<Result<Vec<_>, _>>()?;
        mlx::evaluate(layers.iter().flat_map(KeyValueCache::arrays))?;
        self.0.insert(model, tokens, layers, bytes);
        Ok(())
    }

    /// Drops what was not used for longest; false when there is nothing.
    pub(crate) fn drop_oldest(&mut self) -> bool {
        self.0.drop_oldest()
    }

    /// Drops all of a model's.
    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.0.forget(model);
    }
}
