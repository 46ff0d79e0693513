//! Decides what the MLX thread does next. A pure state machine: no clock, no MLX, no channels.
//!
//! At most `max_batch` sequences run; the others wait in the order they came, except that a sequence whose model isn't
//! loaded yet lets others pass. Work of different kinds takes turns, so that none waits longer than one step of each
//! other: a decode step of all decoding sequences, one chunk of one prompt, one step of one loading model.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
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
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// This sequence's turn has come. It prefills until [`Scheduler::prefilled`].
    Start(SequenceId),
    /// Compute one chunk of this sequence's prompt.
    Prefill(SequenceId),
    /// Compute one token of each of these.
    Decode(Vec<SequenceId>),
    /// Load some more of this model.
    Load(ModelName),
    /// Wait for something to happen.
    Idle,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull;

/// The state of everything that wants the thread.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<(SequenceId, ModelName)>,
    running: Vec<Running>,
    loading: VecDeque<ModelName>,
    ready: HashSet<ModelName>,
    last: Kind,
    /// Chunks handed out so far.
    chunks: u64,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    model: ModelName,
    prefilled: bool,
    /// The count of chunks when it last got one.
    last_chunk: u64,
}

/// Kinds of work, in the order in which they take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Decode,
    Prefill,
    Load,
}

impl Kind {
    /// The order of turns after this kind had its own.
    fn then(self) -> [Self; 3] {
        match self {
            Self::Decode => [Self::Prefill, Self::Load, Self::Decode],
            Self::Prefill => [Self::Load, Self::Decode, Self::Prefill],
            Self::Load => [Self::Decode, Self::Prefill, Self::Load],
        }
    }
}

impl Scheduler {
    pub(super) fn new(limits: Limits) -> Self {
        let limits = Limits { max_batch: limits.max_batch.max(1), ..limits };
        Self {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            loading: VecDeque::new(),
            ready: HashSet::new(),
            last: Kind::Load,
            chunks: 0,
        }
    }

    /// Takes a sequence in. Those that could start at once don't count as waiting.
    pub(super) fn submit(&mut self, id: SequenceId, model: ModelName) -> Result<(), QueueFull> {
        let free = self.limits.max_batch - self.running.len();
        let startable = self.waiting.iter().filter(|(_, model)| self.ready.contains(model)).count();
        let starts = self.ready.contains(&model) && startable < free;
        if !starts && self.waiting.len() - startable.min(free) >= self.limits.queue {
            return Err(QueueFull);
        }
        self.waiting.push_back((id, model));
        Ok(())
    }

