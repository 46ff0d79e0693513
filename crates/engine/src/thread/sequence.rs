//! One prompt and the answer that grows from it.

use crate::{
    mlx::{self, Array, Exception},
    model::{KeyValueCache, Model},
    sample::{Sampler, SamplingParameters},
};

/// What a sequence is to do.
#[derive(Debug)]
pub(super) struct SequencePlan {
    /// Not empty.
    pub(super) prompt: Vec<u32>,
    pub(super) sampling: SamplingParameters,
    /// At least 1.
    pub(super) max_tokens: u32,
    pub(super) stop_ids: Vec<u32>,
}

/// What a decode step led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Produced {
    /// A token of the answer; more will follow.
    Token(u32),
    /// The last token that was allowed.
    LastToken(u32),
    /// A token that ends the answer and is no part of it.
    Stop,
}

/// A sequence and all that it keeps on the device.
#[derive(Debug)]
pub(super) struct Sequence {
    plan: SequencePlan,
    /// Prompt tokens that were in the cache from the start.
    cached: usize,
    /// Prompt tokens that are in the cache.
    prefilled: usize,
    cache: Vec<KeyValueCache>,
    sampler: Sampler,
    /// The token to be read next, perhaps still being computed.
    current: Option<Array>,
    /// The token after it, if it was begun.
    ahead: Option<Array>,
    /// Tokens read, a stop token included.
    produced: Vec<u32>,
}

impl Sequence {
    /// `cached` holds the keys and values of the prompt's first tokens, not of all of them: the last one is computed in any
    /// case.
    pub(super) fn new(
        model: &Model,
        plan: SequencePlan,
        cached: Option<Vec<KeyValueCache>>,
    ) -> Result<Self, Exception> {
        let sampler = Sampler::new(plan.sampling.clone(), &plan.prompt, model.info.vocabulary)?;
        let cache = cached.unwrap_or_else(|| model.decoder.new_cache());
        let prefilled = positions(&cache);
        let produced = Vec::new();
        Ok(Self { plan, cached: prefilled, prefilled, cache, sampler, current: None, ahead: None, produced })
    }

    /// Prompt tokens to compute before the first decode step.
    pub(super) fn left_to_prefill(&self) -> u64 {
        (self.plan.prompt.len() as u64).saturating_sub(self.prefilled as u64 + 1)
    }

    /// Prompt tokens that are in the cache.
    pub(super) fn prefilled_tokens(&self) -> u64 {
        self.prefilled as u64
    }

    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.plan.prompt.len() as u64
    }

    /// Tokens of the prompt that were computed before.
    pub(super) fn cached_tokens(&self) -> u64 {
        self.cached as u64
    }

    /// Tokens generated, a stop token included.
    pub(super) fn produced(&self) -> u64 {
        self.produced.len() as u64
    }

    /// The token that was read last.
    #[cfg(test)]
    pub(super) fn last_token(&self) -> Option<u32> {
        self.produced.last().copied()
    }

    /// The tokens whose keys and values are computed, and these, layer by layer, perhaps with positions beyond: those of a
    /// token that nobody has read. The last token that was read is missing if no other was to follow.
    pub(super) fn into_computed(self) -> (Vec<u32>, Vec<KeyValueCache>) {
        let mut tokens = self.plan.prompt;
        tokens.extend(self.produced);
        tokens.truncate(positions(&self.cache));
        (tokens, self.cache)
    }

    /// Bytes of the key-value cache.
    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache.iter().map(KeyValueCache::bytes).sum()
    }

    /// Computes at most `chunk` more tokens of the prompt and waits for them.
    pub(super) fn prefill(&mut self, model: &Model, chunk: usize) -> Result<(), Exception> {
        let last = self.plan.prompt.len().saturating_sub(1);
        let end = self.prefilled.saturating_add(chunk).min(last);
        let Some(tokens) = self.plan.prompt.get(self.prefilled..end).filter(|tokens| !tokens.is_empty()) else {
            return Ok(());
        };
        model.decoder.prefill(&mlx::ids(tokens)?, &mut self.cache)?;
        mlx::evaluate(self.cache.iter().flat_map(KeyValueCache::arrays))?;
        mlx::clear_cache()?;
        self.prefilled = end;
        Ok(())
    }

    /// Begins the computation of the next token and of the one after it, without waiting.
    pub(super) fn launch(&mut self, model: &Model) -> Result<(), Exception> {
        let current = match self.current.take() {
            Some(current) => current,
            None => {
                let last = self.plan.prompt.get(self.prefilled..).unwrap_or_default();
                self.next(model, &mlx::ids(last)?)?
            }
        };
        if self.produced.len() + 1 < self.plan.max_tokens as usize {
            self.ahead = Some(self.next(model, &current)?);
        }
        self.current = Some(current);
        Ok(())
    }

    /// Waits for the token that was launched.
    pub(super) fn collect(&mut self) -> Result<Produced, Exception> {
        let current = self.current.take().ok_or_else(|| Exception::custom("no token was launched"))?;
        let id = mlx::read_id(&current)?;
        self.current = self.ahead.take();
        self.produced.push(id);
        Ok(if self.plan.stop_ids.contains(&id) {
            Produced::Stop
        } else if self.produced.len() >= self.plan.max_tokens as usize {
            Produced::LastToken(id)
        } else {
            Produced::Token(id)
        })
    }

    fn next(&mut self, model: &Model, ids: &Array) -> Result<Array, Exception> {
        let logits = model.decoder.logits(ids, &mut self.cache)?;
        let token = self.sampler.sample(&logits)?;
        mlx::start([&token])?;
        Ok(token)
    }
}

/// Tokens whose keys and values a cache holds.
fn positions(cache: &[KeyValueCache]) -> usize {
    cache.first().map_or(0, |layer| layer.offset() as usize)
}
