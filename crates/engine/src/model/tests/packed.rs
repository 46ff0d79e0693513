//! Tokens of many sequences in one forward give what each gives alone.

use std::{collections::BTreeMap, ops::Range, rc::Rc};

use mlx_rs::Array;
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use serde_json::json;

use super::{copy_of, edit_config, loaded};
use crate::{
    mlx,
    model::{Computed, Kernels, KeyValueCache, KeyValueStore, Model, Segment, Shared, Span},
};

/// Longer than the sliding window of the goldens that have one, and than the smallest slab.
const TEXT: usize = 320;

/// How many tokens the texts from this one on have in common.
const COMMON: usize = 60;
const ALIKE: usize = 3;

fn text(seed: usize) -> Vec<u32> {
    let token = |at: usize| if at < COMMON { seed.min(ALIKE) } else { seed } * 31 + at * at * 7 + at;
    (0..TEXT).map(|at| (token(at) % 250) as u32).collect()
}

/// How many of them come first that nobody shares.
const MARKS: usize = 2;

/// What was computed of the first so many tokens of a sequence, in buffers of its own, or in a span that those that begin alike
/// have in common, the last that is nobody else's, and buffers for what is before and between.
fn cut(computed: &Computed, at: usize, common: Option<&mut Option<Span>>) -> Computed {
    let span = |range: Range<usize>| Span::from(computed.copy(range).unwrap());
    let (mut shared, mut rest) = (Shared::default(), Vec::new());
    match common {
        Some(common) if at >= COMMON => {
            rest.push(span(0..MARKS));
            shared.push(MARKS, Rc::clone(common.get_or_insert_with(|| span(MARKS..COMMON))));
            if at > COMMON + MARKS {
                rest.push(span(COMMON..COMMON + MARKS));
                shared.push(COMMON + MARKS, span(COMMON + MARKS..at));
            } else if at > COMMON {
                rest.push(span(COMMON..at));
            }
        }
        Some(_) => shared.push(0, span(0..at)),
        None => rest.push(span(0..at)),
    }
    let own = (0..span(0..1).len()).map(|layer| {
        let runs: Vec<_> = rest.iter().map(|span| &span[layer]).collect();
        KeyValueCache::from_runs(&runs, 0).unwrap()
    });
    Computed::new(shared, own.collect())
}

fn rows_of(logits: &Array) -> Vec<Vec<f32>> {
    let width = logits.dim(1) as usize;
    logits.to_vec_exact::<f32>().unwrap().chunks(width).map(<[f32]>::to_vec).collect()
}

/// Computes `(sequence, tokens, logits)` in one forward, and gives the last row of each that asked for some.
fn forward(model: &Model, store: &mut KeyValueStore, parts: &[(u64, &[u32], bool)]) -> BTreeMap<u64, Vec<f32>> {
    let segments: Vec<Segment> = parts
        .iter()
        .map(|(sequence, tokens, logits)| Segment { sequence: *sequence, tokens: tokens.len() as i32, logits: *logits })
        .collect();
    let mut layout = store.arrange(&segments).unwrap();
    let ordered: Vec<_> = layout.order.iter().map(|index| parts[*index]).collect();
    let ids: Vec<u32> = ordered.iter().flat_map(|(_, tokens, _)| tokens.iter().copied()).collect();
    let logits = model.decoder.forward(&mlx::ids(&ids).unwrap(), &mut layout, store).unwrap();
    mlx::evaluate(logits.iter().chain(store.written(&layout))).unwrap();
    let mut rows = logits.map_or_else(Vec::new, |logits| rows_of(&logits)).into_iter();
    let mut last = BTreeMap::new();
    for (sequence, tokens, logits) in ordered {
        if logits {
            last.insert(sequence, rows.by_ref().take(tokens.len()).last().unwrap());
        }
    }
    last
}

/// The logits after each token of a text, one token at a time.
fn alone(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut store = model.decoder.new_store();
    store.join(0, None, 0);
    tokens.iter().map(|token| forward(model, &mut store, &[(0, &[*token], true)]).remove(&0).unwrap()).collect()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    let largest = expected.iter().fold(1.0_f32, |largest, logit| largest.max(logit.abs()));
    let difference = found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference <= 1e-4 * largest, "{what}: {difference} of {largest}");
}

