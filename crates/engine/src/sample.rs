//! Chooses the next token from logits, on the device, in the order of the reference implementation: penalties, top_p,
//! min_p, top_k, then temperature. A sampler belongs to one sequence; its randomness depends on its seed alone.

use std::{
    collections::hash_map,
    hash::{BuildHasher, Hasher},
};

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::{
        self,
        indexing::{Ellipsis, TryIndexOp, argmax_axis, put_along_axis, take_along_axis},
    },
    random::{self, RandomState},
};

/// How to choose tokens; every value is decided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SamplingParameters {
    /// 0 is greedy.
    pub(crate) temperature: f32,
    /// The smallest set of tokens whose probabilities sum up to this; off at 0 and from 1 on.
    pub(crate) top_p: f32,
    /// Only tokens at least this share as likely as the most likely one; off at 0.
    pub(crate) min_p: f32,
    /// Only so many of the most likely tokens; off at 0.
    pub(crate) top_k: u32,
    /// Divides positive logits (and multiplies negative ones) of all tokens of the prompt and the answer; off at 0 and 1.
    pub(crate) repetition_penalty: f32,
    /// Subtracted from the logits of tokens of the answer so far.
    pub(crate) presence_penalty: f32,
    /// Subtracted from the logits of tokens of the answer so far, once per occurrence.
    pub(crate) frequency_penalty: f32,
    /// Makes the choices repeatable; `None` draws a seed.
    pub(crate) seed: Option<u64>,
}

impl SamplingParameters {
    /// Always the most likely token.
    #[cfg(test)]
    pub(crate) const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: None,
    };

    fn repetition(&self) -> Option<f32> {
        Some(self.repetition_penalty).filter(|penalty| *penalty != 0.0 && *penalty != 1.0)
    }

    fn counts_answer(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    parameters: SamplingParameters,
    random: RandomState,
    /// Per token, 1 if the prompt or the answer has it. `None` when no penalty asks.
    seen: Option<Array>,
    /// Per token, how often the answer has it. `None` when no penalty asks.
    counts: Option<Array>,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub(crate) fn new(parameters: SamplingParameters, prompt: &[u32], vocabulary: u32) -> Result<Self, Exception> {
        let random = RandomState::with_seed(parameters.seed.unwrap_or_else(drawn_seed))?;
        let seen = parameters.repetition().map(|_| {
            let mut seen = vec![0.0; vocabulary as usize];
            prompt.iter().filter_map(|id| seen.get_mut(*id as usize).map(|seen| *seen = 1.0)).for_each(drop);
            seen
        });
        let counts = parameters.counts_answer().then(|| vec![0.0; vocabulary as usize]);
        let row = |values: Vec<f32>| Array::from_slice(&values, &[1, values.len() as i32]);
        Ok(Self { parameters, random, seen: seen.map(row), counts: counts.map(row) })
    }

    /// The next token, of shape `[1]`, from logits of shape [1, vocabulary]. Nothing is computed yet.
    pub(crate) fn sample(&mut self, logits: &Array) -> Result<Array, Exception> {
        let penalized = self.penalize(logits)?;
        let logits = penalized.as_ref().unwrap_or(logits);
        let token = if self.parameters.temperature == 0.0 {
            argmax_axis(logits, -1, false)?
        } else {
            let filtered = filter(logits, &self.parameters)?;
            let scaled = filtered.multiply(Array::from_f32(1.0 / self.parameters.temperature))?;
            random::categorical(&scaled, -1, None, &self.random.next_key()?)?
        };
        self.count(&token)?;
        Ok(token)
    }

    fn penalize(&self, logits: &Array) -> Result<Option<Array>, Exception> {
        let mut penalized = None;
        if let (Some(penalty), Some(seen)) = (self.parameters.repetition(), &self.seen) {
            let penalty = Array::from_f32(penalty);
            let zero = Array::from_f32(0.0);
            let changed = ops::select(logits.lt(&zero)?, logits.multiply(&penalty)?, logits.divide(&penalty)?)?;
            penalized = Some(ops::select(seen.gt(&zero)?, changed, logits)?);
        }
        if let Some(counts) = &self.counts {
            let present = counts.gt(Array::from_f32(0.0))?.as_dtype(Dtype::Float32)?;
            let present = present.multiply(Array::from_f32(self.parameters.presence_penalty))?;
            let frequent = counts.multiply(Array::from_f32(self.parameters.frequency_penalty))?;
            penalized = Some(penalized.as_ref().unwrap_or(logits).subtract(present)?.subtract(frequent)?);
        }
        Ok(penalized)
    }

    /// Remembers a token that may not be computed yet.
    fn count(&mut self, token: &Array) -> Result<(), Exception> {
        let Some(vocabulary) = self.seen.as_ref().or(self.counts.as_ref()).map(|row| row.dim(1)) else { return Ok(()) };
        let all = ops::arange::<_, u32>(None, vocabulary, None)?;
        let chosen = all.eq(token)?.as_dtype(Dtype::Float32)?.reshape(&[1, vocabulary])?;
        if let Some(seen) = &mut self.seen {
            *seen = ops::maximum(&*seen, &chosen)?;
        }
        if let Some(counts) = &mut self.counts {
            *counts = counts.add(&chosen)?;
        }
        Ok(())
    }
}

