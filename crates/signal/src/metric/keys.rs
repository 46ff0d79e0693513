//! The keys of series that were measured before.
//!
//! A recorder knows a series by a [`Key`], which owns its labels: making one takes memory for each, and a request has
//! twenty. So each thread keeps the keys that it made, and finds them by what the labels borrow. A key says which series is
//! meant and nothing of a recorder, so whichever is installed decides each time what becomes of the measurement.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    ptr,
};

use foldhash::fast::RandomState;
use metrics::{Key, Recorder};

use super::{
    Labels, MOST_LABELS,
    name::{Definition, Label},
};

/// The most keys that a thread keeps. Names of models come from callers, so there may be any number of them; what is in use
/// comes back soon after all were dropped.
const MOST_KEYS: usize = 1024;

thread_local! {
    static KEYS: RefCell<Keys> = RefCell::default();
}

/// Hands the recorder in effect to `record`, with the key of a series.
pub(super) fn with_recorder(metric: &'static Definition, labels: Labels<'_>, record: impl Fn(&dyn Recorder, &Key)) {
    metrics::with_recorder(|recorder| {
        // What a recorder says of a measurement may be measured itself: then keys are being read, and none is added. A
        // thread that ends has none any more.
        let find = |keys: &RefCell<Keys>| {
            keys.try_borrow().is_ok_and(|keys| keys.get(metric, &labels).map(|key| record(recorder, key)).is_some())
        };
        if KEYS.try_with(find).is_ok_and(|found| found) {
            return;
        }
        // A clone of it, which recorders keep, shares its labels.
        let key = labels.key(metric).to_retained();
        record(recorder, &key);
        let keep = |keys: &RefCell<Keys>| keys.try_borrow_mut().map(|mut keys| keys.keep(metric, &labels, key)).is_ok();
        let _is_kept = KEYS.try_with(keep);
    });
}

/// Keys by the hash of what they stand for. Of two with the same hash the later one is kept.
#[derive(Default)]
struct Keys {
    hashes: RandomState,
    by_hash: HashMap<u64, Kept, RandomState>,
}

struct Kept {
    metric: &'static Definition,
    labels: [Option<Label>; MOST_LABELS],
    key: Key,
}

fn names(labels: &Labels<'_>) -> [Option<Label>; MOST_LABELS] {
    labels.0.map(|entry| entry.map(|(label, _)| label))
}

/// Whether texts are the same. Those of a closed set are mostly found at one place, and not read.
fn is_same(one: &str, other: &str) -> bool {
    ptr::eq(one, other) || one == other
}

impl Keys {
    fn get(&self, metric: &'static Definition, labels: &Labels<'_>) -> Option<&Key> {
        let kept = self.by_hash.get(&self.hash(metric, labels))?;
        let is_same = ptr::eq(kept.metric, metric)
            && kept.labels == names(labels)
            && kept.key.labels().zip(labels.iter()).all(|(kept, (_, value))| is_same(kept.value(), value.as_str()));
        is_same.then_some(&kept.key)
    }

    fn keep(&mut self, metric: &'static Definition, labels: &Labels<'_>, key: Key) {
        if self.by_hash.len() >= MOST_KEYS {
            self.by_hash.clear();
        }
        self.by_hash.insert(self.hash(metric, labels), Kept { metric, labels: names(labels), key });
    }

    fn hash(&self, metric: &'static Definition, labels: &Labels<'_>) -> u64 {
        let mut hasher = self.hashes.build_hasher();
        ptr::hash(metric, &mut hasher);
        labels.iter().for_each(|(_, value)| hasher.write(value.as_str().as_bytes()));
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::name::Counter;

    fn key(model: &str) -> Key {
        let (metric, labels) = (Counter::Requests.definition(), Labels::none().with_text(Label::Model, model));
        metrics::with_local_recorder(&metrics::NoopRecorder, || with_recorder(metric, labels.clone(), |_, _| {}));
        KEYS.with_borrow(|keys| keys.get(metric, &labels).cloned()).unwrap()
    }

    #[test]
    fn a_key_is_kept_for_its_labels_alone_and_names_that_callers_make_up_take_no_room() {
        for number in 0..3 * MOST_KEYS {
            let model = format!("m{number}");
            assert_eq!(key(&model).labels().next().unwrap().value(), model);
        }
        assert!(KEYS.with_borrow(|keys| keys.by_hash.len()) <= MOST_KEYS);
        let (metric, labels) = (Counter::Requests.definition(), Labels::none().with_text(Label::Provider, "m1"));
        key("m1");
        assert!(KEYS.with_borrow(|keys| keys.get(metric, &labels).is_none()), "another label");
    }
}
