//! Which computed sequence begins most like a prompt, within a bound on bytes. Knows no MLX.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound::{Excluded, Included, Unbounded},
    sync::Arc,
};

use crate::model::ModelName;

/// The shortest prefix that counts as found. What a chat template puts in front of every prompt would be found always, which
/// saves next to nothing and would make the share of hits meaningless. vLLM's blocks are of the same length.
const SHORTEST: usize = 16;

/// Values by model and sequence of tokens. No sequence is the beginning of another: whatever the shorter one could serve,
/// the longer one can.
#[derive(Debug)]
pub(crate) struct PrefixIndex<V> {
    limit_bytes: u64,
    bytes: u64,
    /// Rises with every use.
    clock: u64,
    models: HashMap<ModelName, BTreeMap<Vec<u32>, Entry<V>>>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    last_used: u64,
}

impl<V> PrefixIndex<V> {
    /// An index of values that take `limit_bytes` together at most; with 0 it stays empty.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, bytes: 0, clock: 0, models: HashMap::new() }
    }

    /// The most bytes that its values may take.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes of all values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a model's values.
    pub(crate) fn bytes_of(&self, model: &ModelName) -> u64 {
        self.models.get(model).map_or(0, |entries| entries.values().map(|entry| entry.bytes).sum())
    }

    /// The longest beginning of these tokens that there is, as a length, and the value of a sequence that begins so.
    pub(crate) fn longest(&mut self, model: &ModelName, tokens: &[u32]) -> Option<(usize, &V)> {
        self.clock += 1;
        let entries = self.models.get_mut(model)?;
        // In lexicographic order, what begins most alike stands right before or right after.
        let before = entries.range::<[u32], _>((Unbounded, Included(tokens))).next_back();
        let after = entries.range::<[u32], _>((Excluded(tokens), Unbounded)).next();
        let candidates = [after, before].into_iter().flatten().map(|(key, _)| (common(key, tokens), key));
        let (length, key) = candidates.max_by_key(|(length, _)| *length).filter(|(length, _)| *length >= SHORTEST)?;
        let key = key.clone();
        let entry = entries.get_mut(&key)?;
        entry.last_used = self.clock;
        Some((length, &entry.value))
    }

    /// Whether a sequence of so many bytes is worth keeping: it can be found, has room, and isn't there already, which then
    /// counts as a use. If it is, its own beginning and the least recently used go until it fits; [`Self::insert`] follows.
    pub(crate) fn make_room(&mut self, model: &ModelName, tokens: &[u32], bytes: u64) -> bool {
        if tokens.len() < SHORTEST || bytes > self.limit_bytes {
            return false;
        }
        self.clock += 1;
        let entries = self.models.entry(Arc::clone(model)).or_default();
        let after = entries.range_mut::<[u32], _>((Included(tokens), Unbounded)).next();
        if let Some((_, entry)) = after.filter(|(key, _)| key.starts_with(tokens)) {
            entry.last_used = self.clock;
            return false;
        }
        let before = entries.range::<[u32], _>((Unbounded, Excluded(tokens))).next_back();
        let outgrown = before.filter(|(key, _)| tokens.starts_with(key)).map(|(key, _)| key.clone());
        let outgrown = outgrown.and_then(|key| entries.remove(&key));
        self.bytes -= outgrown.map_or(0, |entry| entry.bytes);
        while self.bytes + bytes > self.limit_bytes && self.drop_oldest() {}
        true
    }

    /// Keeps a sequence for which [room was made](Self::make_room).
    pub(crate) fn insert(&mut self, model: &ModelName, tokens: Vec<u32>, value: V, bytes: u64) {
        self.bytes += bytes;
        let entry = Entry { value, bytes, last_used: self.clock };
        self.models.entry(Arc::clone(model)).or_default().insert(tokens, entry);
    }

    /// Drops what was not used for longest; false when there is nothing.
    pub(crate) fn drop_oldest(&mut self) -> bool {
        let entries = self.models.iter().flat_map(|(model, entries)| entries.iter().map(move |entry| (model, entry)));
        let oldest = entries.min_by_key(|(_, (_, entry))| entry.last_used);
        let Some((model, tokens)) = oldest.map(|(model, (tokens, _))| (Arc::clone(model), tokens.clone())) else {
            return false;
        };
        let dropped = self.models.get_mut(&model).and_then(|entries| entries.remove(&tokens));
        self.bytes -= dropped.map_or(0, |entry| entry.bytes);
        true
    }

    /// Drops all of a model's.
    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.bytes -= self.bytes_of(model);
        self.models.remove(model);
    }
}

