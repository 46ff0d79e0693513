//! Decides what the MLX thread does next. A pure state machine: no clock, no MLX, no channels.
//!
//! At most `max_batch` sequences run; the others wait in a [`queue`] by class and arrival, except that a sequence whose model
//! isn't loaded yet lets others pass. What runs is computed in steps: one forward call of one model, with a row for each of
//! its sequences that decode and as many prompt tokens as the [`pace`] of the model lets into the time that those who decode
//! can spare ([`compose`]). Models with work take turns, and so do steps and the loading of models.

mod compose;
mod drain;
mod pace;
mod queue;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use mlx_manager_llm::Priority;
use tokio::time::Instant;

use self::{
    drain::Drain,
    pace::{Pace, Prompts},
    queue::{Queue, Ticket, Waiting},
};
use crate::model::ModelName;

/// Names a sequence.
pub(super) type SequenceId = u64;

/// How much may run and wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Sequences that run at the same time, at least 1.
    pub(super) max_batch: usize,
    /// Sequences that may wait beyond them.
    pub(super) queue: usize,
    /// Prompt tokens that the waiting may have together. One sequence may wait whatever its prompt.
    pub(super) queue_tokens: u64,
    /// Prompt tokens computed in one step, at least 1.
    pub(super) prefill_chunk: usize,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// This sequence's turn has come: [`Scheduler::started`], [`Scheduler::hold`] or [`Scheduler::remove`] follows.
    Start(SequenceId),
    /// This sequence gives its place to a better one: [`Scheduler::requeue`] or [`Scheduler::remove`] follows.
    Preempt(SequenceId),
    /// Compute this: [`Scheduler::stepped`] follows, or [`Scheduler::remove`] of those that failed.
    Step(Step),
    /// Load some more of this model.
    Load(ModelName),
    /// Wait for something to happen.
    Idle,
}

/// One forward call of one model. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) model: ModelName,
    /// Sequences that get a token each.
    pub(super) decode: Vec<SequenceId>,
    /// Tokens of prompts, the last one of each excepted: that goes through the first decode step.
    pub(super) prefill: Vec<Chunk>,
}

/// Some of a prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) id: SequenceId,
    /// At least 1.
    pub(super) tokens: u64,
    /// Tokens of the sequence that are in the cache already.
    pub(super) context: u64,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull {
    /// Sequences that wait.
    pub(super) waiting: usize,
    /// Their prompts' tokens.
    pub(super) waiting_tokens: u64,
    /// Which bound was met.
    pub(super) bound: Bound,
}

/// A bound of the queue, with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// [`Limits::queue`].
    Sequences(usize),
    /// [`Limits::queue_tokens`].
    Tokens(u64),
}

/// The state of everything that wants the thread.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    queue: Queue,
    running: Vec<Running>,
    /// Who gets the place of a sequence that was preempted.
    place_for: Option<SequenceId>,
    models: HashMap<ModelName, Turns>,
    loading: VecDeque<ModelName>,
    ready: HashSet<ModelName>,
    loaded_last: bool,
    drain: Drain,
    /// Turns given so far, whatever they were.
    turns: u64,
    /// When the last step was done, unless nothing has run since.
    stepped: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    /// Its place in the queue, as it left it.
    place: Waiting,
    /// When it did.
    since: Instant,
    /// The turn at which it did.
    started: u64,
    /// Whether another one was preempted for it.
    preferred: bool,
    /// Prompt tokens to compute before it decodes; `None` until that is known.
    left: Option<u64>,
    /// Prompt tokens that are in the cache.
    computed: u64,
    /// When it last had its share of prompt tokens.
    turn: u64,
    /// Prompt tokens computed since.
    turn_tokens: u64,
    /// Whether its reader has had a token.
    is_read: bool,
}

