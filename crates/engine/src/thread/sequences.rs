//! The sequences that have not ended: who waits, who runs, and what is told of each on its way.

use std::{collections::HashMap, ops::Range, time::Duration};

use mlx_manager_llm::{Priority, Usage};
use mlx_manager_signal::{
    event::{DecodeFinished, PrefillFinished, QueueDepth, QueueLeft, RunningRequests, SequenceEnded, TokenFollowed},
    span::{self, BatchSize, DecodePace},
};
use tokio::time::Instant;
use tracing::Span;

use super::{
    EngineSettings,
    command::{GenerationEvent, Outbox, Submission},
    scheduler::{Action, Limits, QueueFull, Scheduler, SequenceId, Step},
    sequence::{Sequence, SequencePlan},
};
use crate::{error::EngineError, model::ModelName};

/// The queue, and those that left it.
pub(super) struct Sequences {
    scheduler: Scheduler,
    open: HashMap<SequenceId, Open>,
    next_id: SequenceId,
    told_waiting: usize,
    told_running: usize,
}

/// A sequence that has not ended.
pub(super) struct Open {
    pub(super) model: ModelName,
    pub(super) events: Outbox,
    /// The inference span.
    span: Span,
    priority: Priority,
    /// Tokens that were read from disk for it, until it starts.
    pub(super) recalled: Range<usize>,
    answer: Option<Answer>,
    phase: Phase,
}

enum Phase {
    Waiting(Box<Waiting>),
    Running(Box<Running>),
    /// Between two phases.
    Moving,
}

/// A sequence in the queue, or just out of it.
pub(super) struct Waiting {
    pub(super) sequence: Sequence,
    pub(super) place: QueuePlace,
}

/// Its time in the queue.
pub(super) struct QueuePlace {
    since: Instant,
    span: Span,
}

/// A sequence that is computed.
pub(super) struct Running {
    pub(super) sequence: Sequence,
    started: Instant,
    /// The span of prefill until the first token, that of decode after it.
    span: Span,
    is_prefilling: bool,
}

/// An answer that has begun, which it is whether its sequence runs or waits again.
struct Answer {
    first_token: Instant,
    last_token: Instant,
    pace: DecodePace,
}

/// A sequence that is over but for its last event.
pub(super) struct Ended {
    pub(super) id: SequenceId,
    pub(super) model: ModelName,
    pub(super) events: Outbox,
    /// `None` when it never ran.
    pub(super) sequence: Option<Sequence>,
}

impl Sequences {
    pub(super) fn new(settings: &EngineSettings) -> Self {
        let limits = Limits {
            max_batch: settings.max_batch,
            queue: settings.queue_limit,
            queue_tokens: settings.queue_tokens,
            prefill_chunk: settings.prefill_chunk,
        };
        Self { scheduler: Scheduler::new(limits), open: HashMap::new(), next_id: 0, told_waiting: 0, told_running: 0 }
    }

    /// Whether there is nothing to do, no model to load either.
    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// What to do next. The caller does it before it asks again.
    pub(super) fn next(&mut self) -> Action {
        self.scheduler.next(Instant::now())
    }

    /// Takes a sequence in, or refuses it. `recalled` are the tokens that were read from disk for it.
    pub(super) fn submit(&mut self, model: ModelName, submission: Submission, recalled: Range<usize>) {
        let Submission { request, mut events, submitted, queue_span } = submission;
        let id = self.next_id;
        self.next_id += 1;
        let (now, tokens) = (Instant::now(), request.prompt.len() as u64);
        if let Err(full) = self.scheduler.submit(id, ModelName::clone(&model), request.priority, tokens, now) {
            let QueueFull { waiting, waiting_tokens, bound } = full;
            let retry_after = self.scheduler.retry_after(now);
            let error = EngineError::Overloaded { waiting, waiting_tokens, bound, retry_after };
            return events.tell(GenerationEvent::Failed(error));
        }
        events.tell(GenerationEvent::Accepted);
        let plan = SequencePlan {
            prompt: request.prompt,
            sampling: request.sampling,
            max_tokens: request.max_tokens,
            open_ended: request.open_ended,
            stop_ids: request.stop_ids,
        };
        let place = QueuePlace { since: submitted, span: queue_span };
        let phase = Phase::Waiting(Box::new(Waiting { sequence: Sequence::new(plan), place }));
        let (span, priority) = (request.span, request.priority);
        self.open.insert(id, Open { model, events, span, priority, recalled, answer: None, phase });
    }

