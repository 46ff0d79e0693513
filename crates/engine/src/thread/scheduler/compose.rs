//! What goes into a step.

use std::{collections::BTreeMap, iter, time::Duration};

use tokio::time::Instant;

use super::{
    Chunk, Running, Scheduler, Step, Turns,
    pace::{Pace, Prompts},
};
use crate::model::ModelName;

/// Beside so many readers or fewer a step may take twice its usual time: nobody sees an answer stop, and a prompt has half of
/// the time. See [`beside`].
const FEW: usize = 4;
/// Seconds that a step may take however fast decode steps are.
const SHORTEST: f64 = 0.02;
/// Seconds that a step may take when nobody decodes, so that those who come don't wait long.
const LONGEST_STEP: f64 = 1.0;
/// How long the first of a crowd waits for the others.
pub(super) const GATHERING: Duration = Duration::from_secs(1);
/// The fewest prompt tokens computed in a step, unless a prompt has less or is told to take less.
const SMALLEST: u64 = 4;
/// The first chunks of a model of which nothing is known, beside rows that decode and alone.
const FIRST_BESIDE: u64 = 8;
const FIRST_ALONE: u64 = 32;
/// Steps in a row that may leave prompts as they are, because not even the smallest chunk fits or decode is measured.
const LONGEST_WITHOUT: u32 = 3;
/// Prompt tokens after which the next sequence of the same class has its turn.
pub(super) const SHARE: u64 = 64;
/// Prompt tokens with which a sequence keeps its turn to the end: of two that take turns to the last token both are late.
pub(super) const NEARLY_DONE: u64 = 256;

impl Scheduler {
    /// The next step, of the model that waited for the longest.
    pub(super) fn compose(&mut self, now: Instant) -> Option<Step> {
        let started = self.running.iter().filter(|running| running.left.is_some()).map(Running::model);
        let last = |model: &ModelName| self.models.get(model).map_or(0, |turns| turns.last);
        let model = ModelName::clone(started.min_by_key(|model| last(model))?);
        let of_model = |running: &&Running| *running.model() == model;
        let mut decoding: Vec<&Running> =
            self.running.iter().filter(of_model).filter(|running| running.decodes()).collect();
        let mut prompts: Vec<&Running> =
            self.running.iter().filter(of_model).filter(|running| running.prefills()).collect();
        prompts.sort_by_key(|running| (running.place.class(now), running.turn));
        let gathers_since = self.gathers_since(&model, &decoding, &prompts, now);
        if gathers_since.is_some() {
            decoding.clear();
        }
        let decode: Vec<_> = decoding.into_iter().map(|running| running.place.ticket.id).collect();
        let prefill = self.chunks(&model, decode.len(), &prompts, now);
        let is_left_out = prefill.is_empty() && !prompts.is_empty();
        let turn = self.take_turn();
        let turns = self.models.entry(ModelName::clone(&model)).or_default();
        turns.last = turn;
        turns.gathers_since = gathers_since;
        turns.without_prefill = if is_left_out { turns.without_prefill + 1 } else { 0 };
        Some(Step { model, decode, prefill })
    }

    /// Since when those whose prompts are computed wait with their first token, if they do: when many come at once and nobody
    /// reads an answer yet, for as long as the next prompt is done soon and those that aren't done gain no less time by it
    /// together than the others lose, or a step more completes the crowd. The last tokens of the others are hardly later for
    /// it: beside prompts they would have come more slowly.
    fn gathers_since(
        &self,
        model: &ModelName,
        ready: &[&Running],
        prompts: &[&Running],
        now: Instant,
    ) -> Option<Instant> {
        let best = ready.iter().map(|running| running.place.class(now)).min()?;
        if ready.iter().any(|running| running.is_read) {
            return None;
        }
        let Turns { pace, gathers_since, .. } = self.models.get(model)?;
        let since = gathers_since.unwrap_or(now);
        let is_soon = |prompts: &[&Running]| {
            let all = sum(&take(prompts, u64::MAX));
            let seconds = pace.predict(0, all).filter(|_| all.tokens > 0);
            let waited = now.saturating_duration_since(since).as_secs_f64();
            seconds.is_some_and(|seconds| waited + seconds <= GATHERING.as_secs_f64()).then_some(all.tokens)
        };
        is_soon(prompts.get(..1)?)?;
        let awaited: Vec<&Running> =
            prompts.iter().copied().filter(|running| running.place.class(now) <= best).collect();
        // Beside readers a prompt has less of a step than they have: by so much at least it is later for each second.
        let later = pace.usual(ready.len()).unwrap_or(1.0) / pace.usual(ready.len().min(FEW)).unwrap_or(1.0);
        let is_worth_it = awaited.len() as f64 * later >= ready.len() as f64;
        let are_last = || is_soon(&awaited).is_some_and(|tokens| tokens <= self.limits.prefill_chunk as u64);
        (is_worth_it || are_last()).then_some(since)
    }

