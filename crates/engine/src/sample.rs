//! Chooses the next tokens of a batch from its logits, on the device, in the order of the reference implementation: penalties,
//! top_p, min_p, top_k, then temperature. Each row has settings of its own, and what it draws depends on its seed and its
//! position alone, so that it gets the same tokens in any company.

use std::{
    collections::{BTreeMap, hash_map},
    hash::{BuildHasher, Hasher},
};

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::{
        self,
        indexing::{Ellipsis, TryIndexOp, argmax_axis, put_along_axis, take_along_axis},
    },
};
use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{RngCore, SeedableRng},
};

use crate::model::Kernels;

/// How to choose tokens; every value is decided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SamplingParameters {
    /// 0 is greedy, and so is what is too small to divide by.
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

    /// What log-probabilities are multiplied by before the draw; `None` for the most likely token.
    fn sharpness(&self) -> Option<f32> {
        Some(1.0 / self.temperature).filter(|sharpness| sharpness.is_finite())
    }

    /// Whether only the most likely tokens that together reach a share are drawn from.
    fn cuts_mass(&self) -> bool {
        self.top_p > 0.0 && self.top_p < 1.0
    }

    fn counts_answer(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// What the choices of one sequence depend on, besides its logits.
#[derive(Debug)]
pub(crate) struct Sampler {
    parameters: SamplingParameters,
    seed: u64,
    /// Tokens chosen so far.
    chosen: u64,
    /// The tokens that penalties look at, and how often the answer has each. Empty when no penalty asks.
    counts: BTreeMap<u32, u32>,
}

/// A row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) sampler: &'a Sampler,
    /// Tokens chosen of which the sampler has not heard yet.
    pub(crate) ahead: u64,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub(crate) fn new(parameters: SamplingParameters, prompt: &[u32]) -> Self {
        let seed = parameters.seed.unwrap_or_else(drawn_seed);
        let looked_at = if parameters.repetition().is_some() { prompt } else { &[] };
        let counts = looked_at.iter().map(|token| (*token, 0)).collect();
        Self { parameters, seed, chosen: 0, counts }
    }

    /// Whether a choice depends on the tokens before it in other ways than by the logits.
    pub(crate) fn looks_back(&self) -> bool {
        self.parameters.repetition().is_some() || self.parameters.counts_answer()
    }

    /// Hears which token was chosen.
    pub(crate) fn hear(&mut self, token: u32) {
        self.chosen += 1;
        if self.looks_back() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// A number in [0, 1), the same for the same seed and position.
    fn draw(&self, ahead: u64) -> f32 {
        let position = (self.chosen + ahead).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ position).next_u64();
        // As many bits as the sum below one has.
        (bits >> 41) as f32 / (1_u32 << 23) as f32
    }
}

