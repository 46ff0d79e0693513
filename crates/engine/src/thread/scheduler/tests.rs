//! Who runs, who waits and who gives way. How steps keep to their time is in [`gaps`], what holds whatever happens in
//! [`anything`].

mod anything;
mod gaps;
mod machine;

use std::time::Duration;

use mlx_manager_llm::Priority::{self, Batch, Interactive, Normal};
use tokio::time::Instant;

use super::{Action, Bound, Chunk, Limits, QueueFull, Scheduler, SequenceId, Step};
use crate::model::ModelName;

fn model(number: u8) -> ModelName {
    format!("model-{number}").into()
}

const LIMITS: Limits = Limits { max_batch: 2, queue: 9, queue_tokens: 1_000_000, prefill_chunk: 256 };

/// A scheduler with a clock that only a test moves, and a model that is ready.
struct Thread {
    scheduler: Scheduler,
    now: Instant,
}

impl Thread {
    fn new(limits: Limits) -> Self {
        let mut scheduler = Scheduler::new(limits);
        scheduler.loaded(&model(0));
        Self { scheduler, now: Instant::now() }
    }

    fn submit(&mut self, id: SequenceId, priority: Priority) {
        self.submit_tokens(id, priority, 2).unwrap();
    }

    fn submit_tokens(&mut self, id: SequenceId, priority: Priority, tokens: u64) -> Result<(), QueueFull> {
        self.scheduler.submit(id, model(0), priority, tokens, self.now)
    }

    fn next(&mut self) -> Action {
        self.scheduler.next(self.now)
    }

    /// Starts whoever has a turn, with so many tokens to prefill.
    fn start(&mut self, prefill: u64) -> SequenceId {
        let action = self.next();
        let Action::Start(id) = action else { panic!("{action:?}") };
        self.scheduler.started(id, prefill, 0);
        id
    }

    fn step(&mut self) -> Step {
        let action = self.next();
        let Action::Step(step) = action else { panic!("{action:?}") };
        step
    }

