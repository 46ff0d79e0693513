//! Whatever clients do, all are served, none for ever passed over, and everything ends.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use mlx_manager_llm::Priority::{self, Batch, Interactive, Normal};
use proptest::prelude::*;

use super::{
    super::queue::AGING,
    Action, Limits, ModelName, SequenceId, Step,
    machine::{Machine, Sequence, World},
    model,
};

/// What a client or the world does between two steps.
#[derive(Debug, Clone)]
enum Input {
    Submit {
        model: u8,
        priority: Priority,
        prompt: u64,
        answer: u64,
    },
    Cancel(u8),
    Load(u8),
    /// There is no memory for who comes next.
    NoMemory,
    Pass(u64),
}

fn input() -> impl Strategy<Value = Input> {
    let priority = || prop_oneof![Just(Interactive), Just(Normal), Just(Batch)];
    let prompt = || prop_oneof![1..40_u64, 100..1_500_u64];
    prop_oneof![
        6 => (0..3_u8, priority(), prompt(), 1..6_u64)
            .prop_map(|(model, priority, prompt, answer)| Input::Submit { model, priority, prompt, answer }),
        2 => any::<u8>().prop_map(Input::Cancel),
        1 => (1..3_u8).prop_map(Input::Load),
        1 => Just(Input::NoMemory),
        3 => (0..9_000_u64).prop_map(Input::Pass),
    ]
}

/// A world, with the rules that it keeps.
struct Watched {
    world: World,
    limits: Limits,
    ready: HashSet<ModelName>,
    loads: HashMap<ModelName, u8>,
    held: HashSet<SequenceId>,
    no_memory: bool,
    /// Steps and loads since a running sequence had its part.
    unserved: HashMap<SequenceId, usize>,
    /// Steps of a model in a row without tokens of its prompts.
    without: HashMap<ModelName, u32>,
}

impl Watched {
    fn new(limits: Limits) -> Self {
        let machine = Machine { step: 0.02, row: 0.001, token: 0.001, context: 0.000_002, noise: 0.1 };
        let mut world = World::new(limits, machine);
        world.scheduler.loaded(&model(0));
        Self {
            world,
            limits,
            ready: HashSet::from([model(0)]),
            loads: HashMap::new(),
            held: HashSet::new(),
            no_memory: false,
            unserved: HashMap::new(),
            without: HashMap::new(),
        }
    }

    fn running(&self) -> impl Iterator<Item = (&SequenceId, &Sequence)> {
        self.world.open.iter().filter(|(_, sequence)| sequence.runs)
    }

    fn class(&self, sequence: &Sequence) -> Priority {
        let waited = sequence.waited + (self.world.now - sequence.waits_since);
        sequence.priority.raised(sequence.preempted + waited.as_secs() / AGING.as_secs())
    }

    fn load(&mut self, number: u8) {
        if !self.ready.contains(&model(number)) {
            self.world.scheduler.load(model(number));
            self.loads.entry(model(number)).or_insert(3);
        }
    }

    fn act(&mut self) -> bool {
        let preferred = self.world.scheduler.place_for;
        let action = self.world.scheduler.next(self.world.now);
        let is_idle = action == Action::Idle;
        match action {
            Action::Start(id) => self.start(id, preferred == Some(id)),
            Action::Preempt(id) => self.preempt(id),
            Action::Step(step) => self.step(&step),
            Action::Load(model) => {
                let left = self.loads.get_mut(&model).expect("a model that nobody loads got a step");
                *left -= 1;
                if *left == 0 {
                    self.loads.remove(&model);
                    self.world.scheduler.loaded(&model);
                    self.ready.insert(model);
                }
            }
            Action::Idle => {
                assert!(self.running().next().is_none() && self.loads.is_empty());
                assert!(self.world.scheduler.is_idle());
            }
        }
        assert_eq!(self.world.scheduler.running(), self.running().count());
        assert!(self.running().count() <= self.limits.max_batch);
        is_idle
    }

