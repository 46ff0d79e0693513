//! A bounded memory of what was evicted, so that a lookup can say that it would have found more.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
};

use crate::model::ModelName;

/// Beginnings that are remembered; of older ones a lookup says what it sees.
const REMEMBERED: usize = 4096;

/// What of a beginning was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// The value of its last tokens.
    Run,
    /// The snapshot at its end.
    Snapshot,
}

/// Beginnings of sequences by their hashes, whose key nobody knows: a hash tells nothing of the tokens.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    hashing: RandomState,
    known: HashSet<(ModelName, Part, u64)>,
    order: VecDeque<(ModelName, Part, u64)>,
}

impl Evicted {
    /// Remembers that this part of a beginning went.
    pub(super) fn remember(&mut self, model: &ModelName, part: Part, tokens: impl IntoIterator<Item = u32>) {
        let mut hasher = self.hashing.build_hasher();
        tokens.into_iter().for_each(|token| hasher.write_u32(token));
        let beginning = (Arc::clone(model), part, hasher.finish());
        if !self.known.insert(beginning.clone()) {
            return;
        }
        self.order.push_back(beginning);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Whether this part of a beginning of these tokens went that has at least so many of them.
    pub(super) fn has(&self, model: &ModelName, part: Part, tokens: &[u32], at_least: usize) -> bool {
        if self.known.is_empty() {
            return false;
        }
        let mut hasher = self.hashing.build_hasher();
        tokens.iter().enumerate().any(|(position, token)| {
            hasher.write_u32(*token);
            position + 1 >= at_least && self.known.contains(&(Arc::clone(model), part, hasher.finish()))
        })
    }

    /// Forgets a model's.
    pub(super) fn forget(&mut self, model: &ModelName) {
        self.order.retain(|(of, ..)| of != model);
        self.known.retain(|(of, ..)| of != model);
    }
}
