//! What the MLX thread does in its turns: the models and sequences it holds, one command or one step at a time.

use std::{collections::HashMap, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use mlx_manager_llm::{FinishReason, Usage};
use mlx_manager_signal::{
    event::{
        CacheNotCleared, DecodeFinished, EngineMemory, ModelLoadError, ModelLoaded, ModelUnloaded, PrefillFinished,
        PrefixLookedUp, PromptNotKept, QueueDepth, QueueLeft,
    },
    span,
};
use tokio::time::Instant;
use tracing::Span;

#[cfg(test)]
use super::worker::EngineStats;
use super::{
    cache::PromptCache,
    error::EngineError,
    mlx::{self, Exception, Precision},
    model::{Loader, Model, ModelInfo, Progress},
    scheduler::{Action, Limits, ModelName, QueueFull, Scheduler, SequenceId},
    sequence::{Sequence, SequencePlan, Step},
    worker::{EngineSettings, GenerationEvent, LoadReply, Outbox, Submission, Work},
};

/// Decode steps between two clearings of MLX's cache of freed buffers, as the reference implementation has it.
const STEPS_PER_CLEARING: u32 = 256;

/// Everything that the thread holds.
pub(super) struct Core {
    settings: EngineSettings,
    scheduler: Scheduler,
    models: HashMap<ModelName, Slot>,
    sequences: HashMap<SequenceId, Open>,
    prompts: PromptCache,
    next_id: SequenceId,
    decode_steps: u32,
    memory_limited: bool,
    told_waiting: usize,
}

/// A model by name.
struct Slot {
    folder: PathBuf,
    state: SlotState,
}

enum SlotState {
    /// It was loaded once, by a thread that is gone.
    Known,
    Loading {
        loader: Loader,
        replies: Vec<LoadReply>,
    },
    Ready {
        model: Rc<Model>,
        info: Arc<ModelInfo>,
    },
}

/// A sequence that has not ended.
struct Open {
    model: ModelName,
    events: Outbox,
    span: Span,
    phase: Phase,
}

enum Phase {
    Waiting {
        plan: SequencePlan,
        since: Instant,
        span: Span,
    },
    Running(Box<Running>),
    /// Between two phases.
    Moving,
}

struct Running {
    model: Rc<Model>,
    sequence: Sequence,
    started: Instant,
    /// The span of prefill until the first token, that of decode after it.
    span: Span,
    first_token: Option<Instant>,
}

impl Core {
    pub(super) fn new(settings: EngineSettings, limits: Limits, folders: HashMap<ModelName, PathBuf>) -> Self {
        let models =
            folders.into_iter().map(|(name, folder)| (name, Slot { folder, state: SlotState::Known })).collect();
        let prompts = PromptCache::new(settings.prompt_cache);
        Self {
            settings,
            prompts,
            scheduler: Scheduler::new(limits),
            models,
            sequences: HashMap::new(),
            next_id: 0,
            decode_steps: 0,
            memory_limited: false,
            told_waiting: 0,
        }
    }

    /// Whether there is nothing to do but wait for a command.
    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// The folders of all models, for a thread that takes over.
    pub(super) fn folders(&self) -> HashMap<ModelName, PathBuf> {
        self.models.iter().map(|(name, slot)| (Arc::clone(name), slot.folder.clone())).collect()
    }

    /// Ends everything with an error.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        for (_, mut open) in self.sequences.drain() {
            open.events.tell(GenerationEvent::Failed(error.clone()));
        }
        for (model, slot) in &mut self.models {
            match &mut slot.state {
                SlotState::Known => {}
                SlotState::Loading { replies, .. } => answer_all(replies, &Err(error.clone())),
                SlotState::Ready { .. } => EngineMemory { model, kv_cache_bytes: 0 }.emit(),
            }
        }
        QueueDepth(0).emit();
    }

    /// Does what it is told, which never takes long: what does is begun here and goes on in [`Self::step`].
    pub(super) fn obey(&mut self, work: Work) {
        match work {
            Work::Load { name, folder, reply } => self.load(&name, folder, reply),
            Work::Unload { name, reason, reply } => drop(reply.send(self.unload(&name, reason))),
            Work::Generate(submission) => self.submit(*submission),
            #[cfg(test)]
            Work::Stats { reply } => drop(reply.send(self.stats())),
            #[cfg(test)]
            Work::Panic => panic!("as a test asked"),
            #[cfg(test)]
            Work::Fail => {
                let ids: Vec<_> = self.sequences.keys().copied().collect();
                let error = Exception::custom("as a test asked");
                ids.into_iter().for_each(|id| self.end(id, GenerationEvent::Failed(failed(&error))));
            }
        }
        self.tell_depth();
    }

    /// Does one step of work.
    pub(super) fn step(&mut self) {
        self.forget_the_gone();
        match self.scheduler.next() {
            Action::Start(id) => self.start(id),
            Action::Prefill(id) => self.prefill(id),
            Action::Decode(ids) => self.decode(&ids),
            Action::Load(name) => self.step_load(&name),
            Action::Idle => {}
        }
        self.give_back();
        self.tell_depth();
    }

    fn load(&mut self, name: &ModelName, folder: PathBuf, reply: LoadReply) {
        match self.models.get_mut(name).map(|slot| &mut slot.state) {
            Some(SlotState::Ready { info, .. }) => drop(reply.send(Ok(Arc::clone(info)))),
            Some(SlotState::Loading { replies, .. }) => replies.push(reply),
            Some(SlotState::Known) | None => self.begin_load(name, folder, vec![reply]),
        }
    }

    fn begin_load(&mut self, name: &ModelName, folder: PathBuf, mut replies: Vec<LoadReply>) {
        match self.precision() {
            Ok(precision) => {
                let loader = Loader::new(name.to_string(), folder.clone(), precision);
                let slot = Slot { folder, state: SlotState::Loading { loader, replies } };
                self.models.insert(Arc::clone(name), slot);
                self.scheduler.load(Arc::clone(name));
            }
            Err(error) => answer_all(&mut replies, &Err(failed(&error))),
        }
    }

    fn precision(&mut self) -> Result<Precision, Exception> {
        if let Some(bytes) = self.settings.memory_limit
            && !self.memory_limited
        {
            mlx::limit_memory(bytes)?;
            self.memory_limited = true;
        }
        self.settings.precision.map_or_else(Precision::for_device, Ok)
    }

    fn step_load(&mut self, name: &ModelName) {
        let Some(slot) = self.models.get_mut(name) else { return self.scheduler.unloaded(name) };
        let SlotState::Loading { loader, replies } = &mut slot.state else { return self.scheduler.unloaded(name) };
        match loader.step() {
            Ok(Progress::More) => {}
            Ok(Progress::Done(model)) => {
                let info = Arc::new(model.info.clone());
                ModelLoaded { model: name, bytes: info.bytes, duration: info.load_duration }.emit();
                answer_all(replies, &Ok(Arc::clone(&info)));
                slot.state = SlotState::Ready { model: Rc::new(*model), info };
                self.scheduler.loaded(name);
            }
            Err(source) => {
                ModelLoadError { model: name, folder: Some(&slot.folder), error: &source }.emit();
                let error = EngineError::Load { model: name.to_string(), source: Arc::new(source) };
                answer_all(replies, &Err(error.clone()));
                self.models.remove(name);
                for id in self.scheduler.of_model(name) {
                    self.end(id, GenerationEvent::Failed(error.clone()));
                }
                self.scheduler.unloaded(name);
            }
        }
    }

    fn unload(&mut self, name: &ModelName, reason: &'static str) -> Result<(), EngineError> {
        let loading = matches!(self.models.get(name).map(|slot| &slot.state), Some(SlotState::Loading { .. }));
        if loading || !self.scheduler.of_model(name).is_empty() {
            return Err(EngineError::InUse { model: name.to_string() });
        }
        let Some(slot) = self.models.remove(name) else {
            return Err(EngineError::NotLoaded { model: name.to_string() });
        };
        self.scheduler.unloaded(name);
        drop(slot);
        self.prompts.forget(name);
        ModelUnloaded { model: name, reason }.emit();
        mlx::clear_cache().map_err(|error| failed(&error))
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { request, mut events, submitted, queue_span } = submission;
        let mut refuse = |error| events.tell(GenerationEvent::Failed(error));
        if request.prompt.is_empty() || request.max_tokens == 0 {
            return refuse(EngineError::Request("a request needs a prompt, and room for an answer"));
        }
        let Some((name, slot)) = self.models.get_key_value(request.model.as_str()) else {
            return refuse(EngineError::NotLoaded { model: request.model });
        };
        let name = Arc::clone(name);
        if matches!(slot.state, SlotState::Known) {
            let folder = slot.folder.clone();
            self.begin_load(&name, folder, Vec::new());
        }
        let id = self.next_id;
        self.next_id += 1;
        if let Err(QueueFull) = self.scheduler.submit(id, Arc::clone(&name)) {
            return refuse(EngineError::Overloaded { waiting: self.scheduler.waiting() });
        }
        let plan = SequencePlan {
            prompt: request.prompt,
            sampling: request.sampling,
            max_tokens: request.max_tokens,
            stop_ids: request.stop_ids,
        };
        let phase = Phase::Waiting { plan, since: submitted, span: queue_span };
        self.sequences.insert(id, Open { model: name, events, span: request.span, phase });
    }

    fn start(&mut self, id: SequenceId) {
        let Some(open) = self.sequences.get_mut(&id) else { return self.scheduler.remove(id) };
        let Phase::Waiting { plan, since, span: queue_span } = std::mem::replace(&mut open.phase, Phase::Moving) else {
            return self.scheduler.remove(id);
        };
        let Some(SlotState::Ready { model, .. }) = self.models.get(&open.model).map(|slot| &slot.state) else {
            let error = EngineError::NotLoaded { model: open.model.to_string() };
            return self.end(id, GenerationEvent::Failed(error));
        };
        drop(queue_span);
        let queued = since.elapsed();
        open.span.in_scope(|| QueueLeft { wait: queued }.emit());
        // The last token is computed in any case: what follows it is the answer.
        let before_last = plan.prompt.split_last().map_or(&[][..], |(_, before)| before);
        let cached = self.prompts.longest(&open.model, before_last);
        let sequence = cached.and_then(|cached| Sequence::new(model, plan, cached));
        let cached = sequence.as_ref().map_or(0, Sequence::cached_tokens);
        open.events.tell(GenerationEvent::Started { queued, cached });
        match sequence {
            Ok(sequence) => {
                let tokens = sequence.prompt_tokens();
                if self.prompts.is_on() {
                    open.span.in_scope(|| PrefixLookedUp { model: &open.model, tokens, cached }.emit());
                }
                let span = span::prefill(&open.span, tokens, cached);
                if sequence.is_prefilled() {
                    self.scheduler.prefilled(id);
                }
                let model = Rc::clone(model);
                let running = Running { model, sequence, started: Instant::now(), span, first_token: None };
                open.phase = Phase::Running(Box::new(running));
            }
            Err(error) => self.end(id, GenerationEvent::Failed(failed(&error))),
        }
    }

    fn prefill(&mut self, id: SequenceId) {
        let chunk = self.settings.prefill_chunk.max(1);
        let Some(running) = self.running(id) else { return self.scheduler.remove(id) };
        match running.sequence.prefill(&running.model, chunk) {
            Ok(()) if running.sequence.is_prefilled() => self.scheduler.prefilled(id),
            Ok(()) => {}
            Err(error) => self.end(id, GenerationEvent::Failed(failed(&error))),
        }
    }

    /// One token of each sequence: all are begun before the first is waited for.
    fn decode(&mut self, ids: &[SequenceId]) {
        for id in ids {
            let Some(running) = self.running(*id) else {
                self.scheduler.remove(*id);
                continue;
            };
            if let Err(error) = running.sequence.launch(&running.model) {
                self.end(*id, GenerationEvent::Failed(failed(&error)));
            }
        }
        for id in ids {
            self.collect(*id);
        }
        self.decode_steps += 1;
        if self.decode_steps.is_multiple_of(STEPS_PER_CLEARING)
            && let Err(error) = mlx::clear_cache()
        {
            CacheNotCleared { error: &error }.emit();
        }
    }

    fn collect(&mut self, id: SequenceId) {
        let Some(open) = self.sequences.get_mut(&id) else { return };
        let Phase::Running(running) = &mut open.phase else { return };
        let step = match running.sequence.collect() {
            Ok(step) => step,
            Err(error) => return self.end(id, GenerationEvent::Failed(failed(&error))),
        };
        let mut new_memory = false;
        if running.first_token.is_none() {
            let (tokens, cached) = (running.sequence.prompt_tokens(), running.sequence.cached_tokens());
            let duration = running.started.elapsed();
            open.span.in_scope(|| PrefillFinished { model: &open.model, tokens, cached, duration }.emit());
            running.first_token = Some(Instant::now());
            running.span = span::decode(&open.span);
            new_memory = true;
        }
        if let Step::Token(token) | Step::LastToken(token) = step {
            open.events.tell(GenerationEvent::Token(token));
        }
        let reason = match step {
            Step::Token(_) if new_memory => return self.tell_memory(),
            Step::Token(_) => return,
            Step::LastToken(_) => FinishReason::Length,
            Step::Stop => FinishReason::Stop,
        };
        let finished = GenerationEvent::Finished {
            reason,
            tokens: running.sequence.produced(),
            #[cfg(test)]
            stop_id: running.sequence.last_token().filter(|_| step == Step::Stop),
        };
        self.end(id, finished);
    }

    /// Ends a sequence with its last event.
    fn end(&mut self, id: SequenceId, last: GenerationEvent) {
        let failed = matches!(last, GenerationEvent::Failed(_));
        let Some((Open { model, mut events, .. }, sequence)) = self.forget(id) else { return };
        events.tell(last);
        if let Some(sequence) = sequence {
            self.keep(&model, sequence, failed);
        }
    }

    /// Takes a sequence out, stating the facts of its decoding, however far that went.
    fn forget(&mut self, id: SequenceId) -> Option<(Open, Option<Sequence>)> {
        self.scheduler.remove(id);
        let mut open = self.sequences.remove(&id)?;
        let Phase::Running(running) = std::mem::replace(&mut open.phase, Phase::Moving) else {
            return Some((open, None));
        };
        let Running { sequence, span, first_token, .. } = *running;
        let duration = first_token.map_or(Duration::ZERO, |first| first.elapsed());
        if first_token.is_some() {
            let tokens = sequence.produced();
            let finished = DecodeFinished { model: &open.model, tokens, duration };
            open.span.in_scope(|| finished.emit());
            let usage = Usage { input: Some(sequence.prompt_tokens()), output: Some(tokens), ..Usage::default() };
            span::decode_finished(&span, &usage, duration);
        }
        Some((open, Some(sequence)))
    }

    /// Keeps what was computed for a sequence that is over, for prompts that begin alike.
    fn keep(&mut self, model: &ModelName, sequence: Sequence, failed: bool) {
        let kept = if failed {
            // What was computed before may be what it failed by.
            self.prompts.forget(model);
            Ok(())
        } else {
            let (tokens, layers) = sequence.into_computed();
            self.prompts.keep(model, tokens, &layers)
        };
        if let Err(error) = kept {
            PromptNotKept { error: &error }.emit();
            self.prompts.forget(model);
        }
        self.tell_memory();
    }

    /// Near its limit MLX lets running work wait for memory. What is only kept goes before that.
    fn give_back(&mut self) {
        let Some(limit) = self.settings.memory_limit else { return };
        let is_near = || mlx::active_memory().is_ok_and(|active| active > limit / 10 * 9);
        let mut dropped = false;
        while self.prompts.bytes() > 0 && is_near() && self.prompts.drop_oldest() {
            dropped = true;
        }
        if dropped {
            self.tell_memory();
        }
    }

    /// Drops the sequences whose clients went away.
    fn forget_the_gone(&mut self) {
        let gone: Vec<_> =
            self.sequences.iter().filter(|(_, open)| open.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some((Open { model, .. }, Some(sequence))) = self.forget(id) {
                self.keep(&model, sequence, false);
            }
        }
    }

    fn running(&mut self, id: SequenceId) -> Option<&mut Running> {
        match self.sequences.get_mut(&id).map(|open| &mut open.phase) {
            Some(Phase::Running(running)) => Some(running),
            _ => None,
        }
    }

    fn cache_bytes(&self, model: &ModelName) -> u64 {
        let sequences = self.sequences.values().filter(|open| open.model == *model);
        let bytes = sequences.map(|open| match &open.phase {
            Phase::Running(running) => running.sequence.cache_bytes(),
            Phase::Waiting { .. } | Phase::Moving => 0,
        });
        bytes.sum::<u64>() + self.prompts.bytes_of(model)
    }

    /// Of all models: keeping a prompt of one may have cost another its own.
    fn tell_memory(&self) {
        for model in self.models.iter().filter(|(_, slot)| matches!(slot.state, SlotState::Ready { .. })).map(|of| of.0)
        {
            EngineMemory { model, kv_cache_bytes: self.cache_bytes(model) }.emit();
        }
    }

    fn tell_depth(&mut self) {
        let waiting = self.scheduler.waiting();
        if waiting != self.told_waiting {
            self.told_waiting = waiting;
            QueueDepth(waiting).emit();
        }
    }

    #[cfg(test)]
    fn stats(&self) -> EngineStats {
        let models = self.models.iter().filter_map(|(name, slot)| match &slot.state {
            SlotState::Ready { info, .. } => Some((Arc::clone(info), self.cache_bytes(name))),
            SlotState::Known | SlotState::Loading { .. } => None,
        });
        EngineStats {
            waiting: self.scheduler.waiting(),
            running: self.scheduler.running(),
            active_memory: mlx::active_memory().unwrap_or_default(),
            models: models.collect(),
        }
    }
}

fn answer_all(replies: &mut Vec<LoadReply>, answer: &Result<Arc<ModelInfo>, EngineError>) {
    for reply in replies.drain(..) {
        // Whoever asked may have left.
        drop(reply.send(answer.clone()));
    }
}

fn failed(error: &Exception) -> EngineError {
    EngineError::Mlx(error.to_string())
}