    fn start(&mut self, id: SequenceId, is_preferred: bool) {
        let others_run = self.running().next().is_some();
        let started = &self.world.open[&id];
        assert!(self.ready.contains(&started.model));
        for (other, waiting) in self.world.open.iter().filter(|(other, waiting)| !waiting.runs && **other != id) {
            let is_ahead = self.class(waiting) == Interactive && (waiting.arrived, *other) < (started.arrived, id);
            let can_start = self.ready.contains(&waiting.model) && (others_run || !self.held.contains(other));
            assert!(is_preferred || !is_ahead || !can_start, "{id} passed {other}, which has waited long enough");
        }
        if std::mem::take(&mut self.no_memory) && others_run {
            self.held.insert(id);
            self.world.scheduler.hold(id);
        } else {
            assert!(!self.held.contains(&id), "{id} was offered again before there was room");
            self.world.start(id);
            self.unserved.insert(id, 0);
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        let worse = self.world.open[&id].clone();
        let better = &self.world.open[&self.world.scheduler.place_for.expect("it gives way to somebody")];
        assert!(!better.runs && better.priority < worse.priority.raised(worse.preempted));
        self.world.preempt(id);
        let most = match worse.priority {
            Interactive => 0,
            Normal => 1,
            Batch => 2,
        };
        assert!(self.world.open[&id].preempted <= most);
        self.unserved.remove(&id);
        self.held.clear();
    }

    fn step(&mut self, step: &Step) {
        let of_model = |sequence: &Sequence| sequence.model == step.model;
        let decoding: Vec<_> =
            self.running().filter(|(_, sequence)| of_model(sequence) && sequence.left == 0).collect();
        let mut rows = step.decode.clone();
        rows.sort_unstable();
        let is_unread = decoding.iter().all(|(_, sequence)| sequence.first_token.is_none() && sequence.preempted == 0);
        if !(rows.is_empty() && is_unread) {
            assert_eq!(rows, decoding.iter().map(|(id, _)| **id).collect::<Vec<_>>(), "all that decode have a row");
        }
        let tokens: u64 = step.prefill.iter().map(|chunk| chunk.tokens).sum();
        assert!(tokens <= self.limits.prefill_chunk as u64);
        let chunks: HashSet<SequenceId> = step.prefill.iter().map(|chunk| chunk.id).collect();
        assert_eq!(chunks.len(), step.prefill.len());
        let prefilling = self.running().any(|(_, sequence)| of_model(sequence) && sequence.left > 0);
        let without = self.without.entry(ModelName::clone(&step.model)).or_default();
        *without = if prefilling && step.prefill.is_empty() { *without + 1 } else { 0 };
        assert!(*without <= 3, "prompts of {} starve", step.model);
        self.serve(step, &chunks);
        let before: Vec<SequenceId> = self.world.open.keys().copied().collect();
        self.world.compute(step);
        for id in before {
            if !self.world.open.contains_key(&id) {
                self.ended(id);
            }
        }
    }

    /// No running sequence goes without while all others have had their part.
    fn serve(&mut self, step: &Step, chunks: &HashSet<SequenceId>) {
        for (id, unserved) in &mut self.unserved {
            let has_part = chunks.contains(id) || step.decode.contains(id);
            *unserved = if has_part { 0 } else { *unserved + 1 };
            let sequence = &self.world.open[id];
            // A class below the best waits for its age, and then for the shares of all others at the least chunk, a chunk in
            // four steps, in turn with two other models.
            let aged = self.world.now - sequence.arrived >= AGING * 2 + Duration::from_secs(1);
            let patience = 3 * 4 * (64 / 4) * self.limits.max_batch;
            assert!(!aged || *unserved <= patience || sequence.left == 0, "{id} starves");
            let is_read = sequence.first_token.is_some() || sequence.preempted > 0;
            assert!(sequence.left > 0 || !is_read || *unserved <= 3, "{id} gets no tokens");
        }
    }

    fn ended(&mut self, id: SequenceId) {
        self.unserved.remove(&id);
        self.held.clear();
    }

    fn cancel(&mut self, which: u8) {
        let open = self.world.open.len().max(1);
        let Some((id, sequence)) = self.world.open.iter().nth(usize::from(which) % open) else { return };
        let (id, ran) = (*id, sequence.runs);
        self.world.end(id);
        if ran {
            self.ended(id);
        } else {
            self.held.remove(&id);
        }
    }

    fn submit(&mut self, id: SequenceId, number: u8, priority: Priority, prompt: u64, answer: u64) {
        let waiting = self.world.scheduler.waiting();
        let waiting_tokens: u64 = self.waiting_tokens();
        let taken = self.world.submit(id, model(number), priority, prompt, answer);
        if taken.is_ok() {
            let beyond = waiting.saturating_sub(self.limits.max_batch);
            assert!(beyond < self.limits.queue.max(1), "too many wait");
        } else {
            let by_tokens = waiting > 0 && waiting_tokens + prompt > self.limits.queue_tokens;
            assert!(waiting >= self.limits.queue || by_tokens, "refused without need");
        }
    }

    fn waiting_tokens(&self) -> u64 {
        let waiting = self.world.open.values().filter(|sequence| !sequence.runs);
        waiting.map(|sequence| sequence.computed + sequence.left + 1).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn all_are_served_and_end(
        inputs in proptest::collection::vec(input(), 1..150),
        max_batch in 1..5_usize, queue in 0..8_usize, queue_tokens in 1..3_000_u64, prefill_chunk in 1..300_usize,
    ) {
        let mut watched = Watched::new(Limits { max_batch, queue, queue_tokens, prefill_chunk });
        for (id, input) in (0..).zip(inputs) {
            match input {
                Input::Submit { model, priority, prompt, answer } => watched.submit(id, model, priority, prompt, answer),
                Input::Cancel(which) => watched.cancel(which),
                Input::Load(number) => watched.load(number),
                Input::NoMemory => watched.no_memory = true,
                Input::Pass(milliseconds) => watched.world.now += Duration::from_millis(milliseconds),
            }
            watched.act();
        }
        // Left alone, everything comes to an end.
        watched.no_memory = false;
        watched.load(1);
        watched.load(2);
        for _ in 0..100_000 {
            if watched.act() {
                break;
            }
        }
        prop_assert!(watched.world.open.is_empty(), "{:?}", watched.world.open);
    }
}