    /// As many tokens of these prompts, in this order, as fit beside so many rows that decode.
    fn chunks(&self, model: &ModelName, rows: usize, prompts: &[&Running], now: Instant) -> Vec<Chunk> {
        if prompts.is_empty() {
            return Vec::new();
        }
        let new = Turns::default();
        let Turns { pace, without_prefill, .. } = self.models.get(model).unwrap_or(&new);
        let may_leave_out = rows > 0 && *without_prefill < LONGEST_WITHOUT;
        if may_leave_out && pace.is_to_measure(rows) {
            return Vec::new();
        }
        let (seconds, is_alone) = self.time_for(model, rows, now);
        let first = if is_alone { FIRST_ALONE } else { FIRST_BESIDE };
        let most = (self.limits.prefill_chunk as u64).min((2 * pace.largest()).max(first));
        for tokens in sizes(most) {
            let chunks = take(prompts, tokens);
            if pace.predict(rows, sum(&chunks)).is_none_or(|predicted| predicted <= seconds) {
                return chunks;
            }
        }
        if may_leave_out { Vec::new() } else { take(prompts, SMALLEST.min(most)) }
    }

    /// Seconds that a model's step with so many decoding rows may take, and whether nobody decodes at all. Between two tokens
    /// of a sequence lies a step of each model, so the time that decode steps leave is shared by those models that prefill. What
    /// the thread did since the last step, such as to keep what sequences had that ended, has some of it.
    fn time_for(&self, model: &ModelName, rows: usize, now: Instant) -> (f64, bool) {
        let usual = |model: &ModelName, rows: usize| {
            self.models.get(model).and_then(|turns| turns.pace.usual(rows)).unwrap_or_default()
        };
        let decodes = |running: &&Running| running.decodes() && (rows > 0 || running.model() != model);
        let decoding = by_model(self.running.iter().filter(decodes));
        let prefilling = by_model(self.running.iter().filter(|running| running.prefills()));
        if decoding.is_empty() {
            return (LONGEST_STEP, true);
        }
        let all_usual: f64 = decoding.iter().map(|(model, rows)| usual(model, *rows)).sum();
        let prompts = decoding.iter().filter_map(|(model, rows)| Some(beside(&self.models.get(*model)?.pace, *rows)));
        let longest = (all_usual + prompts.sum::<f64>()).max(SHORTEST);
        let spent = self.stepped.map_or(Duration::ZERO, |stepped| now.saturating_duration_since(stepped));
        let share = (longest - all_usual - spent.as_secs_f64()).max(0.0) / prefilling.len().max(1) as f64;
        (usual(model, rows) + share, false)
    }
}

/// Seconds that prompts may add to a step of so many rows: as much as a step of few rows takes, and the less the more wait for it
/// together, though not by as much, for then a prompt would never be done.
fn beside(pace: &Pace, rows: usize) -> f64 {
    let few = pace.usual(rows.min(FEW)).unwrap_or_default();
    few * (FEW as f64 / rows.max(FEW) as f64).sqrt()
}

/// How many of these sequences each model has.
fn by_model<'a>(sequences: impl Iterator<Item = &'a Running>) -> BTreeMap<&'a ModelName, usize> {
    let mut models = BTreeMap::new();
    for running in sequences {
        *models.entry(running.model()).or_default() += 1;
    }
    models
}

/// Sizes of chunks to try, the largest first: four to an octave, since what doesn't fit is time that nobody uses.
fn sizes(most: u64) -> impl Iterator<Item = u64> {
    iter::successors(Some(most), |size| {
        let below = size.checked_sub(1).filter(|below| *below >= SMALLEST)?;
        let grid = (1 << below.ilog2()) / 4;
        Some(below / grid * grid)
    })
}

/// The first so many tokens of these prompts.
fn take(prompts: &[&Running], tokens: u64) -> Vec<Chunk> {
    let mut room = tokens;
    let mut chunks = Vec::new();
    for running in prompts {
        let tokens = running.left.unwrap_or_default().min(room);
        if tokens == 0 {
            break;
        }
        room -= tokens;
        chunks.push(Chunk { id: running.place.ticket.id, tokens, context: running.computed });
    }
    chunks
}

fn sum(chunks: &[Chunk]) -> Prompts {
    let mut prompts = Prompts::default();
    for chunk in chunks {
        prompts.add(chunk.tokens, chunk.context);
    }
    prompts
}

#[cfg(test)]
mod tests {
    use super::sizes;

    #[test]
    fn sizes_end_at_the_smallest_and_are_four_to_an_octave() {
        assert_eq!(sizes(3).collect::<Vec<_>>(), [3]);
        assert_eq!(sizes(7).collect::<Vec<_>>(), [7, 6, 5, 4]);
        let expected = [100, 96, 80, 64, 56, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8, 7, 6, 5, 4];
        assert_eq!(sizes(100).collect::<Vec<_>>(), expected);
    }
}
