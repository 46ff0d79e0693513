//! The sequences that have not ended: who waits, who runs, and what is told of each on its way.

use std::{collections::HashMap, rc::Rc, time::Duration};

use mlx_manager_llm::Usage;
use mlx_manager_signal::{
    event::{DecodeFinished, PrefillFinished, PrefixLookedUp, QueueDepth, QueueLeft},
    span,
};
use tokio::time::Instant;
use tracing::Span;

use super::{
    EngineSettings,
    command::{GenerationEvent, Outbox, Submission},
    scheduler::{Action, Limits, QueueFull, Scheduler, SequenceId},
    sequence::{Sequence, SequencePlan},
};
use crate::{
    error::EngineError,
    model::{Model, ModelName},
};

/// The queue, and those that left it.
pub(super) struct Sequences {
    scheduler: Scheduler,
    open: HashMap<SequenceId, Open>,
    next_id: SequenceId,
    told_waiting: usize,
}

/// A sequence that has not ended.
pub(super) struct Open {
    pub(super) model: ModelName,
    pub(super) events: Outbox,
    /// The inference span.
    span: Span,
    phase: Phase,
}

enum Phase {
    Waiting(Waiting),
    Running(Box<Running>),
    /// Between two phases.
    Moving,
}

/// A sequence in the queue, or just out of it.
pub(super) struct Waiting {
    pub(super) plan: SequencePlan,
    pub(super) place: QueuePlace,
}

/// Its time in the queue.
pub(super) struct QueuePlace {
    since: Instant,
    span: Span,
}

/// A sequence that is computed.
pub(super) struct Running {
    pub(super) model: Rc<Model>,
    pub(super) sequence: Sequence,
    started: Instant,
    /// The span of prefill until the first token, that of decode after it.
    span: Span,
    first_token: Option<Instant>,
}

/// A sequence that is over but for its last event.
pub(super) struct Ended {
    pub(super) model: ModelName,
    pub(super) events: Outbox,
    /// `None` when it never ran.
    pub(super) sequence: Option<Sequence>,
}

impl Sequences {
    pub(super) fn new(settings: &EngineSettings) -> Self {
        let limits = Limits { max_batch: settings.max_batch, queue: settings.queue_limit };
        Self { scheduler: Scheduler::new(limits), open: HashMap::new(), next_id: 0, told_waiting: 0 }
    }

    /// Whether there is nothing to do, no model to load either.
    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// What to do next. The caller does it before it asks again.
    pub(super) fn next(&mut self) -> Action {
        self.scheduler.next()
    }

    /// Takes a sequence in, or refuses it.
    pub(super) fn submit(&mut self, model: ModelName, submission: Submission) {
        let Submission { request, mut events, submitted, queue_span } = submission;
        let id = self.next_id;
        self.next_id += 1;
        if let Err(QueueFull) = self.scheduler.submit(id, ModelName::clone(&model)) {
            let error = EngineError::Overloaded { waiting: self.scheduler.waiting() };
            return events.tell(GenerationEvent::Failed(error));
        }
        events.tell(GenerationEvent::Accepted);
        let plan = SequencePlan {
            prompt: request.prompt,
            sampling: request.sampling,
            max_tokens: request.max_tokens,
            stop_ids: request.stop_ids,
        };
        let phase = Phase::Waiting(Waiting { plan, place: QueuePlace { since: submitted, span: queue_span } });
        self.open.insert(id, Open { model, events, span: request.span, phase });
    }

    /// A sequence that has not ended.
    pub(super) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Open> {
        self.open.get_mut(&id)
    }

    /// A sequence that is computed.
    pub(super) fn running(&mut self, id: SequenceId) -> Option<&mut Running> {
        self.open.get_mut(&id).and_then(Open::running)
    }

    /// All prompt tokens but the last of a sequence are computed.
    pub(super) fn prefilled(&mut self, id: SequenceId) {
        self.scheduler.prefilled(id);
    }

    /// Takes a sequence out, stating the facts of its decoding, however far that went.
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Ended> {
        self.scheduler.remove(id);
        let Open { model, events, span, phase } = self.open.remove(&id)?;
        let Phase::Running(running) = phase else { return Some(Ended { model, events, sequence: None }) };
        let Running { sequence, span: decode_span, first_token, .. } = *running;
        if let Some(first_token) = first_token {
            let (tokens, duration) = (sequence.produced(), first_token.elapsed());
            span.in_scope(|| DecodeFinished { model: &model, tokens, duration }.emit());
            let usage = Usage { input: Some(sequence.prompt_tokens()), output: Some(tokens), ..Usage::default() };
            span::decode_finished(&decode_span, &usage, duration);
        }
        Some(Ended { model, events, sequence: Some(sequence) })
    }

