//! The step loop: one command or one step of computation at a time. It ties the queue of sequences to what holds memory,
//! and is the only one to know both.

use std::{collections::HashMap, rc::Rc};

use mlx_manager_llm::FinishReason;
use mlx_manager_signal::event::{CacheNotCleared, QueueDepth};

#[cfg(test)]
use super::command::EngineStats;
use super::{
    EngineSettings,
    command::{GenerationEvent, LoadReply, Submission, Work},
    memory::Memory,
    models::{LoadStep, Loading},
    scheduler::{Action, SequenceId},
    sequence::{Sequence, Step},
    sequences::{Ended, Sequences, Waiting},
};
use crate::{
    error::EngineError,
    mlx,
    model::{ModelName, Source},
};

/// Decode steps between two clearings of MLX's cache of freed buffers, as the reference implementation has it.
const STEPS_PER_CLEARING: u32 = 256;

/// Everything that the thread holds.
pub(super) struct Core {
    sequences: Sequences,
    memory: Memory,
    /// Prompt tokens computed at once.
    prefill_chunk: usize,
    decode_steps: u32,
}

impl Core {
    /// `sources` are those of models that a former thread had.
    pub(super) fn new(settings: &EngineSettings, sources: HashMap<ModelName, Source>) -> Self {
        Self {
            sequences: Sequences::new(settings),
            memory: Memory::new(settings, sources),
            prefill_chunk: settings.prefill_chunk.max(1),
            decode_steps: 0,
        }
    }

    /// Whether there is nothing to do but wait for a command.
    pub(super) fn is_idle(&self) -> bool {
        self.sequences.is_idle()
    }

    /// Where all models are from, for a thread that takes over.
    pub(super) fn sources(&self) -> HashMap<ModelName, Source> {
        self.memory.models.sources()
    }