/// A model's pace, and what it had of the thread.
#[derive(Debug, Default)]
struct Turns {
    pace: Pace,
    last: u64,
    /// Steps in a row that left prompts as they were.
    without_prefill: u32,
    /// Since when those whose prompts are computed wait for others.
    gathers_since: Option<Instant>,
}

impl Running {
    fn model(&self) -> &ModelName {
        &self.place.ticket.model
    }

    fn decodes(&self) -> bool {
        self.left == Some(0)
    }

    fn prefills(&self) -> bool {
        self.left.is_some_and(|left| left > 0)
    }
}

impl Scheduler {
    pub(super) fn new(limits: Limits) -> Self {
        let (max_batch, prefill_chunk) = (limits.max_batch.max(1), limits.prefill_chunk.max(1));
        Self {
            limits: Limits { max_batch, prefill_chunk, ..limits },
            queue: Queue::default(),
            running: Vec::new(),
            place_for: None,
            models: HashMap::new(),
            loading: VecDeque::new(),
            ready: HashSet::new(),
            loaded_last: true,
            drain: Drain::default(),
            turns: 0,
            stepped: None,
        }
    }

    /// Takes a sequence in. Those that can start at once don't count as waiting.
    pub(super) fn submit(
        &mut self,
        id: SequenceId,
        model: ModelName,
        priority: Priority,
        prompt_tokens: u64,
        now: Instant,
    ) -> Result<(), QueueFull> {
        self.pass(now);
        let startable = self.queue.in_order(now, |waiting| self.is_ready(waiting));
        let is_blocked = !self.running.is_empty() && startable.iter().any(|waiting| waiting.held);
        let free = if is_blocked { 0 } else { self.limits.max_batch.saturating_sub(self.running.len()) };
        let queued = !self.ready.contains(&model) || startable.len() >= free;
        if queued {
            let soon = &startable[..free.min(startable.len())];
            let waiting = self.queue.len() - soon.len();
            let soon_tokens: u64 = soon.iter().map(|waiting| waiting.prompt_tokens).sum();
            let waiting_tokens = self.waiting_tokens() - soon_tokens;
            let refused = |bound| Err(QueueFull { waiting, waiting_tokens, bound });
            if waiting >= self.limits.queue {
                return refused(Bound::Sequences(self.limits.queue));
            }
            if waiting > 0 && waiting_tokens.saturating_add(prompt_tokens) > self.limits.queue_tokens {
                return refused(Bound::Tokens(self.limits.queue_tokens));
            }
        }
        let ticket = Ticket { id, model, priority, arrived: now, preempted: 0 };
        let waited = Duration::ZERO;
        self.queue.push(Waiting { ticket, prompt_tokens, since: now, waited, queued, held: false });
        Ok(())
    }

    /// What to do next. The caller does it before it asks again.
    pub(super) fn next(&mut self, now: Instant) -> Action {
        self.pass(now);
        if self.running.len() < self.limits.max_batch
            && let Some(id) = self.to_start(now)
            && let Some(place) = self.queue.remove(id)
        {
            if place.queued {
                self.drain.left(place.prompt_tokens);
            }
            let turn = self.take_turn();
            let preferred = self.place_for.take_if(|preferred| *preferred == id).is_some();
            let is_read = place.ticket.preempted > 0;
            self.running.push(Running {
                place,
                since: now,
                started: turn,
                preferred,
                left: None,
                computed: 0,
                turn,
                turn_tokens: 0,
                is_read,
            });
            return Action::Start(id);
        }
        if let Some((better, worse)) = self.to_preempt(now) {
            self.place_for = Some(better);
            return Action::Preempt(worse);
        }
        let loads_next = !self.loaded_last;
        let action = if loads_next {
            self.load_step().or_else(|| self.step(now))
        } else {
            self.step(now).or_else(|| self.load_step())
        };
        action.unwrap_or(Action::Idle)
    }

