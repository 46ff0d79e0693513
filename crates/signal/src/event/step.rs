//! What happens in the steps of the local engine.

use std::time::Duration;

use super::milliseconds;
use crate::{
    metric::{
        Labels, add,
        name::{Counter, Gauge, Histogram, Label},
        observe, set,
    },
    target,
};

/// One forward of a model was computed, and its tokens told.
#[derive(Debug)]
pub struct StepFinished<'a> {
    /// The model.
    pub model: &'a str,
    /// Sequences that got a token.
    pub decoded: u64,
    /// Prompt tokens that were computed beside them.
    pub prefilled: u64,
    /// Describing the forward to MLX.
    pub graph: Duration,
    /// Describing the choice of tokens.
    pub sample: Duration,
    /// Waiting for the tokens.
    pub wait: Duration,
    /// Telling them.
    pub tell: Duration,
}

impl StepFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(
            target: target::SERVER_ENGINE,
            model = self.model, decoded = self.decoded, prefilled = self.prefilled, wait_ms = milliseconds(self.wait),
            "engine step"
        );
        let labels = Labels::none().with_text(Label::Model, self.model);
        observe(Histogram::StepTokens, labels.clone(), (self.decoded + self.prefilled) as f64);
        for (part, time) in [("graph", self.graph), ("sample", self.sample), ("wait", self.wait), ("tell", self.tell)] {
            observe(Histogram::Step, labels.clone().with(Label::Part, part), time.as_secs_f64());
        }
    }
}

/// A token of an answer came after the one before it.
#[derive(Debug)]
pub struct TokenFollowed<'a> {
    /// The model.
    pub model: &'a str,
    /// Time between the two.
    pub gap: Duration,
}

impl TokenFollowed<'_> {
    /// States the fact.
    pub fn emit(self) {
        observe(Histogram::InterToken, Labels::none().with_text(Label::Model, self.model), self.gap.as_secs_f64());
    }
}

/// A request's place was taken for a more urgent one; it waits again.
#[derive(Debug)]
pub struct Preempted<'a> {
    /// The model.
    pub model: &'a str,
    /// Tokens of it that were computed.
    pub computed: u64,
}

impl Preempted<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_ENGINE, model = self.model, computed = self.computed, "preempted by a more urgent request"
        );
        add(Counter::Preemptions, Labels::none().with_text(Label::Model, self.model), 1);
    }
}

/// Requests that the local engine computes.
#[derive(Debug)]
pub struct RunningRequests(pub usize);

impl RunningRequests {
    /// States the fact.
    pub fn emit(self) {
        set(Gauge::RunningRequests, Labels::none(), self.0 as f64);
    }
}

/// A request that the local engine computed is over.
#[derive(Debug)]
pub struct SequenceEnded<'a> {
    /// The model.
    pub model: &'a str,
    /// How: `stop`, `length`, `abort` or `error`.
    pub reason: &'static str,
    /// Prompt tokens.
    pub prompt: u64,
    /// Tokens generated.
    pub generated: u64,
}

impl SequenceEnded<'_> {
    /// States the fact.
    pub fn emit(self) {
        let labels = Labels::none().with_text(Label::Model, self.model);
        add(Counter::EngineSequences, labels.clone().with(Label::Reason, self.reason), 1);
        observe(Histogram::SequencePromptTokens, labels.clone(), self.prompt as f64);
        observe(Histogram::SequenceGeneratedTokens, labels, self.generated as f64);
    }
}
