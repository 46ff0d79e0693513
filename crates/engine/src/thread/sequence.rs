//! One prompt and the answer that grows from it, as far as the host knows of it.

use std::num::NonZeroUsize;

use crate::{
    model::Computed,
    sample::{Sampler, SamplingParameters},
};

/// Tokens of an answer that memory is set aside for where nobody named a limit.
const EXPECTED: usize = 1024;

/// What a sequence is to do.
#[derive(Debug)]
pub(super) struct SequencePlan {
    /// Not empty.
    pub(super) prompt: Vec<u32>,
    pub(super) sampling: SamplingParameters,
    /// At least 1.
    pub(super) max_tokens: u32,
    /// Whether nobody named that limit.
    pub(super) open_ended: bool,
    pub(super) stop_ids: Vec<u32>,
}

/// What a token led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Produced {
    /// A token of the answer; more will follow.
    Token(u32),
    /// The last token that was allowed.
    LastToken(u32),
    /// A token that ends the answer and is no part of it.
    Stop,
}

/// A sequence without what it keeps on the device.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The prompt and the answer so far, a stop token included.
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens of the prompt that need not be computed when it first ran; `None` until then.
    cached: Option<usize>,
    /// Tokens whose keys and values are computed.
    computed: usize,
    max_tokens: usize,
    open_ended: bool,
    stop_ids: Vec<u32>,
    sampler: Sampler,
}

impl Sequence {
    pub(super) fn new(plan: SequencePlan) -> Self {
        let SequencePlan { prompt, sampling, max_tokens, open_ended, stop_ids } = plan;
        let sampler = Sampler::new(sampling, &prompt);
        let length = prompt.len();
        Self {
            tokens: prompt,
            prompt: length,
            cached: None,
            computed: 0,
            max_tokens: max_tokens as usize,
            open_ended,
            stop_ids,
            sampler,
        }
    }

    /// It gets a place, with so many of its first tokens computed. Never all of them: the last one goes through the decode
    /// step that gives the next.
    pub(super) fn place(&mut self, computed: usize) {
        self.computed = computed.min(self.before_last().len());
        self.cached.get_or_insert(self.computed);
    }

    /// Whether it ever had a place.
    pub(super) fn has_run(&self) -> bool {
        self.cached.is_some()
    }

    /// All tokens so far.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn before_last(&self) -> &[u32] {
        self.tokens.split_last().map_or(&[], |(_, before)| before)
    }

    /// Tokens to be computed before the next one can be decoded.
    pub(super) fn to_prefill(&self) -> usize {
        self.before_last().len().saturating_sub(self.computed)
    }

    /// The next tokens to be computed, at most so many.
    pub(super) fn next(&self, count: NonZeroUsize) -> &[u32] {
        let end = self.computed.saturating_add(count.get()).min(self.tokens.len());
        self.tokens.get(self.computed..end).unwrap_or_default()
    }

    /// So many more tokens are computed.
    pub(super) fn advance(&mut self, count: usize) {
        self.computed = self.computed.saturating_add(count).min(self.tokens.len());
    }

    /// Takes the token that was chosen.
    pub(super) fn take(&mut self, token: u32) -> Produced {
        self.tokens.push(token);
        self.sampler.hear(token);
        if self.stop_ids.contains(&token) {
            Produced::Stop
        } else if self.tokens.len() - self.prompt >= self.max_tokens {
            Produced::LastToken(token)
        } else {
            Produced::Token(token)
        }
    }

    /// Whether a token after the next one may follow.
    pub(super) fn goes_on(&self) -> bool {
        self.tokens.len() - self.prompt + 1 < self.max_tokens
    }

    /// Tokens that it will have at its end, as far as can be told. Where nobody named a limit they are [`EXPECTED`] at first, and
    /// more as it grows beyond them.
    pub(super) fn expected_length(&self) -> u64 {
        expected_length(self.prompt, self.tokens.len() - self.prompt, self.max_tokens, self.open_ended)
    }

    pub(super) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompt as u64
    }

    /// Tokens of prompt and answer.
    pub(super) fn length(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of the prompt that were computed before.
    pub(super) fn cached_tokens(&self) -> u64 {
        self.cached.unwrap_or_default() as u64
    }

    /// Tokens generated, a stop token included.
    pub(super) fn produced(&self) -> u64 {
        (self.tokens.len() - self.prompt) as u64
    }

    /// The token that was taken last.
    #[cfg(test)]
    pub(super) fn last_token(&self) -> Option<u32> {
        self.tokens.get(self.prompt..).and_then(<[u32]>::last).copied()
    }

    /// How many of its tokens are computed.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Those of its tokens that were computed. It may be one more than was waited for, and one that nobody read.
    pub(super) fn held(&self, computed: &Computed) -> &[u32] {
        self.tokens.get(..computed.positions()).unwrap_or(&self.tokens)
    }
}

/// See [`Sequence::expected_length`].
pub(super) fn expected_length(prompt: usize, produced: usize, max_tokens: usize, open_ended: bool) -> u64 {
    let answer = match open_ended {
        true => (produced / EXPECTED + 1).saturating_mul(EXPECTED).min(max_tokens),
        false => max_tokens,
    };
    prompt.saturating_add(answer) as u64
}