    /// A sequence was started: so many prompt tokens are to be computed, its last one excepted, and so many are in the cache
    /// already.
    pub(super) fn started(&mut self, id: SequenceId, prefill_tokens: u64, computed: u64) {
        if let Some(running) = self.running_mut(id) {
            running.left = Some(prefill_tokens);
            running.computed = computed;
        }
    }

    /// There is no memory for a sequence that was to start. It waits on as if it had not been asked, and those after it wait
    /// behind it, until a sequence ends or is preempted, or a model is unloaded. When nothing runs, nobody waits for it, and
    /// only an unloaded model can help.
    pub(super) fn hold(&mut self, id: SequenceId) {
        let Some(position) = self.running.iter().position(|running| running.place.ticket.id == id) else { return };
        let Running { mut place, preferred, .. } = self.running.remove(position);
        if preferred {
            self.place_for = Some(id);
        }
        if place.queued {
            self.drain.came_back(place.prompt_tokens);
        }
        place.held = true;
        place.queued = true;
        self.queue.push(place);
    }

    /// A step was done just now, and took so long.
    pub(super) fn stepped(&mut self, step: &Step, took: Duration, now: Instant) {
        let mut prompts = Prompts::default();
        for Chunk { id, tokens, context } in &step.prefill {
            prompts.add(*tokens, *context);
            let turn = self.turns + 1;
            let Some(running) = self.running_mut(*id) else { continue };
            running.left = running.left.map(|left| left.saturating_sub(*tokens));
            running.computed += tokens;
            running.turn_tokens += tokens;
            let is_nearly_done = running.left.is_none_or(|left| left <= compose::NEARLY_DONE);
            if running.turn_tokens >= compose::SHARE && !is_nearly_done {
                running.turn = turn;
                running.turn_tokens = 0;
                self.turns = turn;
            }
        }
        for id in &step.decode {
            if let Some(running) = self.running_mut(*id) {
                running.is_read = true;
            }
        }
        self.stepped = Some(now);
        if let Some(turns) = self.models.get_mut(&step.model) {
            turns.pace.observe(step.decode.len(), prompts, took);
        }
    }

    /// A sequence was preempted, and waits again with so many tokens to be in the cache before it goes on. It is never
    /// refused, and has its old place among those of its class, which is one better than before.
    pub(super) fn requeue(&mut self, id: SequenceId, prompt_tokens: u64, now: Instant) {
        self.pass(now);
        let Some(position) = self.running.iter().position(|running| running.place.ticket.id == id) else { return };
        let Running { place, since, .. } = self.running.remove(position);
        let waited = place.waited + since.saturating_duration_since(place.since);
        let ticket = Ticket { preempted: place.ticket.preempted + 1, ..place.ticket };
        self.queue.release();
        self.queue.push(Waiting { ticket, prompt_tokens, since: now, waited, queued: true, held: false });
    }

    /// A sequence is over, for whatever reason.
    pub(super) fn remove(&mut self, id: SequenceId, now: Instant) {
        self.pass(now);
        if let Some(Waiting { queued: true, prompt_tokens, .. }) = self.queue.remove(id) {
            self.drain.left(prompt_tokens);
        }
        if let Some(position) = self.running.iter().position(|running| running.place.ticket.id == id) {
            self.running.remove(position);
            self.queue.release();
        }
        if self.running.is_empty() {
            self.stepped = None;
        }
    }

    /// A model begins to load.
    pub(super) fn load(&mut self, model: ModelName) {
        if !self.ready.contains(&model) && !self.loading.contains(&model) {
            self.loading.push_back(model);
        }
    }

    /// A model is ready.
    pub(super) fn loaded(&mut self, model: &ModelName) {
        self.loading.retain(|loading| loading != model);
        self.ready.insert(ModelName::clone(model));
    }

    /// A model could not be loaded, or was unloaded.
    pub(super) fn unloaded(&mut self, model: &ModelName) {
        self.loading.retain(|loading| loading != model);
        self.ready.remove(model);
        self.models.remove(model);
        self.queue.release();
    }