    fn end(&mut self, id: SequenceId) {
        self.scheduler.remove(id, self.now);
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn the_queue_has_a_limit_beyond_those_that_can_start() {
    let mut thread = Thread::new(Limits { queue: 1, ..LIMITS });
    for id in 0..3 {
        thread.submit(id, Normal);
    }
    let full = Err(QueueFull { waiting: 1, waiting_tokens: 2, bound: Bound::Sequences(1) });
    assert_eq!(thread.submit_tokens(3, Interactive, 1), full);
    assert_eq!((thread.start(0), thread.start(0)), (0, 1));
    assert_eq!(thread.submit_tokens(3, Interactive, 1), full);
    thread.end(0);
    thread.submit(3, Normal);
}

#[test]
fn the_queue_has_a_limit_in_prompt_tokens_that_one_may_exceed() {
    let mut thread = Thread::new(Limits { max_batch: 1, queue_tokens: 100, ..LIMITS });
    thread.submit_tokens(0, Normal, 1_000).unwrap();
    thread.submit_tokens(1, Normal, 1_000).unwrap();
    let full = |waiting, waiting_tokens| Err(QueueFull { waiting, waiting_tokens, bound: Bound::Tokens(100) });
    assert_eq!(thread.submit_tokens(2, Normal, 1), full(1, 1_000));
    thread.end(1);
    thread.submit_tokens(3, Normal, 60).unwrap();
    assert_eq!(thread.submit_tokens(4, Normal, 41), full(1, 60));
    thread.submit_tokens(5, Normal, 40).unwrap();
}

#[test]
fn a_loading_model_lets_others_pass_and_then_comes_first() {
    let mut thread = Thread::new(Limits { max_batch: 1, ..LIMITS });
    thread.scheduler.load(model(1));
    thread.scheduler.submit(0, model(1), Normal, 2, thread.now).unwrap();
    thread.submit(1, Normal);
    thread.submit(2, Normal);
    assert_eq!(thread.start(0), 1);
    thread.scheduler.loaded(&model(1));
    thread.end(1);
    assert_eq!(thread.start(0), 0);
}

#[test]
fn models_take_turns_and_so_do_steps_and_loads() {
    let mut thread = Thread::new(LIMITS);
    thread.scheduler.loaded(&model(1));
    thread.submit(0, Normal);
    thread.scheduler.submit(1, model(1), Normal, 2, thread.now).unwrap();
    assert_eq!((thread.start(0), thread.start(0)), (0, 1));
    thread.scheduler.load(model(2));
    thread.scheduler.load(model(3));
    let turns: Vec<Action> = (0..6).map(|_| thread.next()).collect();
    let decode = |id: u8| Action::Step(Step { model: model(id), decode: vec![id.into()], prefill: Vec::new() });
    let load = |id| Action::Load(model(id));
    assert_eq!(turns, [decode(0), load(2), decode(1), load(3), decode(0), load(2)]);
}

#[test]
fn short_prompts_are_computed_together_and_the_better_class_first() {
    let mut thread = Thread::new(Limits { max_batch: 4, ..LIMITS });
    let prompts = [(0, Batch, 40), (1, Normal, 10), (2, Normal, 300), (3, Interactive, 5)];
    for (id, priority, tokens) in prompts {
        thread.submit_tokens(id, priority, tokens).unwrap();
    }
    for _ in prompts {
        let action = thread.next();
        let Action::Start(id) = action else { panic!("{action:?}") };
        thread.scheduler.started(id, prompts[id as usize].2, 7);
    }
    let chunk = |id, tokens| Chunk { id, tokens, context: 7 };
    assert_eq!(thread.step().prefill, [chunk(3, 5), chunk(1, 10), chunk(2, 17)]);
}

#[test]
fn long_prompts_of_a_class_take_turns() {
    let mut thread = Thread::new(LIMITS);
    thread.submit(0, Normal);
    thread.submit(1, Normal);
    assert_eq!((thread.start(1_000), thread.start(1_000)), (0, 1));
    let mut had = Vec::new();
    for _ in 0..6 {
        let step = thread.step();
        had.push(step.prefill[0].id);
        thread.scheduler.stepped(&step, Duration::from_millis(step.prefill[0].tokens), thread.now);
    }
    assert_eq!(had, [0, 0, 1, 0, 1, 0]);
}

#[test]
fn a_class_goes_first_until_others_have_waited() {
    let mut thread = Thread::new(Limits { max_batch: 1, ..LIMITS });
    thread.submit(0, Interactive);
    assert_eq!(thread.start(0), 0);
    for (id, priority) in [(1, Batch), (2, Normal), (3, Interactive), (4, Interactive)] {
        thread.submit(id, priority);
    }
    thread.end(0);
    assert_eq!(thread.start(0), 3);
    thread.wait(10);
    thread.submit(5, Interactive);
    thread.end(3);
    // The one that was normal is as good as those now, and was there before.
    assert_eq!(thread.start(0), 2);
    thread.wait(10);
    thread.submit(6, Interactive);
    thread.end(2);
    assert_eq!(thread.start(0), 1);
    thread.end(1);
    assert_eq!(thread.start(0), 4);
}

#[test]
fn the_last_started_of_the_worst_class_gives_way_and_twice_at_most() {
    let mut thread = Thread::new(Limits { max_batch: 3, ..LIMITS });
    for (id, priority) in [(0, Batch), (1, Batch), (2, Normal)] {
        thread.submit(id, priority);
        assert_eq!(thread.start(0), id);
    }
    thread.submit(3, Batch);
    assert!(matches!(thread.next(), Action::Step(_)), "batch gives way to no batch");
    for better in [4, 5] {
        thread.submit(better, Interactive);
    }
    assert_eq!(thread.next(), Action::Preempt(1));
    thread.scheduler.requeue(1, 5, thread.now);
    assert_eq!(thread.start(0), 4);
    assert_eq!(thread.next(), Action::Preempt(0));
    thread.scheduler.requeue(0, 5, thread.now);
    assert_eq!(thread.start(0), 5);
    // Those that gave way come before others of their class, and are normal now.
    thread.end(2);
    assert_eq!(thread.start(0), 0);
    thread.submit(6, Normal);
    assert!(matches!(thread.next(), Action::Step(_)), "it doesn't give way to what it is itself now");
    thread.submit(7, Interactive);
    assert_eq!(thread.next(), Action::Preempt(0));
    thread.scheduler.requeue(0, 5, thread.now);
    assert_eq!(thread.start(0), 7);
    thread.end(7);
    assert_eq!(thread.start(0), 0);
    thread.submit(8, Interactive);
    assert!(matches!(thread.next(), Action::Step(_)), "it has given way twice");
}

#[test]
fn a_place_that_was_made_is_had_by_whom_it_was_made_for() {
    let mut thread = Thread::new(Limits { max_batch: 1, ..LIMITS });
    thread.submit(0, Batch);
    assert_eq!(thread.start(0), 0);
    thread.submit(1, Batch);
    thread.wait(60);
    thread.submit(2, Interactive);
    assert_eq!(thread.next(), Action::Preempt(0));
    thread.scheduler.requeue(0, 5, thread.now);
    assert_eq!(thread.start(0), 2);
    // An end gives the place to whoever waited longest.
    thread.submit(3, Interactive);
    thread.end(2);
    assert_eq!(thread.start(0), 1);
}

#[test]
fn one_without_memory_keeps_its_turn_and_holds_back_those_behind_it() {
    let mut thread = Thread::new(Limits { max_batch: 4, ..LIMITS });
    thread.submit(0, Normal);
    assert_eq!(thread.start(0), 0);
    thread.submit(1, Normal);
    thread.submit(2, Normal);
    assert_eq!(thread.next(), Action::Start(1));
    thread.scheduler.hold(1);
    assert!(matches!(thread.next(), Action::Step(_)));
    thread.submit(3, Interactive);
    assert_eq!(thread.start(0), 3);
    assert!(matches!(thread.next(), Action::Step(_)));
    thread.end(0);
    assert_eq!((thread.start(0), thread.start(0)), (1, 2));
}

#[test]
fn a_worse_one_gives_way_for_memory_too() {
    let mut thread = Thread::new(Limits { max_batch: 4, ..LIMITS });
    thread.submit(0, Batch);
    thread.submit(1, Normal);
    assert_eq!((thread.start(0), thread.start(0)), (1, 0));
    thread.submit(2, Normal);
    assert_eq!(thread.next(), Action::Start(2));
    thread.scheduler.hold(2);
    assert_eq!(thread.next(), Action::Preempt(0));
    thread.scheduler.requeue(0, 5, thread.now);
    assert_eq!(thread.next(), Action::Start(2));
    thread.scheduler.hold(2);
    assert!(matches!(thread.next(), Action::Step(_)));
}

#[test]
fn when_nothing_runs_a_held_one_waits_for_a_model_to_go() {
    let mut thread = Thread::new(LIMITS);
    thread.submit(0, Normal);
    assert_eq!(thread.next(), Action::Start(0));
    thread.scheduler.hold(0);
    assert!(thread.scheduler.is_idle());
    assert_eq!(thread.next(), Action::Idle);
    thread.submit(1, Normal);
    assert_eq!(thread.start(0), 1);
    thread.end(1);
    thread.scheduler.hold(0);
    thread.scheduler.unloaded(&model(9));
    assert_eq!(thread.start(0), 0);
}

#[test]
fn who_is_refused_is_told_how_long_the_queue_takes_to_empty() {
    let mut thread = Thread::new(Limits { max_batch: 1, queue: 100, ..LIMITS });
    for id in 0..61 {
        thread.submit_tokens(id, Normal, 100).unwrap();
    }
    assert_eq!(thread.start(0), 0);
    assert_eq!(thread.scheduler.retry_after(thread.now), Duration::from_secs(10), "a guess");
    for id in 0..20 {
        thread.wait(2);
        thread.end(id);
        thread.start(0);
    }
    let after = thread.scheduler.retry_after(thread.now).as_secs_f64();
    assert!((76.0..84.0).contains(&after), "40 wait, one leaves each 2 s: {after}");
    // When nobody waits the time says nothing.
    for id in 20..61 {
        thread.end(id);
    }
    thread.wait(100_000);
    assert_eq!(thread.scheduler.retry_after(thread.now), Duration::from_secs(1));
    thread.submit(100, Normal);
    thread.start(0);
    thread.submit(101, Normal);
    thread.wait(100_000);
    assert_eq!(thread.scheduler.retry_after(thread.now), Duration::from_secs(600));
}