    /// All prompt tokens but the last of a sequence are computed.
    pub(super) fn prefilled(&mut self, id: SequenceId) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) {
            sequence.prefilled = true;
        }
    }

    /// A sequence is over, for whatever reason.
    pub(super) fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.running.retain(|sequence| sequence.id != id);
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
        self.ready.insert(Arc::clone(model));
    }

    /// A model could not be loaded, or was unloaded.
    pub(super) fn unloaded(&mut self, model: &ModelName) {
        self.loading.retain(|loading| loading != model);
        self.ready.remove(model);
    }

    /// Sequences that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that run.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// The sequences of a model, waiting or running.
    pub(super) fn of_model(&self, model: &ModelName) -> Vec<SequenceId> {
        let waiting = self.waiting.iter().filter(|(_, name)| name == model).map(|(id, _)| *id);
        let running = self.running.iter().filter(|sequence| sequence.model == *model).map(|sequence| sequence.id);
        waiting.chain(running).collect()
    }

    /// Whether [`Self::next`] would find nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.loading.is_empty() && self.first_startable().is_none()
    }

    /// What to do next. The caller does it before it asks again.
    pub(super) fn next(&mut self) -> Action {
        if self.running.len() < self.limits.max_batch
            && let Some(position) = self.first_startable()
            && let Some((id, model)) = self.waiting.remove(position)
        {
            self.running.push(Running { id, model, prefilled: false, last_chunk: self.chunks });
            return Action::Start(id);
        }
        for kind in self.last.then() {
            let action = match kind {
                Kind::Decode => self.decode(),
                Kind::Prefill => self.prefill(),
                Kind::Load => self.step_load(),
            };
            if let Some(action) = action {
                self.last = kind;
                return action;
            }
        }
        Action::Idle
    }

    fn first_startable(&self) -> Option<usize> {
        self.waiting.iter().position(|(_, model)| self.ready.contains(model))
    }

    fn decode(&self) -> Option<Action> {
        let ids: Vec<_> =
            self.running.iter().filter(|sequence| sequence.prefilled).map(|sequence| sequence.id).collect();
        (!ids.is_empty()).then_some(Action::Decode(ids))
    }

    /// Prompts take turns, so that a short one isn't held up by a long one before it.
    fn prefill(&mut self) -> Option<Action> {
        let prefilling = self.running.iter_mut().filter(|sequence| !sequence.prefilled);
        let next = prefilling.min_by_key(|sequence| sequence.last_chunk)?;
        self.chunks += 1;
        next.last_chunk = self.chunks;
        Some(Action::Prefill(next.id))
    }

    fn step_load(&mut self) -> Option<Action> {
        let model = self.loading.pop_front()?;
        self.loading.push_back(Arc::clone(&model));
        Some(Action::Load(model))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::{Action, Limits, QueueFull, Scheduler, SequenceId};
    use crate::model::ModelName;

    fn model(number: u8) -> ModelName {
        format!("model-{number}").into()
    }

    fn scheduler(max_batch: usize, queue: usize) -> Scheduler {
        let mut scheduler = Scheduler::new(Limits { max_batch, queue });
        scheduler.loaded(&model(0));
        scheduler
    }

    #[test]
    fn the_queue_has_a_limit_beyond_those_that_can_start() {
        let mut scheduler = scheduler(2, 1);
        for id in 0..3 {
            scheduler.submit(id, model(0)).unwrap();
        }
        assert_eq!(scheduler.submit(3, model(0)), Err(QueueFull));
        assert_eq!((scheduler.next(), scheduler.next()), (Action::Start(0), Action::Start(1)));
        assert_eq!(scheduler.submit(3, model(0)), Err(QueueFull));
        scheduler.remove(0);
        scheduler.submit(3, model(0)).unwrap();
    }

    #[test]
    fn a_loading_model_lets_others_pass_and_then_comes_first() {
        let mut scheduler = scheduler(1, 9);
        scheduler.load(model(1));
        scheduler.submit(0, model(1)).unwrap();
        scheduler.submit(1, model(0)).unwrap();
        scheduler.submit(2, model(0)).unwrap();
        assert_eq!(scheduler.next(), Action::Start(1));
        scheduler.loaded(&model(1));
        scheduler.remove(1);
        assert_eq!(scheduler.next(), Action::Start(0));
    }

    #[test]
    fn kinds_of_work_take_turns() {
        let mut scheduler = scheduler(3, 0);
        for id in 0..3 {
            scheduler.submit(id, model(0)).unwrap();
            assert_eq!(scheduler.next(), Action::Start(id));
        }
        scheduler.prefilled(0);
        scheduler.load(model(1));
        let turns: Vec<Action> = (0..6).map(|_| scheduler.next()).collect();
        let decode = Action::Decode(vec![0]);
        let load = Action::Load(model(1));
        assert_eq!(turns, [decode.clone(), Action::Prefill(1), load.clone(), decode, Action::Prefill(2), load]);
    }

    /// What a client or the world does between two steps.
    #[derive(Debug, Clone)]
    enum Input {
        Submit { model: u8, chunks: u8, tokens: u8 },
        Cancel(u8),
        Load(u8),
        Nothing,
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            3 => (0..3_u8, 0..5_u8, 1..6_u8).prop_map(|(model, chunks, tokens)| Input::Submit { model, chunks, tokens }),
            1 => any::<u8>().prop_map(Input::Cancel),
            1 => (1..3_u8).prop_map(Input::Load),
            3 => Just(Input::Nothing),
        ]
    }

    /// Sequences with the chunks and tokens they still need, and models with the steps they still need.
    #[derive(Default)]
    struct World {
        needs: HashMap<SequenceId, (u8, u8)>,
        running: HashSet<SequenceId>,
        loads: HashMap<ModelName, u8>,
        since_served: HashMap<SequenceId, usize>,
    }

    impl World {
        fn act(&mut self, scheduler: &mut Scheduler, action: Action, max_batch: usize) {
            let mut served = Vec::new();
            match action {
                Action::Start(id) => {
                    assert!(self.running.insert(id), "{id} started twice");
                    assert!(self.running.len() <= max_batch);
                    if self.needs[&id].0 == 0 {
                        scheduler.prefilled(id);
                    }
                    served.push(id);
                }
                Action::Prefill(id) => {
                    let need = self.needs.get_mut(&id).expect("a sequence that is over got a chunk");
                    need.0 = need.0.checked_sub(1).expect("a prompt that is computed got a chunk");
                    if need.0 == 0 {
                        scheduler.prefilled(id);
                    }
                    served.push(id);
                }
                Action::Decode(ids) => {
                    for id in ids {
                        let need = self.needs.get_mut(&id).expect("a sequence that is over got a token");
                        assert_eq!(need.0, 0, "a token before the prompt was computed");
                        need.1 -= 1;
                        if need.1 == 0 {
                            self.end(scheduler, id);
                        }
                        served.push(id);
                    }
                }
                Action::Load(model) => {
                    let left = self.loads.get_mut(&model).expect("a model that nobody loads got a step");
                    *left -= 1;
                    if *left == 0 {
                        self.loads.remove(&model);
                        scheduler.loaded(&model);
                    }
                }
                Action::Idle => assert!(self.running.is_empty() && self.loads.is_empty()),
            }
            for id in &self.running {
                *self.since_served.entry(*id).or_default() += 1;
            }
            for id in served {
                self.since_served.remove(&id);
            }
            // A turn of each kind, a start of each other, and a chunk of each other prompt before it.
            let patience = 4 * max_batch + 4;
            assert!(self.since_served.values().all(|steps| *steps <= patience), "a sequence starves");
        }

        fn end(&mut self, scheduler: &mut Scheduler, id: SequenceId) {
            scheduler.remove(id);
            self.needs.remove(&id);
            self.running.remove(&id);
            self.since_served.remove(&id);
        }
    }

    proptest! {
        #[test]
        fn every_sequence_is_served_and_ends(
            inputs in proptest::collection::vec(input(), 1..120), max_batch in 1..5_usize, queue in 0..6_usize,
        ) {
            let mut scheduler = scheduler(max_batch, queue);
            let mut world = World::default();
            for (id, input) in (0..).zip(inputs) {
                match input {
                    Input::Submit { model: number, chunks, tokens } => {
                        if scheduler.submit(id, model(number)).is_ok() {
                            world.needs.insert(id, (chunks, tokens));
                        }
                    }
                    Input::Cancel(which) => {
                        let mut open: Vec<_> = world.needs.keys().copied().collect();
                        open.sort_unstable();
                        if let Some(id) = open.get(usize::from(which) % open.len().max(1)).copied() {
                            world.end(&mut scheduler, id);
                        }
                    }
                    Input::Load(number) => {
                        scheduler.load(model(number));
                        if scheduler.loading.contains(&model(number)) {
                            world.loads.entry(model(number)).or_insert(3);
                        }
                    }
                    Input::Nothing => {}
                }
                prop_assert!(scheduler.waiting() <= queue + max_batch);
                let action = scheduler.next();
                world.act(&mut scheduler, action, max_batch);
                prop_assert_eq!(scheduler.running(), world.running.len());
            }
            // Left alone, everything comes to an end.
            for number in 0..3 {
                scheduler.load(model(number));
                if scheduler.loading.contains(&model(number)) {
                    world.loads.entry(model(number)).or_insert(3);
                }
            }
            for _ in 0..10_000 {
                if scheduler.is_idle() {
                    break;
                }
                let action = scheduler.next();
                prop_assert_ne!(&action, &Action::Idle);
                world.act(&mut scheduler, action, max_batch);
            }
            prop_assert!(world.needs.is_empty());
            prop_assert_eq!(scheduler.next(), Action::Idle);
        }
    }
}
