//! A machine that computes steps in no time, and says how long they would have taken.

use std::{collections::BTreeMap, time::Duration};

use mlx_manager_llm::Priority;
use tokio::time::Instant;

use super::{Action, Chunk, Limits, ModelName, QueueFull, Scheduler, SequenceId, Step};

/// Seconds of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    pub(super) step: f64,
    pub(super) row: f64,
    pub(super) token: f64,
    /// For each prompt token and each token before it.
    pub(super) context: f64,
    /// A step takes up to this share more or less.
    pub(super) noise: f64,
}

impl Machine {
    pub(super) fn usual(&self, rows: usize) -> f64 {
        self.step + self.row * rows as f64
    }

    pub(super) fn chunk(&self, tokens: u64, context: u64) -> f64 {
        let (tokens, context) = (tokens as f64, context as f64);
        tokens * (self.token + self.context * (context + tokens / 2.0))
    }

    fn took(&self, step: &Step) -> f64 {
        let chunks: f64 = step.prefill.iter().map(|chunk| self.chunk(chunk.tokens, chunk.context)).sum();
        self.usual(step.decode.len()) + chunks
    }
}

/// A sequence as the thread sees it.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) model: ModelName,
    pub(super) priority: Priority,
    pub(super) arrived: Instant,
    pub(super) runs: bool,
    /// Prompt tokens to compute, and those in the cache.
    pub(super) left: u64,
    pub(super) computed: u64,
    /// Tokens of the answer yet to come.
    pub(super) answer: u64,
    pub(super) last_token: Option<Instant>,
    pub(super) first_token: Option<Duration>,
    pub(super) preempted: u64,
    /// Since when it waits, and how long it did before it ran.
    pub(super) waits_since: Instant,
    pub(super) waited: Duration,
}

/// A thread with such a machine.
pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) machine: Machine,
    pub(super) now: Instant,
    pub(super) open: BTreeMap<SequenceId, Sequence>,
    pub(super) ended: BTreeMap<SequenceId, Sequence>,
    random: u64,
}

/// A gap between two tokens of a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    pub(super) rows: usize,
    pub(super) seconds: f64,
}

impl World {
    pub(super) fn new(limits: Limits, machine: Machine) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            machine,
            now: Instant::now(),
            open: BTreeMap::new(),
            ended: BTreeMap::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub(super) fn submit(
        &mut self,
        id: SequenceId,
        model: ModelName,
        priority: Priority,
        prompt: u64,
        answer: u64,
    ) -> Result<(), QueueFull> {
        self.scheduler.submit(id, ModelName::clone(&model), priority, prompt, self.now)?;
        let sequence = Sequence {
            model,
            priority,
            arrived: self.now,
            runs: false,
            left: prompt - 1,
            computed: 0,
            answer,
            last_token: None,
            first_token: None,
            preempted: 0,
            waits_since: self.now,
            waited: Duration::ZERO,
        };
        self.open.insert(id, sequence);
        Ok(())
    }

    pub(super) fn start(&mut self, id: SequenceId) {
        let (now, sequence) = (self.now, self.open.get_mut(&id).expect("one that is over was started"));
        assert!(!sequence.runs, "{id} started twice");
        sequence.runs = true;
        sequence.waited += now - sequence.waits_since;
        self.scheduler.started(id, sequence.left, sequence.computed);
    }

    /// What was computed is kept.
    pub(super) fn preempt(&mut self, id: SequenceId) {
        let sequence = self.open.get_mut(&id).expect("one that is over was preempted");
        assert!(sequence.runs, "{id} was preempted in the queue");
        sequence.runs = false;
        sequence.preempted += 1;
        sequence.waits_since = self.now;
        self.scheduler.requeue(id, sequence.computed + sequence.left + 1, self.now);
    }

    pub(super) fn end(&mut self, id: SequenceId) {
        self.scheduler.remove(id, self.now);
        self.ended.extend(self.open.remove(&id).map(|sequence| (id, sequence)));
    }

    /// Computes a step, and gives the gaps of those who got a token.
    pub(super) fn compute(&mut self, step: &Step) -> Vec<Gap> {
        assert!(!step.decode.is_empty() || !step.prefill.is_empty(), "nothing to do");
        // Xorshift: as even as such noise needs to be, and the same each time.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let noise = self.machine.noise * ((self.random >> 11) as f64 / (1_u64 << 52) as f64 - 1.0);
        let took = Duration::from_secs_f64(self.machine.took(step) * (1.0 + noise));
        self.now += took;
        for Chunk { id, tokens, context } in &step.prefill {
            let sequence = self.open.get_mut(id).expect("one that is over got a chunk");
            assert!(sequence.runs && sequence.model == step.model && *tokens > 0 && *context == sequence.computed);
            sequence.left = sequence.left.checked_sub(*tokens).expect("more than the prompt was computed");
            sequence.computed += tokens;
        }
        self.scheduler.stepped(step, took, self.now);
        let mut gaps = Vec::new();
        for id in &step.decode {
            let (rows, now) = (step.decode.len(), self.now);
            let sequence = self.open.get_mut(id).expect("one that is over got a token");
            assert!(sequence.runs && sequence.model == step.model);
            assert_eq!(sequence.left, 0, "a token before the prompt was computed");
            sequence.first_token.get_or_insert(now - sequence.arrived);
            if let Some(last) = sequence.last_token.replace(now) {
                gaps.push(Gap { rows, seconds: (now - last).as_secs_f64() });
            }
            sequence.answer -= 1;
            if sequence.answer == 0 {
                self.end(*id);
            }
        }
        gaps
    }

    /// Does what is to be done, where no model loads.
    pub(super) fn act(&mut self) -> Vec<Gap> {
        match self.scheduler.next(self.now) {
            Action::Start(id) => self.start(id),
            Action::Preempt(id) => self.preempt(id),
            Action::Step(step) => return self.compute(&step),
            action => panic!("{action:?}"),
        }
        Vec::new()
    }
}
