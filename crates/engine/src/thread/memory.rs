//! What holds memory beside the sequences that run: the models, and what was computed for sequences that ended.

use std::{collections::HashMap, io, ops::Range};

use mlx_manager_signal::{
    event::{EngineMemory, EngineMemoryHeld, ModelUnloaded, PrefixLookedUp, PromptNotKept},
    span,
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::Span;

use super::{
    EngineSettings,
    admission::{self, Held, Verdict, Wanted},
    models::Models,
};
use crate::{
    cache::{DiskEvent, PrefixCache, PrefixLookup, ReadId, Reason},
    error::EngineError,
    mlx::{self, Exception},
    model::{Computed, ModelName, Source},
};

/// The models and the prefix cache, within a limit.
pub(super) struct Memory {
    pub(super) models: Models,
    prompts: PrefixCache,
    /// Bytes that MLX was asked to stay below.
    limit: Option<u64>,
    /// Hears what sequences wait for that only a model's going would free.
    room_wanted: Option<UnboundedSender<u64>>,
}

impl Memory {
    /// `sources` are those of models that a former thread had.
    /// `tell` hears of the prefix cache's disk, on another thread.
    pub(super) fn new(
        settings: &EngineSettings,
        sources: HashMap<ModelName, Source>,
        tell: impl Fn(DiskEvent) + Clone + Send + 'static,
    ) -> Self {
        Self {
            models: Models::new(sources, settings),
            prompts: PrefixCache::new(settings.prefix_cache, settings.prefix_disk.as_ref(), tell),
            limit: settings.memory_limit,
            room_wanted: settings.room_wanted.clone(),
        }
    }

    /// Gives a model's memory back, and what was computed with it. No sequence may have it.
    pub(super) fn unload(&mut self, name: &ModelName, reason: &'static str) -> Result<(), EngineError> {
        if !self.models.remove(name) {
            return Err(EngineError::NotLoaded { model: name.to_string() });
        }
        self.prompts.forget(name);
        ModelUnloaded { model: name, reason }.emit();
        mlx::clear_cache().map_err(|error| EngineError::mlx(&error))
    }

    /// What was computed before of as many of the first of these tokens as there are, never of the last one, and how far that
    /// went, `recalled` being those that were read from disk for it, and `shares` as in [`PrefixCache::restore`]. The search,
    /// when there is one, is a child of `span`, which is the inference span.
    pub(super) fn computed_before(
        &mut self,
        model: &ModelName,
        tokens: &[u32],
        (room, shares): (i32, bool),
        recalled: &Range<usize>,
        span: &Span,
    ) -> Result<(PrefixLookup, Option<Computed>), Exception> {
        let search = span::cache_lookup(span, tokens.len() as u64);
        let mut found = self.prompts.restore(model, tokens, room, shares)?;
        found.0.from_disk = found.0.restored.min(recalled.end).saturating_sub(recalled.start);
        let PrefixLookup { prompt, matched, restored, from_disk, reason } = found.0;
        let why = reason.to_string();
        if reason != Reason::Off {
            let looked_up = PrefixLookedUp { model, prompt, matched, restored, from_disk, reason: &why };
            span.in_scope(|| looked_up.emit());
        }
        span::cache_looked_up(&search, matched as u64, restored as u64, from_disk as u64, &why);
        Ok(found)
    }

    /// Bytes that a sequence of these tokens would have in common with what is kept.
    pub(super) fn shareable_bytes(&self, model: &ModelName, tokens: &[u32]) -> u64 {
        self.prompts.shareable_bytes(model, tokens)
    }

    /// Keeps what was computed of these tokens, which are the first of those that `computed` holds, for prompts that begin alike.
    pub(super) fn keep(&mut self, model: &ModelName, tokens: &[u32], computed: &Computed) {
        if let Err(error) = self.prompts.keep(model, tokens, computed) {
            PromptNotKept { error: &error }.emit();
            self.prompts.forget(model);
        }
    }

    /// Begins to read from disk what was computed of a prompt and is not in memory, when that is worth it.
    pub(super) fn recall(&mut self, model: &ModelName, prompt: &[u32]) -> Option<ReadId> {
        self.prompts.recall(model, prompt)
    }

    /// Keeps what was read, and says which tokens of its prompt that is.
    pub(super) fn recalled(&mut self, id: ReadId, sorted: &[Vec<u8>]) -> Range<usize> {
        self.prompts.recalled(id, sorted)
    }

    /// Goes on without a disk.
    pub(super) fn disk_failed(&mut self, error: &io::Error) {
        self.prompts.disk_failed(error);
    }

    /// Bytes on disk.
    #[cfg(test)]
    pub(super) fn disk_bytes(&self) -> u64 {
        self.prompts.disk_bytes()
    }

    /// Drops all that was kept of a model's sequences.
    pub(super) fn forget_prompts(&mut self, model: &ModelName) {
        self.prompts.forget(model);
    }

    /// Near its limit MLX lets running work wait for memory. What is only kept goes before that; true if any did.
    pub(super) fn give_back(&mut self) -> bool {
        let Some(limit) = self.limit else { return false };
        let is_near = || mlx::active_memory().is_ok_and(|active| active > limit / 10 * 9);
        let mut dropped = false;
        while self.prompts.bytes() > 0 && is_near() && self.prompts.evict() {
            dropped = true;
        }
        dropped
    }

    /// Whether a sequence may start beside others that will grow by so many bytes. What is only kept goes for it.
    pub(super) fn admit(&mut self, wanted: Wanted, growth: u64, running: usize) -> Verdict {
        let Some(limit) = self.limit else { return Verdict::Yes };
        loop {
            let active = mlx::active_memory().unwrap_or_default();
            let verdict =
                admission::judge(limit, Held { active, kept: self.prompts.unused_bytes(), growth, running }, wanted);
            match verdict {
                Verdict::MakeRoom { bytes } if self.drop_kept(bytes) > 0 => {}
                Verdict::Wait { bytes } => {
                    if let Some(room_wanted) = &self.room_wanted {
                        // Without anybody who could make it, running sequences will.
                        room_wanted.send(bytes).unwrap_or_default();
                    }
                    return verdict;
                }
                Verdict::Yes | Verdict::MakeRoom { .. } | Verdict::Never => return verdict,
            }
        }
    }

    /// The limit of [`Self::admit`], in bytes.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Gives back at least so many bytes of what is kept, if there are; says how many.
    pub(super) fn drop_kept(&mut self, bytes: u64) -> u64 {
        let before = self.prompts.bytes();
        while before - self.prompts.bytes() < bytes && self.prompts.evict() {}
        before - self.prompts.bytes()
    }

    /// Gives back all that is kept and nobody has; says how many bytes.
    pub(super) fn drop_all_kept(&mut self) -> u64 {
        let before = self.prompts.bytes();
        self.prompts.drop_all();
        before - self.prompts.bytes()
    }

    /// What MLX's memory is for, `kv_live` being bytes of running sequences.
    pub(super) fn held(&self, kv_live: u64) -> Result<EngineMemoryHeld, Exception> {
        let weights = self.models.all_ready().map(|(_, info)| info.bytes).sum();
        let prefix_cache = self.prompts.bytes();
        let (active, allocator_cache) = (mlx::active_memory()?, mlx::cache_memory()?);
        let other = active.saturating_sub(weights).saturating_sub(kv_live).saturating_sub(prefix_cache);
        Ok(EngineMemoryHeld { weights, kv_live, prefix_cache, allocator_cache, other })
    }

    /// Bytes kept of a model's sequences that ended.
    pub(super) fn kept_bytes(&self, model: &ModelName) -> u64 {
        self.prompts.bytes_of(model)
    }

    /// States what each model's keys and values take, `running` being those of its running sequences. Of all models:
    /// keeping a prompt of one may have cost another its own.
    pub(super) fn tell(&self, running: impl Fn(&ModelName) -> u64) {
        for (model, _) in self.models.all_ready() {
            EngineMemory { model, kv_cache_bytes: running(model) + self.kept_bytes(model) }.emit();
        }
    }
}