/// What happens to a sequence in one forward.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Decode,
    /// So many tokens, without logits.
    Prefill(usize),
    /// So many tokens, with the logits of each.
    Verify(usize),
    Rest,
    /// It leaves, and comes back with what was computed of so many tokens in a hundred, in memory that it may share or not.
    Return(usize, bool),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        12 => Just(Deed::Decode),
        4 => (1..90_usize).prop_map(Deed::Prefill),
        1 => (1..5_usize).prop_map(Deed::Verify),
        1 => Just(Deed::Rest),
        2 => (0..100_usize, any::<bool>()).prop_map(|(percent, shares)| Deed::Return(percent, shares)),
    ]
}

#[test]
fn a_ragged_batch_gives_what_each_gives_alone() {
    for (golden, kernels) in [
        ("qwen3-f32-tied", Kernels::Composed),
        ("llama-f32-linear-bias", Kernels::Composed),
        ("llama-f32-linear-bias", Kernels::Fused),
        ("qwen2-q4-mixed", Kernels::Composed),
    ] {
        let folder = copy_of(golden);
        if golden.starts_with("llama") {
            edit_config(folder.path(), |config| {
                config["layer_types"] = json!(["sliding_attention", "full_attention"]);
                config["sliding_window"] = json!(40);
            });
        }
        let model = loaded(folder.path(), kernels);
        let texts: Vec<Vec<u32>> = (0..7).map(text).collect();
        let expected: Vec<Vec<Vec<f32>>> = texts.iter().map(|text| alone(&model, text)).collect();
        let mut runner = TestRunner::new_with_rng(
            ProptestConfig { cases: 2, failure_persistence: None, ..ProptestConfig::default() },
            TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        );
        let deeds = proptest::collection::vec(proptest::collection::vec(deed(), 7), 60);
        runner
            .run(&deeds, |rounds| {
                let mut store = model.decoder.new_store();
                let mut at = [0_usize; 7];
                let mut common = None;
                (0..7).for_each(|sequence| store.join(sequence, None, 0));
                if model.decoder.shares() {
                    forward(&model, &mut store, &[(ALIKE as u64, &texts[ALIKE][..COMMON], false)]);
                    let computed = store.leave(ALIKE as u64).unwrap().unwrap();
                    for (sequence, at) in at.iter_mut().enumerate().skip(ALIKE) {
                        *at = COMMON;
                        store.join(sequence as u64, Some(cut(&computed, COMMON, Some(&mut common))), 0);
                    }
                }
                for round in rounds {
                    let mut parts: Vec<(u64, &[u32], bool)> = Vec::new();
                    for (sequence, deed) in round.into_iter().enumerate() {
                        let (key, left) = (sequence as u64, TEXT - at[sequence]);
                        let (count, logits) = match deed {
                            Deed::Decode => (1, true),
                            Deed::Prefill(count) => (count, false),
                            Deed::Verify(count) => (count, true),
                            Deed::Rest => (0, false),
                            Deed::Return(percent, shares) => {
                                let computed = store.leave(key).unwrap().unwrap();
                                at[sequence] = at[sequence] * percent / 100;
                                let shares = shares && model.decoder.shares();
                                let common = shares.then_some(&mut common).filter(|_| sequence >= ALIKE);
                                let kept = (at[sequence] > 0).then(|| cut(&computed, at[sequence], common));
                                store.join(key, kept, 0);
                                (0, false)
                            }
                        };
                        let count = count.min(left);
                        if count > 0 {
                            parts.push((key, &texts[sequence][at[sequence]..at[sequence] + count], logits));
                        }
                    }
                    let found = forward(&model, &mut store, &parts);
                    for (key, tokens, logits) in parts {
                        let sequence = key as usize;
                        at[sequence] += tokens.len();
                        prop_assert_eq!(store.positions(key), at[sequence]);
                        prop_assert_eq!(found.contains_key(&key), logits);
                        if let Some(found) = found.get(&key) {
                            let what = format!("{golden} {kernels:?} {sequence} at {}", at[sequence]);
                            assert_close(found, &expected[sequence][at[sequence] - 1], &what);
                        }
                    }
                }
                Ok(())
            })
            .unwrap();
    }
}
