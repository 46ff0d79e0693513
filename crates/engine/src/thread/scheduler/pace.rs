//! How long the steps of a model take, learned from those that were done.

use std::{collections::BTreeMap, time::Duration};

/// Steps with prompt tokens after which a decode step goes without, so that what is usual stays known.
const MEASURED_EVERY: u32 = 32;
/// Decode steps of which the fastest counts as usual; after them their average does. The first ones warm up.
const FIRST_SAMPLES: u32 = 3;
/// How much the newest decode step counts in what is usual.
const USUAL_WEIGHT: f64 = 0.1;
/// How much an older step counts in the fit for each newer one. A long prompt must not make it forget what the beginning of
/// one costs; what changes faster is up to the corrections.
const FIT_DECAY: f64 = 0.995;
/// How much the prior counts in the fit, in steps.
const PRIOR_WEIGHT: f64 = 0.05;
/// The context at which a token is assumed to cost twice as much as the first, until that is measured.
const PRIOR_CONTEXT: f64 = 500.0;
/// What a chunk is assumed to cost beside its tokens, in tokens.
const PRIOR_TOKENS: f64 = 8.0;
/// A step that took more than this times what was predicted, or less than its inverse, says no more than that.
const OUTLIER: f64 = 4.0;
/// How fast the correction of predictions follows steps that took longer, and such that took less.
const UP: f64 = 0.5;
const DOWN: f64 = 0.1;
/// How fast all corrections are forgotten with each step: a size that was slow once is left alone, so that nothing else would
/// tell that it no longer is.
const FORGET: f64 = 0.05;
/// Sizes of chunks, in powers of two, whose predictions are corrected apart.
const SIZES: usize = 12;

/// Prompt tokens of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Prompts {
    pub(super) tokens: u64,
    /// Each token times the tokens before it in its sequence.
    pub(super) work: f64,
}

impl Prompts {
    /// Adds a chunk that comes after `context` tokens.
    pub(super) fn add(&mut self, tokens: u64, context: u64) {
        self.tokens += tokens;
        self.work += tokens as f64 * (context as f64 + tokens as f64 / 2.0);
    }
}

/// The pace of one model: how long a decode step usually takes by its rows, and what prompt tokens add.
#[derive(Debug, Default)]
pub(super) struct Pace {
    usual: BTreeMap<usize, Usual>,
    fit: Fit,
    largest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Usual {
    seconds: f64,
    samples: u32,
    /// Steps with so many rows and prompt tokens since.
    mixed: u32,
}

impl Pace {
    /// Whether a decode step of so many rows should go without prompt tokens, to learn how long it takes.
    pub(super) fn is_to_measure(&self, rows: usize) -> bool {
        self.usual.get(&rows).is_none_or(|usual| usual.samples < FIRST_SAMPLES - 1 || usual.mixed >= MEASURED_EVERY)
    }

    /// Seconds that a decode step of so many rows usually takes, if any was measured. Between two measured counts a straight
    /// line is assumed, beyond them as much as at the nearest.
    pub(super) fn usual(&self, rows: usize) -> Option<f64> {
        if rows == 0 {
            return Some(0.0);
        }
        let below = self.usual.range(..=rows).next_back().map(|(rows, usual)| (*rows as f64, usual.seconds));
        let above = self.usual.range(rows..).next().map(|(rows, usual)| (*rows as f64, usual.seconds));
        match (below, above) {
            (Some((low, least)), Some((high, most))) if high > low => {
                Some(least + (most - least) * (rows as f64 - low) / (high - low))
            }
            (Some((_, seconds)), _) | (None, Some((_, seconds))) => Some(seconds),
            (None, None) => None,
        }
    }

    /// The most prompt tokens that were computed in a step.
    pub(super) fn largest(&self) -> u64 {
        self.largest
    }

    /// Seconds that a step is expected to take; `None` before a step with prompt tokens was measured.
    pub(super) fn predict(&self, rows: usize, prompts: Prompts) -> Option<f64> {
        self.fit.predict(self.base(rows), prompts)
    }

    /// A step took so long.
    pub(super) fn observe(&mut self, rows: usize, prompts: Prompts, took: Duration) {
        let seconds = took.as_secs_f64();
        if prompts.tokens == 0 {
            self.usual.entry(rows).and_modify(|usual| usual.observe(seconds)).or_insert(Usual {
                seconds,
                samples: 1,
                mixed: 0,
            });
            return;
        }
        if let Some(usual) = self.usual.get_mut(&rows) {
            usual.mixed += 1;
        }
        self.fit.observe(self.base(rows), prompts, seconds);
        self.largest = self.largest.max(prompts.tokens);
    }