    /// Ends everything with an error.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        self.sequences.abandon(error);
        self.memory.models.abandon(error);
        QueueDepth(0).emit();
    }

    /// Does what it is told, which never takes long: what does is begun here and goes on in [`Self::step`].
    pub(super) fn obey(&mut self, work: Work) {
        match work {
            Work::Load { name, source, reply } => self.load(name, source, reply),
            Work::Precision { reply } => {
                let precision = self.memory.models.precision().map_err(|error| EngineError::mlx(&error));
                drop(reply.send(precision));
            }
            Work::Unload { name, reason, reply } => drop(reply.send(self.unload(&name, reason))),
            Work::Generate(submission) => self.submit(*submission),
            #[cfg(test)]
            Work::Stats { reply } => drop(reply.send(self.stats())),
            #[cfg(test)]
            Work::Panic => panic!("as a test asked"),
            #[cfg(test)]
            Work::Fail => {
                let error = EngineError::mlx(&mlx::Exception::custom("as a test asked"));
                self.sequences.ids().into_iter().for_each(|id| self.fail(id, error.clone()));
            }
        }
        self.sequences.tell_depth();
    }

    /// Does one step of work.
    pub(super) fn step(&mut self) {
        self.drop_the_gone();
        match self.sequences.next() {
            Action::Start(id) => self.start(id),
            Action::Prefill(id) => self.prefill(id),
            Action::Decode(ids) => self.decode(&ids),
            Action::Load(name) => self.step_load(&name),
            Action::Idle => {}
        }
        if self.memory.give_back() {
            self.tell_memory();
        }
        self.sequences.tell_depth();
    }

    fn load(&mut self, name: ModelName, source: Source, reply: LoadReply) {
        if self.memory.models.load(&name, source, reply) == Loading::Begun {
            self.sequences.model_loads(name);
        }
    }

    fn step_load(&mut self, name: &ModelName) {
        match self.memory.models.step(name) {
            LoadStep::More => {}
            LoadStep::Ready => self.sequences.model_is_ready(name),
            LoadStep::Failed(error) => {
                for id in self.sequences.of_model(name) {
                    self.fail(id, error.clone());
                }
                self.sequences.model_is_gone(name);
            }
            LoadStep::Unwanted => self.sequences.model_is_gone(name),
        }
    }

    fn unload(&mut self, name: &ModelName, reason: &'static str) -> Result<(), EngineError> {
        // Who left meanwhile doesn't use it.
        self.drop_the_gone();
        if self.memory.models.is_loading(name) || !self.sequences.of_model(name).is_empty() {
            return Err(EngineError::InUse { model: name.to_string() });
        }
        self.sequences.model_is_gone(name);
        self.memory.unload(name, reason)
    }

    fn submit(&mut self, mut submission: Submission) {
        let request = &submission.request;
        let mut refuse = |error| submission.events.tell(GenerationEvent::Failed(error));
        if request.prompt.is_empty() || request.max_tokens == 0 {
            return refuse(EngineError::Request("a request needs a prompt, and room for an answer"));
        }
        let Some((name, loading)) = self.memory.models.wanted(&request.model) else {
            return refuse(EngineError::NotLoaded { model: request.model.clone() });
        };
        if loading == Loading::Begun {
            self.sequences.model_loads(ModelName::clone(&name));
        }
        self.sequences.submit(name, submission);
    }

    fn start(&mut self, id: SequenceId) {
        let Some(open) = self.sequences.get_mut(id) else { return self.discard(id) };
        let Some(Waiting { plan, place }) = open.take_waiting() else { return self.discard(id) };
        let Some(model) = self.memory.models.ready(&open.model).map(Rc::clone) else {
            let error = EngineError::NotLoaded { model: open.model.to_string() };
            return self.fail(id, error);
        };
        let queued = open.leave_queue(place);
        let computed = self.memory.computed_before(&open.model, &plan.prompt);
        let sequence = computed.and_then(|computed| Sequence::new(&model, plan, computed));
        let cached = sequence.as_ref().map_or(0, Sequence::cached_tokens);
        open.events.tell(GenerationEvent::Started { queued, cached });
        match sequence {
            Ok(sequence) => {
                let is_prefilled = sequence.is_prefilled();
                open.run(model, sequence, self.memory.keeps_prompts());
                if is_prefilled {
                    self.sequences.prefilled(id);
                }
            }
            Err(error) => self.fail(id, EngineError::mlx(&error)),
        }
    }

    fn prefill(&mut self, id: SequenceId) {
        let Some(running) = self.sequences.running(id) else { return self.discard(id) };
        match running.sequence.prefill(&running.model, self.prefill_chunk) {
            Ok(()) if running.sequence.is_prefilled() => self.sequences.prefilled(id),
            Ok(()) => {}
            Err(error) => self.fail(id, EngineError::mlx(&error)),
        }
    }

    /// One token of each sequence: all are begun before the first is waited for.
    fn decode(&mut self, ids: &[SequenceId]) {
        for id in ids {
            let Some(running) = self.sequences.running(*id) else {
                self.discard(*id);
                continue;
            };
            if let Err(error) = running.sequence.launch(&running.model) {
                self.fail(*id, EngineError::mlx(&error));
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

    /// Waits for a token that was begun, and tells it.
    fn collect(&mut self, id: SequenceId) {
        let Some(open) = self.sequences.get_mut(id) else { return };
        let Some(running) = open.running() else { return };
        let step = match running.sequence.collect() {
            Ok(step) => step,
            Err(error) => return self.fail(id, EngineError::mlx(&error)),
        };
        let tokens = running.sequence.produced();
        #[cfg(test)]
        let stop_id = running.sequence.last_token().filter(|_| step == Step::Stop);
        let is_first = open.token_is_there();
        if let Step::Token(token) | Step::LastToken(token) = step {
            open.events.tell(GenerationEvent::Token(token));
        }
        let reason = match step {
            Step::Token(_) if is_first => return self.tell_memory(),
            Step::Token(_) => return,
            Step::LastToken(_) => FinishReason::Length,
            Step::Stop => FinishReason::Stop,
        };
        if let Some(Ended { model, mut events, sequence }) = self.sequences.remove(id) {
            events.tell(GenerationEvent::Finished {
                reason,
                tokens,
                #[cfg(test)]
                stop_id,
            });
            self.keep(&model, sequence);
        }
    }

    /// Ends a sequence with an error.
    fn fail(&mut self, id: SequenceId, error: EngineError) {
        let Some(Ended { model, mut events, sequence }) = self.sequences.remove(id) else { return };
        events.tell(GenerationEvent::Failed(error));
        if sequence.is_some() {
            // What was computed before may be what it failed by.
            self.memory.forget_prompts(&model);
            self.tell_memory();
        }
    }

    /// Drops the sequences whose clients went away.
    fn drop_the_gone(&mut self) {
        for id in self.sequences.gone() {
            if let Some(Ended { model, sequence, .. }) = self.sequences.remove(id) {
                self.keep(&model, sequence);
            }
        }
    }

    /// Keeps what was computed for a sequence, if it ran.
    fn keep(&mut self, model: &ModelName, sequence: Option<Sequence>) {
        if let Some(sequence) = sequence {
            self.memory.keep(model, sequence);
            self.tell_memory();
        }
    }

    /// Drops a sequence that is not where it should be, so that nobody waits for it.
    fn discard(&mut self, id: SequenceId) {
        drop(self.sequences.remove(id));
    }

    fn tell_memory(&self) {
        self.memory.tell(|model| self.sequences.cache_bytes(model));
    }

    #[cfg(test)]
    fn stats(&self) -> EngineStats {
        let (waiting, running) = self.sequences.counts();
        let bytes = |model: &ModelName| self.sequences.cache_bytes(model) + self.memory.kept_bytes(model);
        let models = self.memory.models.all_ready();
        EngineStats {
            waiting,
            running,
            active_memory: mlx::active_memory().unwrap_or_default(),
            models: models.map(|(name, info)| (std::sync::Arc::clone(info), bytes(name))).collect(),
        }
    }
}