/// The log-probabilities that may be drawn from; the rest is minus infinity.
fn filter(logits: &Array, parameters: &SamplingParameters) -> Result<Array, Exception> {
    let nothing = Array::from_f32(f32::NEG_INFINITY);
    let mut kept = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    if parameters.top_p > 0.0 && parameters.top_p < 1.0 {
        let sorted = ops::sort_axis(&kept, -1)?;
        let probabilities = sorted.exp()?;
        let above = probabilities.cumsum(-1, true, false)?;
        let total = above.try_index((Ellipsis, ..1))?.add(probabilities.try_index((Ellipsis, ..1))?)?;
        let dropped = above.ge(total.multiply(Array::from_f32(parameters.top_p))?)?.as_dtype(Dtype::Int32)?;
        let threshold = take_along_axis(&sorted, dropped.sum_axis(-1, true)?, -1)?;
        kept = ops::select(kept.lt(threshold)?, &nothing, &kept)?;
    }
    if parameters.min_p > 0.0 {
        let threshold = kept.max_axis(-1, true)?.add(Array::from_f32(parameters.min_p.ln()))?;
        kept = ops::select(kept.lt(threshold)?, &nothing, &kept)?;
    }
    if let Ok(count) = i32::try_from(parameters.top_k)
        && (1..kept.dim(-1)).contains(&count)
    {
        let order = ops::argpartition_axis(kept.negative()?, count - 1, -1)?;
        kept = put_along_axis(&kept, order.try_index((Ellipsis, count..))?, &nothing, -1)?;
    }
    Ok(kept)
}