/// How many tokens two sequences begin with in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(number: u8) -> ModelName {
        format!("model-{number}").into()
    }

    /// Of few tokens, so that many begin alike, after an optional beginning that is long enough to be found.
    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        (any::<bool>(), proptest::collection::vec(0..3_u32, 0..40)).prop_map(|(common, mut rest)| {
            if common {
                rest.splice(0..0, std::iter::repeat_n(1, SHORTEST - 2));
            }
            rest
        })
    }

    /// What happens to an index; values are the number of the keeping.
    #[derive(Debug, Clone)]
    enum Input {
        Find { model: u8, tokens: Vec<u32> },
        Keep { model: u8, tokens: Vec<u32>, bytes: u64 },
        DropOldest,
        Forget(u8),
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            6 => (0..2_u8, tokens()).prop_map(|(model, tokens)| Input::Find { model, tokens }),
            6 => (0..2_u8, tokens(), 1..60_u64).prop_map(|(model, tokens, bytes)| Input::Keep { model, tokens, bytes }),
            1 => Just(Input::DropOldest),
            1 => (0..2_u8).prop_map(Input::Forget),
        ]
    }

    /// The same by brute force: a list, the least recently used first.
    #[derive(Default)]
    struct List(Vec<(ModelName, Vec<u32>, usize, u64)>);

    impl List {
        fn find(&mut self, model: &ModelName, tokens: &[u32], found: Option<(usize, usize)>) {
            let lengths = self.0.iter().filter(|(of, ..)| of == model).map(|(_, key, ..)| common(key, tokens));
            let longest = lengths.max().filter(|length| *length >= SHORTEST);
            assert_eq!(found.map(|(length, _)| length), longest);
            let Some((length, value)) = found else { return };
            // Of several that are as good any will do.
            let position = self.0.iter().position(|(.., of, _)| *of == value).expect("what was found is there");
            let entry = self.0.remove(position);
            assert_eq!((&entry.0, common(&entry.1, tokens)), (model, length));
            self.0.push(entry);
        }

        fn keep(&mut self, model: &ModelName, tokens: &[u32], value: usize, (bytes, limit): (u64, u64)) -> bool {
            if tokens.len() < SHORTEST || bytes > limit {
                return false;
            }
            let covers = |(of, key, ..): &(ModelName, Vec<u32>, usize, u64)| of == model && key.starts_with(tokens);
            let covering = (0..self.0.len()).filter(|position| covers(&self.0[*position]));
            // Of several that are as good the first in lexicographic order is used.
            if let Some(position) = covering.min_by_key(|position| &self.0[*position].1) {
                let entry = self.0.remove(position);
                self.0.push(entry);
                return false;
            }
            self.0.retain(|(of, key, ..)| of != model || !tokens.starts_with(key));
            while self.bytes(None) + bytes > limit {
                self.0.remove(0);
            }
            self.0.push((Arc::clone(model), tokens.to_vec(), value, bytes));
            true
        }

        fn bytes(&self, model: Option<&ModelName>) -> u64 {
            self.0.iter().filter(|(of, ..)| model.is_none_or(|model| of == model)).map(|(.., bytes)| bytes).sum()
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_brute_force_finds_and_never_holds_too_much(
            inputs in proptest::collection::vec(input(), 1..80), limit in prop_oneof![Just(0), 1..200_u64],
        ) {
            let mut index = PrefixIndex::new(limit);
            let mut list = List::default();
            for (value, input) in inputs.into_iter().enumerate() {
                match input {
                    Input::Find { model: number, tokens } => {
                        let found = index.longest(&model(number), &tokens).map(|(length, value)| (length, *value));
                        list.find(&model(number), &tokens, found);
                    }
                    Input::Keep { model: number, tokens, bytes } => {
                        let wanted = index.make_room(&model(number), &tokens, bytes);
                        prop_assert_eq!(wanted, list.keep(&model(number), &tokens, value, (bytes, limit)));
                        if wanted {
                            index.insert(&model(number), tokens, value, bytes);
                        }
                    }
                    Input::DropOldest => {
                        prop_assert_eq!(index.drop_oldest(), !list.0.is_empty());
                        if !list.0.is_empty() {
                            list.0.remove(0);
                        }
                    }
                    Input::Forget(number) => {
                        index.forget(&model(number));
                        list.0.retain(|(of, ..)| *of != model(number));
                    }
                }
                prop_assert!(index.bytes() <= limit);
                prop_assert_eq!(index.bytes(), list.bytes(None));
                for number in 0..2 {
                    prop_assert_eq!(index.bytes_of(&model(number)), list.bytes(Some(&model(number))));
                }
                // The same entries are left.
                let mut values: Vec<_> =
                    index.models.values().flat_map(BTreeMap::values).map(|entry| entry.value).collect();
                values.sort_unstable();
                let mut expected: Vec<_> = list.0.iter().map(|(.., value, _)| *value).collect();
                expected.sort_unstable();
                prop_assert_eq!(values, expected);
            }
        }
    }
}