    /// What a step takes beside its prompt tokens. Weights are read once whether a row decodes or not.
    fn base(&self, rows: usize) -> f64 {
        self.usual(rows.max(1)).unwrap_or_default()
    }
}

impl Usual {
    fn observe(&mut self, seconds: f64) {
        self.samples = self.samples.saturating_add(1);
        self.mixed = 0;
        if self.samples <= FIRST_SAMPLES {
            self.seconds = self.seconds.min(seconds);
        } else {
            self.seconds += (seconds.min(2.0 * self.seconds) - self.seconds) * USUAL_WEIGHT;
        }
    }
}

/// What prompt tokens add to a step: something for the chunk, something for each token, and something for each token and
/// each token before it. A least-squares fit in which older steps fade; errors count by the share of the step that they are.
#[derive(Debug)]
struct Fit {
    /// Seconds for a token, as the first step had it: the unit of the rest, so that all of it is near one.
    unit: Option<f64>,
    squares: [[f64; 3]; 3],
    products: [f64; 3],
    parameters: [f64; 3],
    /// By what steps of a size took longer than predicted.
    corrections: [f64; SIZES],
}

impl Default for Fit {
    fn default() -> Self {
        Self { unit: None, squares: [[0.0; 3]; 3], products: [0.0; 3], parameters: [1.0; 3], corrections: [1.0; SIZES] }
    }
}

impl Fit {
    fn predict(&self, base: f64, prompts: Prompts) -> Option<f64> {
        let unit = self.unit?;
        if prompts.tokens == 0 {
            return Some(base);
        }
        Some((base + dot(&self.parameters, &features(unit, prompts))) * self.corrections[size(prompts)])
    }

    fn observe(&mut self, base: f64, prompts: Prompts, took: f64) {
        let first = (took - base).max(took / 8.0).max(1e-9) / (prompts.tokens as f64 + prompts.work / PRIOR_CONTEXT);
        let is_first = self.unit.is_none();
        let unit = *self.unit.get_or_insert(first);
        let features = features(unit, prompts);
        let mut took = took.max(1e-9);
        if !is_first {
            let predicted = (base + dot(&self.parameters, &features)).max(1e-9);
            self.corrections.iter_mut().for_each(|correction| *correction += (1.0 - *correction) * FORGET);
            let correction = &mut self.corrections[size(prompts)];
            let expected = predicted * *correction;
            took = took.clamp(expected / OUTLIER, expected * OUTLIER);
            let ratio = took / predicted;
            *correction += (ratio - *correction) * if ratio > *correction { UP } else { DOWN };
        }
        let features = features.map(|feature| feature / took);
        let target = (took - base) / took;
        for (row, feature) in features.iter().enumerate() {
            for (column, other) in features.iter().enumerate() {
                self.squares[row][column] = self.squares[row][column] * FIT_DECAY + feature * other;
            }
            self.products[row] = self.products[row] * FIT_DECAY + feature * target;
        }
        let mut matrix = self.squares;
        let mut right = self.products;
        for index in 0..3 {
            matrix[index][index] += PRIOR_WEIGHT;
            right[index] += PRIOR_WEIGHT;
        }
        // A chunk never makes a step faster.
        self.parameters = solve(matrix, right).map(|parameter| parameter.max(0.0));
    }
}

fn features(unit: f64, prompts: Prompts) -> [f64; 3] {
    [unit * PRIOR_TOKENS, unit * prompts.tokens as f64, unit * prompts.work / PRIOR_CONTEXT]
}

fn dot(left: &[f64; 3], right: &[f64; 3]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

fn size(prompts: Prompts) -> usize {
    (prompts.tokens.max(1).ilog2() as usize).min(SIZES - 1)
}

/// Solves a system whose matrix is symmetric and positive definite, so that no pivot is zero.
fn solve(mut matrix: [[f64; 3]; 3], mut right: [f64; 3]) -> [f64; 3] {
    for pivot in 0..3 {
        for row in pivot + 1..3 {
            let factor = matrix[row][pivot] / matrix[pivot][pivot];
            let above = matrix[pivot];
            for (value, above) in matrix[row].iter_mut().zip(above).skip(pivot) {
                *value -= factor * above;
            }
            right[row] -= factor * right[pivot];
        }
    }
    let mut solution = [0.0; 3];
    for row in (0..3).rev() {
        let known: f64 = (row + 1..3).map(|column| matrix[row][column] * solution[column]).sum();
        solution[row] = (right[row] - known) / matrix[row][row];
    }
    solution
}