    /// A sequence that has not ended.
    pub(super) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Open> {
        self.open.get_mut(&id)
    }

    /// A sequence that is computed.
    pub(super) fn running(&mut self, id: SequenceId) -> Option<&mut Running> {
        self.open.get_mut(&id).and_then(Open::running)
    }

    /// The spans of the chunks of prompts that a step computes, to be dropped when it is.
    pub(super) fn chunk_spans(&mut self, step: &Step) -> Vec<Span> {
        let prefill_tokens = step.prefill.iter().map(|chunk| chunk.tokens).sum();
        let batch = BatchSize { decoding: step.decode.len() as u64, prefill_tokens };
        let spans = step.prefill.iter().filter_map(|chunk| {
            let running = self.running(chunk.id)?;
            Some(span::prefill_chunk(&running.span, chunk.tokens, chunk.context, &batch))
        });
        spans.collect()
    }

    /// Gives what these sequences keep on the host, in any order, for a step of all of them.
    pub(super) fn several(&mut self, ids: &[SequenceId]) -> Vec<(SequenceId, &mut Sequence)> {
        let open = self.open.iter_mut().filter(|(id, _)| ids.contains(id));
        open.filter_map(|(id, open)| open.running().map(|running| (*id, &mut running.sequence))).collect()
    }

    /// A sequence has its place: so many tokens are to be computed before it decodes, so many are already.
    pub(super) fn started(&mut self, id: SequenceId, to_prefill: usize, computed: usize) {
        self.scheduler.started(id, to_prefill as u64, computed as u64);
    }

    /// There is no memory for a sequence that was to start: it waits on.
    pub(super) fn hold(&mut self, id: SequenceId) {
        self.scheduler.hold(id);
    }

    /// The models of the sequences that are computed, and how long each will be.
    pub(super) fn expected_lengths(&self) -> impl Iterator<Item = (&ModelName, u64)> {
        self.open.values().filter_map(|open| match &open.phase {
            Phase::Running(running) => Some((&open.model, running.sequence.expected_length())),
            Phase::Waiting(_) | Phase::Moving => None,
        })
    }

    /// A step was computed.
    pub(super) fn stepped(&mut self, step: &Step, took: Duration) {
        self.scheduler.stepped(step, took, Instant::now());
    }