    /// The sequences whose clients went away.
    pub(super) fn gone(&self) -> Vec<SequenceId> {
        self.open.iter().filter(|(_, open)| open.events.is_closed()).map(|(id, _)| *id).collect()
    }

    /// The sequences of a model.
    pub(super) fn of_model(&self, model: &ModelName) -> Vec<SequenceId> {
        self.scheduler.of_model(model)
    }

    /// A model begins to load: [`Self::next`] will ask for its steps.
    pub(super) fn model_loads(&mut self, model: ModelName) {
        self.scheduler.load(model);
    }

    /// A model is ready: its sequences may start.
    pub(super) fn model_is_ready(&mut self, model: &ModelName) {
        self.scheduler.loaded(model);
    }

    /// A model could not be loaded, or was unloaded.
    pub(super) fn model_is_gone(&mut self, model: &ModelName) {
        self.scheduler.unloaded(model);
    }

    /// Bytes of keys and values that a model's sequences hold.
    pub(super) fn cache_bytes(&self, model: &ModelName) -> u64 {
        let sequences = self.open.values().filter(|open| open.model == *model);
        let bytes = sequences.map(|open| match &open.phase {
            Phase::Running(running) => running.sequence.cache_bytes(),
            Phase::Waiting(_) | Phase::Moving => 0,
        });
        bytes.sum()
    }

    /// States how many wait, where that has changed.
    pub(super) fn tell_depth(&mut self) {
        let waiting = self.scheduler.waiting();
        if waiting != self.told_waiting {
            self.told_waiting = waiting;
            QueueDepth(waiting).emit();
        }
    }

    /// Ends all of them with an error.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        for (_, mut open) in self.open.drain() {
            open.events.tell(GenerationEvent::Failed(error.clone()));
        }
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<SequenceId> {
        self.open.keys().copied().collect()
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.scheduler.waiting(), self.scheduler.running())
    }
}

impl Open {
    /// Takes what waits out of its phase; `None` when it doesn't wait.
    pub(super) fn take_waiting(&mut self) -> Option<Waiting> {
        match std::mem::replace(&mut self.phase, Phase::Moving) {
            Phase::Waiting(waiting) => Some(waiting),
            Phase::Running(_) | Phase::Moving => None,
        }
    }

    /// Ends its time in the queue, and gives how long that was.
    pub(super) fn leave_queue(&self, place: QueuePlace) -> Duration {
        drop(place.span);
        let wait = place.since.elapsed();
        self.span.in_scope(|| QueueLeft { wait }.emit());
        wait
    }

    /// Begins its prefill. `looked_up` says whether a cache was asked for the beginning of its prompt.
    pub(super) fn run(&mut self, model: Rc<Model>, sequence: Sequence, looked_up: bool) {
        let (tokens, cached) = (sequence.prompt_tokens(), sequence.cached_tokens());
        if looked_up {
            self.span.in_scope(|| PrefixLookedUp { model: &self.model, tokens, cached }.emit());
        }
        let span = span::prefill(&self.span, tokens, cached);
        let running = Running { model, sequence, started: Instant::now(), span, first_token: None };
        self.phase = Phase::Running(Box::new(running));
    }

    /// It, if it is computed.
    pub(super) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.phase {
            Phase::Running(running) => Some(running),
            Phase::Waiting(_) | Phase::Moving => None,
        }
    }

    /// A token is there. With the first one prefill becomes decode, which is true then.
    pub(super) fn token_is_there(&mut self) -> bool {
        let Phase::Running(running) = &mut self.phase else { return false };
        if running.first_token.is_some() {
            return false;
        }
        let (tokens, cached) = (running.sequence.prompt_tokens(), running.sequence.cached_tokens());
        let duration = running.started.elapsed();
        self.span.in_scope(|| PrefillFinished { model: &self.model, tokens, cached, duration }.emit());
        running.first_token = Some(Instant::now());
        running.span = span::decode(&self.span);
        true
    }
}