    /// Sequences that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// When whoever is refused now should come back: when those who wait now have left the queue, by how fast it emptied while
    /// somebody waited.
    pub(super) fn retry_after(&mut self, now: Instant) -> Duration {
        self.pass(now);
        self.drain.time_for(self.queue.len(), self.waiting_tokens())
    }

    /// Sequences that run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// The sequences of a model, waiting or running.
    pub(super) fn of_model(&self, model: &ModelName) -> Vec<SequenceId> {
        let running = self.running.iter().map(|running| &running.place);
        let all = self.queue.iter().chain(running).map(|waiting| &waiting.ticket);
        all.filter(|ticket| ticket.model == *model).map(|ticket| ticket.id).collect()
    }

    /// Whether [`Self::next`] would find nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        let waits = || self.queue.iter().any(|waiting| !waiting.held && self.is_ready(waiting));
        self.running.is_empty() && self.loading.is_empty() && !waits()
    }

    fn is_ready(&self, waiting: &Waiting) -> bool {
        self.ready.contains(&waiting.ticket.model)
    }

    fn waiting_tokens(&self) -> u64 {
        self.queue.iter().map(|waiting| waiting.prompt_tokens).sum()
    }

    fn running_mut(&mut self, id: SequenceId) -> Option<&mut Running> {
        self.running.iter_mut().find(|running| running.place.ticket.id == id)
    }

    fn take_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    fn pass(&mut self, now: Instant) {
        let somebody_waits = self.queue.iter().any(|waiting| waiting.queued);
        self.drain.pass(now, somebody_waits);
    }

    /// Who gets a place that is free.
    fn to_start(&self, now: Instant) -> Option<SequenceId> {
        let order = self.queue.in_order(now, |waiting| self.is_ready(waiting));
        let next = match self.preferred() {
            Some(preferred) if !preferred.held => Some(preferred),
            // When nothing runs, nobody waits for room.
            _ if self.running.is_empty() => order.into_iter().find(|waiting| !waiting.held),
            // The one that was preempted for it may stand before it, and must not take the memory back.
            Some(preferred) => order.into_iter().next().filter(|first| first.class(now) < preferred.class(now)),
            // Were the held one passed, it would wait for as long as smaller ones come.
            None => order.into_iter().next(),
        };
        next.filter(|waiting| !waiting.held).map(|waiting| waiting.ticket.id)
    }

    /// Who waits and has had another one preempted.
    fn preferred(&self) -> Option<&Waiting> {
        self.queue.get(self.place_for?).filter(|waiting| self.is_ready(waiting))
    }

    /// Who takes the place of whom: the best of those that wait that of the last started among the worst, when all places are
    /// taken or there is no memory for the next.
    fn to_preempt(&self, now: Instant) -> Option<(SequenceId, SequenceId)> {
        let worst = self.running.iter().max_by_key(|running| (running.place.ticket.standing(), running.started))?;
        let order = self.queue.in_order(now, |waiting| self.is_ready(waiting));
        let best = if self.running.len() < self.limits.max_batch {
            self.preferred().or(order.into_iter().next()).filter(|waiting| waiting.held)?
        } else {
            order.into_iter().min_by_key(|waiting| waiting.ticket.priority)?
        };
        let is_better = best.ticket.priority < worst.place.ticket.standing();
        is_better.then_some((best.ticket.id, worst.place.ticket.id))
    }

    fn load_step(&mut self) -> Option<Action> {
        let model = self.loading.pop_front()?;
        self.loading.push_back(ModelName::clone(&model));
        self.loaded_last = true;
        Some(Action::Load(model))
    }

    fn step(&mut self, now: Instant) -> Option<Action> {
        let step = self.compose(now)?;
        self.loaded_last = false;
        Some(Action::Step(step))
    }
}