    /// A sequence goes back to the queue, to be taken up where it was.
    pub(super) fn requeue(&mut self, id: SequenceId) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let Phase::Running(running) = std::mem::replace(&mut open.phase, Phase::Moving) else { return };
        let now = Instant::now();
        self.scheduler.requeue(id, running.sequence.length() as u64, now);
        let place = QueuePlace { since: now, span: span::queue(&open.span, open.priority) };
        open.phase = Phase::Waiting(Box::new(Waiting { sequence: running.sequence, place }));
    }

    /// Takes a sequence out, stating the facts of its decoding, however far that went.
    pub(super) fn remove(&mut self, id: SequenceId, reason: &'static str) -> Option<Ended> {
        self.scheduler.remove(id, Instant::now());
        let Open { model, events, span, answer, phase, .. } = self.open.remove(&id)?;
        // One that gave way ran, though what was computed of it isn't here.
        let (sequence, running_span) = match phase {
            Phase::Running(running) => (running.sequence, Some(running.span)),
            Phase::Waiting(waiting) if waiting.sequence.has_run() => (waiting.sequence, None),
            Phase::Waiting(_) | Phase::Moving => return Some(Ended { id, model, events, sequence: None }),
        };
        let (prompt, generated) = (sequence.prompt_tokens(), sequence.produced());
        if let Some(Answer { first_token, pace, .. }) = answer {
            let pace = DecodePace { duration: first_token.elapsed(), ..pace };
            span.in_scope(|| DecodeFinished { model: &model, tokens: generated, duration: pace.duration }.emit());
            if let Some(decode_span) = &running_span {
                let usage = Usage { input: Some(prompt), output: Some(generated), ..Usage::default() };
                span::decode_finished(decode_span, &usage, &pace);
            }
        }
        SequenceEnded { model: &model, reason, prompt, generated }.emit();
        let sequence = running_span.map(|_| sequence);
        Some(Ended { id, model, events, sequence })
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

    /// States how many wait and how many run, where that has changed.
    pub(super) fn tell_depth(&mut self) {
        let waiting = self.scheduler.waiting();
        if waiting != self.told_waiting {
            self.told_waiting = waiting;
            QueueDepth(waiting).emit();
        }
        let running = self.scheduler.running();
        if running != self.told_running {
            self.told_running = running;
            RunningRequests(running).emit();
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
            Phase::Waiting(waiting) => Some(*waiting),
            Phase::Running(_) | Phase::Moving => None,
        }
    }

    /// It, if it waits.
    pub(super) fn waiting(&self) -> Option<&Sequence> {
        match &self.phase {
            Phase::Waiting(waiting) => Some(&waiting.sequence),
            Phase::Running(_) | Phase::Moving => None,
        }
    }

    /// Ends its time in the queue, and gives how long that was.
    pub(super) fn leave_queue(&self, place: QueuePlace) -> Duration {
        drop(place.span);
        let wait = place.since.elapsed();
        self.span.in_scope(|| QueueLeft { wait, priority: self.priority }.emit());
        wait
    }

    /// The inference span.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Begins its prefill.
    pub(super) fn run(&mut self, sequence: Sequence) {
        let (tokens, cached) = (sequence.prompt_tokens(), sequence.cached_tokens());
        let span = span::prefill(&self.span, tokens, cached);
        let running = Running { sequence, started: Instant::now(), span, is_prefilling: true };
        self.phase = Phase::Running(Box::new(running));
    }

    /// It, if it is computed.
    pub(super) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.phase {
            Phase::Running(running) => Some(running),
            Phase::Waiting(_) | Phase::Moving => None,
        }
    }

    /// A token is there, from a step that gave so many sequences one. With the first one prefill becomes decode, which is true
    /// then.
    pub(super) fn token_is_there(&mut self, decoded: u64) -> bool {
        let Phase::Running(running) = &mut self.phase else { return false };
        let now = Instant::now();
        if std::mem::take(&mut running.is_prefilling) {
            running.span = span::decode(&self.span);
        }
        let is_first = self.answer.is_none();
        if is_first {
            let (tokens, cached) = (running.sequence.prompt_tokens(), running.sequence.cached_tokens());
            let duration = running.started.elapsed();
            self.span.in_scope(|| PrefillFinished { model: &self.model, tokens, cached, duration }.emit());
        }
        let begun = Answer { first_token: now, last_token: now, pace: DecodePace::default() };
        let answer = self.answer.get_or_insert(begun);
        if !is_first {
            let gap = now - answer.last_token;
            TokenFollowed { model: &self.model, gap }.emit();
            answer.pace.longest_gap = answer.pace.longest_gap.max(gap);
            answer.last_token = now;
        }
        answer.pace.steps += 1;
        answer.pace.decoded += decoded;
        answer.pace.largest_batch = answer.pace.largest_batch.max(decoded);
        is_first
    }
}