/// Every hasher of the standard library has keys of its own, drawn from the system's randomness.
fn drawn_seed() -> u64 {
    hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mlx_rs::{Array, ops::softmax_axis};
    use serde::Deserialize;

    use super::{Sampler, SamplingParameters, filter};

    const DEFAULT_WINDOW: usize = 20;

    #[derive(Deserialize)]
    struct Goldens {
        logits: BTreeMap<String, Vec<f32>>,
        contexts: BTreeMap<String, Vec<u32>>,
        filters: Vec<FilterCase>,
        penalties: Vec<PenaltyCase>,
    }

    #[derive(Deserialize)]
    struct FilterCase {
        logits: String,
        settings: BTreeMap<String, f32>,
        kept_ids: Vec<usize>,
        probabilities: Vec<f32>,
    }

    #[derive(Deserialize)]
    struct PenaltyCase {
        logits: String,
        context: String,
        settings: BTreeMap<String, serde_json::Value>,
        result: Vec<f32>,
    }

    fn goldens() -> Goldens {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/engine/sampling.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn row(values: &[f32]) -> Array {
        Array::from_slice(values, &[1, values.len() as i32])
    }

    fn close(found: &[f32], expected: &[f32], case: &str) {
        assert_eq!(found.len(), expected.len(), "{case}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{case}: {found} and {expected}");
        }
    }

    #[test]
    fn filters_keep_what_the_reference_keeps() {
        let goldens = goldens();
        assert!(goldens.filters.len() > 50);
        for case in goldens.filters {
            let setting = |name: &str| case.settings.get(name).copied();
            let parameters = SamplingParameters {
                temperature: case.settings["temp"],
                top_p: setting("top_p").unwrap_or(0.0),
                min_p: setting("min_p").unwrap_or(0.0),
                top_k: setting("top_k").unwrap_or(0.0) as u32,
                ..SamplingParameters::GREEDY
            };
            let name = format!("{} {:?}", case.logits, case.settings);
            let kept = filter(&row(&goldens.logits[&case.logits]), &parameters).unwrap();
            let ids: Vec<usize> = (0..)
                .zip(kept.to_vec_exact::<f32>().unwrap())
                .filter(|(_, value)| value.is_finite())
                .map(|(id, _)| id)
                .collect();
            assert_eq!(ids, case.kept_ids, "{name}");
            let scaled = kept.multiply(Array::from_f32(1.0 / parameters.temperature)).unwrap();
            let probabilities = softmax_axis(&scaled, -1, true).unwrap().to_vec_exact::<f32>().unwrap();
            let probabilities: Vec<f32> = ids.iter().map(|id| probabilities[*id]).collect();
            close(&probabilities, &case.probabilities, &name);
        }
    }

    #[test]
    fn penalties_act_as_the_reference_does() {
        let goldens = goldens();
        let mut replayed = 0;
        for case in goldens.penalties {
            // No API that we serve locally passes a bias on.
            if case.settings.contains_key("logit_bias") {
                continue;
            }
            let setting = |name: &str| case.settings.get(name).and_then(serde_json::Value::as_f64);
            let context = &goldens.contexts[&case.context];
            // The reference looks at the last tokens only; ours at all that it is given.
            let window = |name: &str| {
                let size = setting(name).map_or(DEFAULT_WINDOW, |size| size as usize);
                let size = if size == 0 { context.len() } else { size };
                &context[context.len().saturating_sub(size)..]
            };
            let parameters = SamplingParameters {
                repetition_penalty: setting("repetition_penalty").unwrap_or(0.0) as f32,
                presence_penalty: setting("presence_penalty").unwrap_or(0.0) as f32,
                frequency_penalty: setting("frequency_penalty").unwrap_or(0.0) as f32,
                ..SamplingParameters::GREEDY
            };
            let logits = &goldens.logits[&case.logits];
            let mut sampler = Sampler::new(parameters, window("repetition_context_size"), logits.len() as u32).unwrap();
            let name = if case.settings.contains_key("presence_context_size") {
                "presence_context_size"
            } else {
                "frequency_context_size"
            };
            let seen = sampler.seen.clone();
            for id in window(name) {
                sampler.count(&Array::from_slice(&[*id], &[1])).unwrap();
            }
            sampler.seen = seen;
            let penalized = sampler.penalize(&row(logits)).unwrap();
            let found = penalized.map_or_else(|| logits.clone(), |row| row.to_vec_exact::<f32>().unwrap());
            close(&found, &case.result, &format!("{} {:?}", case.context, case.settings));
            replayed += 1;
        }
        assert!(replayed > 40);
    }

    fn draw(parameters: &SamplingParameters, count: usize) -> Vec<u32> {
        let logits = row(&[1.0, 1.5, 0.5, 1.2, 0.9, 1.1, 0.2, 1.4]);
        let mut sampler = Sampler::new(parameters.clone(), &[], 8).unwrap();
        (0..count).map(|_| sampler.sample(&logits).unwrap().try_item_exact::<u32>().unwrap()).collect()
    }

    #[test]
    fn a_seed_repeats_its_choices_and_only_its_own() {
        let seeded = |seed| SamplingParameters { temperature: 1.0, seed, ..SamplingParameters::GREEDY };
        assert_eq!(draw(&seeded(Some(7)), 40), draw(&seeded(Some(7)), 40));
        assert_ne!(draw(&seeded(Some(7)), 40), draw(&seeded(Some(8)), 40));
        assert_ne!(draw(&seeded(None), 40), draw(&seeded(None), 40));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let parameters = SamplingParameters { temperature: 1.0, seed: Some(1), ..SamplingParameters::GREEDY };
        let drawn = draw(&parameters, 2000);
        let share = drawn.iter().filter(|id| **id == 1).count() as f32 / drawn.len() as f32;
        let expected = 1.5_f32.exp() / [1.0_f32, 1.5, 0.5, 1.2, 0.9, 1.1, 0.2, 1.4].map(f32::exp).iter().sum::<f32>();
        assert!((share - expected).abs() < 0.03, "{share} and {expected}");
    }

    #[test]
    fn a_strong_penalty_makes_greedy_choices_differ() {
        let parameters = SamplingParameters { presence_penalty: 10.0, ..SamplingParameters::GREEDY };
        let mut drawn = draw(&parameters, 8);
        drawn.sort_unstable();
        assert_eq!(drawn, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(draw(&SamplingParameters::GREEDY, 3), [1, 1, 1]);
    }
}