/// The next token of each row, of shape `[rows]`, from logits of shape [rows, vocabulary]. Nothing is computed yet.
///
/// # Errors
/// Those of MLX.
pub(crate) fn choose(logits: &Array, rows: &[Row<'_>], kernels: Kernels) -> Result<Array, Exception> {
    let penalized = penalize(logits, rows)?;
    let logits = penalized.as_ref().unwrap_or(logits);
    // What differs between rows in the graph, and not in numbers alone.
    let mut groups: BTreeMap<Option<(u32, bool)>, Vec<usize>> = BTreeMap::new();
    for (index, Row { sampler, .. }) in rows.iter().enumerate() {
        let parameters = &sampler.parameters;
        let kind = parameters.sharpness().map(|_| (parameters.top_k, parameters.cuts_mass()));
        groups.entry(kind).or_default().push(index);
    }
    let is_one = groups.len() == 1;
    let (mut tokens, mut order) = (Vec::with_capacity(groups.len()), Vec::with_capacity(rows.len()));
    for (kind, members) in groups {
        let picked = if is_one { None } else { Some(logits.take_axis(numbers(&members), 0)?) };
        let logits = picked.as_ref().unwrap_or(logits);
        let group: Vec<Row<'_>> = members.iter().filter_map(|index| rows.get(*index).copied()).collect();
        tokens.push(match kind {
            None => argmax_axis(logits, -1, false)?,
            Some(_) => draw(logits, &group, kernels)?,
        });
        order.extend(members);
    }
    if is_one {
        return tokens.pop().ok_or_else(|| Exception::custom("a choice without rows"));
    }
    let mut place = vec![0; order.len()];
    for (at, index) in order.into_iter().enumerate() {
        if let Some(place) = place.get_mut(index) {
            *place = at;
        }
    }
    ops::concatenate(&tokens, 0)?.take_axis(numbers(&place), 0)
}

/// Draws by the inverse of the cumulated probabilities: one number a row decides.
fn draw(logits: &Array, rows: &[Row<'_>], kernels: Kernels) -> Result<Array, Exception> {
    let parameters: Vec<&SamplingParameters> = rows.iter().map(|row| &row.sampler.parameters).collect();
    let kept = filter(logits, &parameters, kernels)?;
    let sharpness = column(parameters.iter().map(|parameters| parameters.sharpness().unwrap_or(1.0)));
    // The most likely one is at 0 whatever it is multiplied by.
    let above = kept.subtract(kept.max_axis(-1, true)?)?.multiply(sharpness)?;
    let weights = kernels.exp(&above)?;
    let sums = weights.cumsum(-1, None, None)?;
    let drawn = column(rows.iter().map(|row| row.sampler.draw(row.ahead)));
    let mark = sums.try_index((Ellipsis, -1..))?.multiply(drawn)?;
    let zero = Array::from_f32(0.0);
    let passed = sums.gt(mark)?.logical_and(weights.gt(zero)?)?;
    argmax_axis(passed.as_dtype(Dtype::Int32)?, -1, false)
}

/// Logits after penalties; `None` where no row has any.
fn penalize(logits: &Array, rows: &[Row<'_>]) -> Result<Option<Array>, Exception> {
    let width = rows.iter().map(|row| row.sampler.counts.len()).max().unwrap_or_default();
    if width == 0 {
        return Ok(None);
    }
    let (mut ids, mut divisors, mut present, mut frequent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Row { sampler, .. } in rows {
        let Sampler { parameters, counts, .. } = sampler;
        let tokens = counts.iter().map(|(token, count)| (*token, *count));
        let first = tokens.clone().next();
        // Filled up with what changes nothing: the first one again, or a token that no penalty is for.
        let filled = tokens.chain(std::iter::repeat(first.unwrap_or_default())).take(width);
        let repetition = if first.is_some() { parameters.repetition().unwrap_or(1.0) } else { 1.0 };
        for (token, count) in filled {
            ids.push(token);
            divisors.push(repetition);
            present.push(if count > 0 { parameters.presence_penalty } else { 0.0 });
            frequent.push(count as f32 * parameters.frequency_penalty);
        }
    }
    let shape = [rows.len() as i32, width as i32];
    let floats = |values: &[f32]| Array::from_slice(values, &shape);
    let (ids, divisors) = (Array::from_slice(&ids, &shape), floats(&divisors));
    let found = take_along_axis(logits, &ids, -1)?;
    let is_negative = found.lt(Array::from_f32(0.0))?;
    let repeated = ops::select(is_negative, found.multiply(&divisors)?, found.divide(&divisors)?)?;
    let penalized = repeated.subtract(floats(&present))?.subtract(floats(&frequent))?;
    put_along_axis(logits, ids, penalized, -1).map(Some)
}

/// The logits, up to a constant for each row, that may be drawn from; the rest is minus infinity. Of all rows top_k is the
/// same, and whether top_p acts.
fn filter(logits: &Array, rows: &[&SamplingParameters], kernels: Kernels) -> Result<Array, Exception> {
    let nothing = Array::from_f32(f32::NEG_INFINITY);
    let mut kept = logits.clone();
    if rows.iter().any(|row| row.cuts_mass()) {
        let above = logits.subtract(logits.max_axis(-1, true)?)?;
        kept = above.subtract(kernels.exp(&above)?.sum_axis(-1, true)?.log()?)?;
        let sorted = ops::sort_axis(&kept, -1)?;
        let probabilities = kernels.exp(&sorted)?;
        let above = probabilities.cumsum(-1, true, false)?;
        let total = above.try_index((Ellipsis, ..1))?.add(probabilities.try_index((Ellipsis, ..1))?)?;
        let shares = column(rows.iter().map(|row| row.top_p));
        let dropped = above.ge(total.multiply(shares)?)?.as_dtype(Dtype::Int32)?;
        let threshold = take_along_axis(&sorted, dropped.sum_axis(-1, true)?, -1)?;
        kept = ops::select(kept.lt(threshold)?, &nothing, &kept)?;
    }
    if rows.iter().any(|row| row.min_p > 0.0) {
        let shares = column(rows.iter().map(|row| row.min_p.ln()));
        let threshold = kept.max_axis(-1, true)?.add(shares)?;
        kept = ops::select(kept.lt(threshold)?, &nothing, &kept)?;
    }
    if let Some(Ok(count)) = rows.first().map(|row| i32::try_from(row.top_k))
        && (1..kept.dim(-1)).contains(&count)
    {
        let order = ops::argpartition_axis(kept.negative()?, count - 1, -1)?;
        kept = put_along_axis(&kept, order.try_index((Ellipsis, count..))?, &nothing, -1)?;
    }
    Ok(kept)
}

/// One number a row, of shape [rows, 1].
fn column(values: impl Iterator<Item = f32>) -> Array {
    let values: Vec<f32> = values.collect();
    Array::from_slice(&values, &[values.len() as i32, 1])
}

fn numbers(indices: &[usize]) -> Array {
    let indices: Vec<u32> = indices.iter().map(|index| *index as u32).collect();
    Array::from_slice(&indices, &[indices.len() as i32])
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

    use super::{Row, Sampler, SamplingParameters, choose, filter, penalize};
    use crate::model::Kernels;

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
            let kept = filter(&row(&goldens.logits[&case.logits]), &[&parameters], Kernels::Composed).unwrap();
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
            let mut sampler = Sampler::new(parameters, window("repetition_context_size"));
            let name = if case.settings.contains_key("presence_context_size") {
                "presence_context_size"
            } else {
                "frequency_context_size"
            };
            // It has a window for each penalty, which ours has not.
            if sampler.parameters.counts_answer() {
                window(name).iter().for_each(|id| sampler.hear(*id));
            }
            let penalized = penalize(&row(logits), &[Row { sampler: &sampler, ahead: 0 }]).unwrap();
            let found = penalized.map_or_else(|| logits.clone(), |row| row.to_vec_exact::<f32>().unwrap());
            close(&found, &case.result, &format!("{} {:?}", case.context, case.settings));
            replayed += 1;
        }
        assert!(replayed > 40);
    }

    const LOGITS: [f32; 8] = [1.0, 1.5, 0.5, 1.2, 0.9, 1.1, 0.2, 1.4];

    /// What each of several rows draws, in one batch.
    fn draw_together(rows: &[SamplingParameters], count: usize) -> Vec<Vec<u32>> {
        let logits = LOGITS.repeat(rows.len());
        let logits = Array::from_slice(&logits, &[rows.len() as i32, 8]);
        let mut samplers: Vec<Sampler> = rows.iter().map(|row| Sampler::new(row.clone(), &[])).collect();
        let mut drawn = vec![Vec::new(); rows.len()];
        for _ in 0..count {
            let rows: Vec<Row<'_>> = samplers.iter().map(|sampler| Row { sampler, ahead: 0 }).collect();
            let tokens = choose(&logits, &rows, Kernels::Composed).unwrap().to_vec_exact::<u32>().unwrap();
            for ((token, sampler), drawn) in tokens.into_iter().zip(&mut samplers).zip(&mut drawn) {
                sampler.hear(token);
                drawn.push(token);
            }
        }
        drawn
    }

    fn draw(parameters: &SamplingParameters, count: usize) -> Vec<u32> {
        draw_together(std::slice::from_ref(parameters), count).remove(0)
    }

    #[test]
    fn a_seed_repeats_its_choices_and_only_its_own() {
        let seeded = |seed| SamplingParameters { temperature: 1.0, seed, ..SamplingParameters::GREEDY };
        assert_eq!(draw(&seeded(Some(7)), 40), draw(&seeded(Some(7)), 40));
        assert_ne!(draw(&seeded(Some(7)), 40), draw(&seeded(Some(8)), 40));
        assert_ne!(draw(&seeded(None), 40), draw(&seeded(None), 40));
    }

    #[test]
    fn a_row_draws_what_it_draws_alone() {
        let base = SamplingParameters { temperature: 1.0, ..SamplingParameters::GREEDY };
        let rows = [
            SamplingParameters { seed: Some(1), ..base.clone() },
            SamplingParameters::GREEDY,
            SamplingParameters { seed: Some(2), top_k: 3, ..base.clone() },
            SamplingParameters { seed: Some(3), top_p: 0.6, temperature: 0.7, ..base.clone() },
            SamplingParameters { seed: Some(4), min_p: 0.5, top_k: 3, ..base.clone() },
            SamplingParameters { seed: Some(5), top_p: 0.9, presence_penalty: 1.5, ..base.clone() },
            SamplingParameters { seed: Some(6), repetition_penalty: 1.8, frequency_penalty: 0.3, ..base },
            SamplingParameters { presence_penalty: 10.0, ..SamplingParameters::GREEDY },
        ];
        for (together, row) in draw_together(&rows, 60).into_iter().zip(&rows) {
            assert_eq!(together, draw(row, 60), "{row:?}");
        }
    }

    #[test]
    fn what_is_too_small_to_divide_by_is_greedy() {
        for temperature in [0.0, 1e-7, 1e-20, 1e-38, 1e-39, 1e-42, 1e-45] {
            let parameters = SamplingParameters { temperature, ..SamplingParameters::GREEDY };
            assert_eq!(draw(&parameters, 8), [1; 8], "{temperature}");
        }
    }

    #[test]
    fn filters_hold_at_their_ends() {
        let of = |change: fn(&mut SamplingParameters)| {
            let mut parameters = SamplingParameters { temperature: 1.0, seed: Some(9), ..SamplingParameters::GREEDY };
            change(&mut parameters);
            draw(&parameters, 50)
        };
        let plain = of(|_| {});
        assert!(plain.iter().any(|token| *token != 1));
        assert_eq!(of(|parameters| parameters.top_p = 0.0), plain);
        assert_eq!(of(|parameters| parameters.top_k = 8), plain);
        assert_eq!(of(|parameters| parameters.top_k = u32::MAX), plain);
        assert_eq!(of(|parameters| parameters.top_p = f32::MIN_POSITIVE), [1; 50]);
        assert_eq!(of(|parameters| parameters.top_k = 1), [1; 50]);
        assert_eq!(of(|parameters| parameters.min_p = 1.0), [1; 50]);
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
