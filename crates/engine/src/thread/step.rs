//! The step loop: one command or one step of computation at a time. It ties the queue of sequences to what holds memory,
//! and is the only one to know both.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    num::NonZeroUsize,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use mlx_manager_llm::FinishReason;
use mlx_manager_signal::event::{
    CacheNotCleared, EngineOutOfMemory, Preempted, PromptNotKept, QueueDepth, StepFinished,
};

#[cfg(test)]
use super::command::EngineStats;
use super::{
    EngineSettings,
    admission::{Verdict, Wanted},
    batch::{Batch, Outcome, Share, StepTimes},
    command::{Command, GenerationEvent, LoadReply, Submission, Work},
    memory::Memory,
    models::{LoadStep, Loading},
    recall::Recalls,
    scheduler::{Action, SequenceId, Step},
    sequence::{Produced, expected_length},
    sequences::{Ended, Sequences, Waiting},
};
use crate::{
    cache::{DiskEvent, ReadId},
    error::EngineError,
    mlx::{self, Exception},
    model::{BLOCK, Computed, Kernels, Model, ModelName, Source},
};

/// Bytes of buffers that are made for new sequences between two steps. On a CPU they are new memory, which takes some
/// milliseconds.
const RESERVED: u64 = 16 << 20;

/// Everything that the thread holds.
pub(super) struct Core {
    sequences: Sequences,
    /// What the running sequences of each model keep on the device.
    batches: HashMap<ModelName, Batch>,
    pub(super) memory: Memory,
    recalls: Recalls,
    /// Sequences that have joined a batch, and have not all of their buffers.
    joining: VecDeque<(ModelName, SequenceId)>,
    /// `None` is as the device likes it.
    run_ahead: Option<bool>,
    /// Sequences of a step that failed. Until each has passed one by itself, nobody knows which of them it failed by.
    suspects: HashSet<SequenceId>,
    /// Whether MLX may hold buffers that nobody needs.
    worked: bool,
    /// The most tokens of a prompt that are computed at once.
    prefill_chunk: u64,
    /// What MLX says at the next steps.
    #[cfg(test)]
    failures: std::collections::VecDeque<&'static str>,
}

impl Core {
    /// `sources` are those of models that a former thread had, `commands` the way to whoever calls [`Self::obey`].
    pub(super) fn new(
        settings: &EngineSettings,
        sources: HashMap<ModelName, Source>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        // A thread that has ended needs no disk.
        let tell = move |event| drop(commands.send(Command::Work(Work::Disk(event))));
        Self {
            sequences: Sequences::new(settings),
            batches: HashMap::new(),
            memory: Memory::new(settings, sources, tell),
            recalls: Recalls::default(),
            joining: VecDeque::new(),
            run_ahead: settings.run_ahead,
            suspects: HashSet::new(),
            worked: false,
            prefill_chunk: settings.prefill_chunk as u64,
            #[cfg(test)]
            failures: Default::default(),
        }
    }

    /// Whether there is nothing to do but wait for a command, or for as long as [`Self::patience`].
    pub(super) fn is_idle(&self) -> bool {
        self.sequences.is_idle()
    }

    /// How long there may be nothing to do; `None` is forever.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.recalls.patience()
    }

    /// Where all models are from, for a thread that takes over.
    pub(super) fn sources(&self) -> HashMap<ModelName, Source> {
        self.memory.models.sources()
    }

    /// Ends everything with an error.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        self.recalls.abandon(error);
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
            Work::Disk(DiskEvent::Read { id, sorted }) => self.recalled(id, &sorted),
            Work::Disk(DiskEvent::Failed(error)) => self.disk_failed(&error),
            #[cfg(test)]
            Work::Stats { reply } => drop(reply.send(self.stats())),
            #[cfg(test)]
            Work::Panic => panic!("as a test asked"),
            #[cfg(test)]
            Work::FailSteps(words) => self.failures.extend(words),
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
        self.stop_waiting();
        self.reserve();
        match self.sequences.next() {
            Action::Start(id) => self.start(id),
            Action::Preempt(id) => self.preempt(id),
            Action::Step(step) => self.compute(step),
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
            LoadStep::Ready => {
                self.sequences.model_is_ready(name);
                self.tell_memory();
            }
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
        if self.memory.models.is_loading(name) || !self.sequences.of_model(name).is_empty() || self.recalls.want(name) {
            return Err(EngineError::InUse { model: name.to_string() });
        }
        self.sequences.model_is_gone(name);
        self.batches.remove(name);
        self.memory.unload(name, reason)?;
        self.tell_memory();
        Ok(())
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
        if let Some(model) = self.memory.models.ready(&name) {
            let prompt = request.prompt.len();
            let length = expected_length(prompt, 0, request.max_tokens as usize, request.open_ended);
            let wanted = wanted(model, length, prompt, self.prefill_chunk);
            // What can't ever be must not wait for its turn to hear so.
            if self.memory.limit().is_some_and(|limit| wanted.exceeds(limit)) {
                return refuse(self.too_large(&name, length, wanted));
            }
        }
        if loading == Loading::Begun {
            self.sequences.model_loads(ModelName::clone(&name));
        }
        // Of a model that loads there is nothing to be read.
        match self.memory.recall(&name, &submission.request.prompt) {
            Some(read) => self.recalls.wait(read, name, submission),
            None => self.sequences.submit(name, submission, 0..0),
        }
    }

    /// What was computed of a prompt is read: who waits for that waits no longer.
    fn recalled(&mut self, id: ReadId, sorted: &[Vec<u8>]) {
        let tokens = self.memory.recalled(id, sorted);
        for (name, submission) in self.recalls.take(id) {
            self.sequences.submit(name, submission, tokens.clone());
        }
        self.tell_memory();
    }

    /// There is no disk any more: what waits for it is computed.
    fn disk_failed(&mut self, error: &io::Error) {
        self.memory.disk_failed(error);
        for (name, submission) in self.recalls.take_all() {
            self.sequences.submit(name, submission, 0..0);
        }
    }

    /// What the disk takes too long for is computed.
    fn stop_waiting(&mut self) {
        for (name, submission) in self.recalls.take_late() {
            self.sequences.submit(name, submission, 0..0);
        }
    }

    /// Whether there is memory for a sequence whose turn has come.
    ///
    /// # Errors
    /// When there can't be, whatever ends.
    fn has_room(&mut self, id: SequenceId) -> Result<bool, EngineError> {
        let Some(open) = self.sequences.get_mut(id) else { return Ok(true) };
        let Some((sequence, model)) = open.waiting().zip(self.memory.models.ready(&open.model)) else {
            return Ok(true);
        };
        let length = sequence.expected_length();
        let mut wanted = wanted(model, length, sequence.length(), self.prefill_chunk);
        if model.decoder.shares() {
            let shared = self.memory.shareable_bytes(&open.model, sequence.tokens());
            wanted.sequence = wanted.sequence.saturating_sub(shared);
        }
        let name = ModelName::clone(&open.model);
        let mut running = 0;
        let mut growth = 0_u64;
        for (name, batch) in &self.batches {
            let lengths = self.sequences.expected_lengths().filter(|(of, _)| *of == name).map(|(_, length)| length);
            let needs = &batch.model().info.needs;
            let expected = lengths.inspect(|_| running += 1).map(|length| needs.sequence(length));
            growth =
                growth.saturating_add(expected.fold(0, u64::saturating_add).saturating_sub(batch.unshared_bytes()));
        }
        match self.memory.admit(wanted, growth, running) {
            Verdict::Yes | Verdict::MakeRoom { .. } => Ok(true),
            Verdict::Wait { .. } => Ok(false),
            Verdict::Never => Err(self.too_large(&name, length, wanted)),
        }
    }

    fn too_large(&self, model: &ModelName, tokens: u64, wanted: Wanted) -> EngineError {
        EngineError::TooLarge {
            model: model.to_string(),
            tokens,
            bytes: wanted.own(),
            weights: wanted.weights,
            limit: self.memory.limit().unwrap_or(u64::MAX),
        }
    }

    fn start(&mut self, id: SequenceId) {
        match self.has_room(id) {
            Ok(true) => {}
            Ok(false) => return self.sequences.hold(id),
            Err(error) => return self.fail(id, error),
        }
        let Some(open) = self.sequences.get_mut(id) else { return self.discard(id) };
        let Some(Waiting { mut sequence, place }) = open.take_waiting() else { return self.discard(id) };
        let Some(model) = self.memory.models.ready(&open.model).map(Rc::clone) else {
            let error = EngineError::NotLoaded { model: open.model.to_string() };
            return self.fail(id, error);
        };
        let queued = open.leave_queue(place);
        // For its prompt, and for a block of its answer: who asks for many tokens may well get few.
        let room = sequence.expected_length().min(sequence.length() as u64 + BLOCK as u64);
        let room = i32::try_from(room).unwrap_or(i32::MAX);
        let recalled = std::mem::take(&mut open.recalled);
        let room = (room, model.decoder.shares());
        let found = self.memory.computed_before(&open.model, sequence.tokens(), room, &recalled, open.span());
        let (lookup, computed) = match found {
            Ok(found) => found,
            Err(error) => return self.fail(id, EngineError::mlx(&error)),
        };
        let positions = computed.as_ref().map_or(0, Computed::positions);
        let is_new = !sequence.has_run();
        sequence.place(positions);
        if is_new {
            open.events.tell(GenerationEvent::Started { queued, lookup });
        }
        let name = ModelName::clone(&open.model);
        open.run(sequence);
        let runs_ahead = self.run_ahead.unwrap_or_else(|| model.decoder.kernels() == Kernels::Fused);
        let batch = self.batches.entry(ModelName::clone(&name)).or_insert_with(|| Batch::new(model, runs_ahead));
        batch.join(id, computed, room.0);
        self.joining.push_back((name, id));
    }

    /// Goes on making buffers for sequences that have started, before the first of their tokens are computed.
    fn reserve(&mut self) {
        let mut left = RESERVED;
        while let Some((model, id)) = self.joining.pop_front() {
            match self.batches.get_mut(&model).map_or(Ok(Some(left)), |batch| batch.reserve(id, left)) {
                Ok(Some(bytes)) => left = bytes,
                Ok(None) => return self.joining.push_front((model, id)),
                Err(error) => {
                    self.step_failed(&model, &[id], &error);
                    continue;
                }
            }
            if let Some(running) = self.sequences.running(id) {
                let (to_prefill, computed) = (running.sequence.to_prefill(), running.sequence.computed());
                self.sequences.started(id, to_prefill, computed);
            }
        }
    }

    /// Takes a sequence's place for one that is more urgent. What was computed is kept as long as there is room.
    fn preempt(&mut self, id: SequenceId) {
        let Some(open) = self.sequences.get_mut(id) else { return self.discard(id) };
        let name = ModelName::clone(&open.model);
        let Some(running) = open.running() else { return self.discard(id) };
        let left = self.batches.get_mut(&name).map(|batch| batch.leave(id)).transpose().map(Option::flatten);
        match left {
            Ok(Some(computed)) => self.memory.keep(&name, running.sequence.held(&computed), &computed),
            Ok(None) => {}
            Err(error) => return self.fail(id, EngineError::mlx(&error)),
        }
        self.joining.retain(|(_, joining)| *joining != id);
        let computed = running.sequence.computed() as u64;
        Preempted { model: &name, computed }.emit();
        self.sequences.requeue(id);
        self.tell_memory();
    }

    /// Computes one step of a model's sequences: of all of them, but of those that a step failed by one by one.
    fn compute(&mut self, step: Step) {
        self.worked = true;
        let (alone, together): (Vec<SequenceId>, Vec<SequenceId>) = step
            .decode
            .iter()
            .chain(step.prefill.iter().map(|chunk| &chunk.id))
            .partition(|id| self.suspects.contains(id));
        let groups = alone.iter().map(|id| vec![*id]).chain(Some(together).filter(|ids| !ids.is_empty()));
        for ids in groups.collect::<Vec<_>>() {
            let part = Step {
                model: ModelName::clone(&step.model),
                decode: step.decode.iter().filter(|id| ids.contains(id)).copied().collect(),
                prefill: step.prefill.iter().filter(|chunk| ids.contains(&chunk.id)).cloned().collect(),
            };
            let began = Instant::now();
            let chunks = self.sequences.chunk_spans(&part);
            let outcome = self.step_of(&part);
            drop(chunks);
            match outcome {
                Ok(outcome) => self.stepped(part, outcome, began),
                Err(error) => self.step_failed(&part.model, &ids, &error),
            }
        }
    }

    fn step_of(&mut self, step: &Step) -> Result<Outcome, Exception> {
        #[cfg(test)]
        if let Some(words) = self.failures.pop_front() {
            return Err(Exception::custom(words));
        }
        let Some(batch) = self.batches.get_mut(&step.model) else {
            return Err(Exception::custom("sequences without a model"));
        };
        let chunk = |id| {
            let tokens = step.prefill.iter().find(|chunk| chunk.id == id).map(|chunk| chunk.tokens);
            tokens.and_then(|tokens| NonZeroUsize::new(usize::try_from(tokens).unwrap_or(usize::MAX)))
        };
        let ids: Vec<SequenceId> =
            step.decode.iter().copied().chain(step.prefill.iter().map(|chunk| chunk.id)).collect();
        let mut shares: Vec<Share<'_>> = self
            .sequences
            .several(&ids)
            .into_iter()
            .map(|(id, sequence)| Share { id, sequence, prefill: chunk(id) })
            .collect();
        batch.step(&mut shares)
    }

    /// A step was computed: its tokens are told.
    fn stepped(&mut self, step: Step, outcome: Outcome, began: Instant) {
        let Outcome { tokens, prefilled, times } = outcome;
        let decode: Vec<SequenceId> = tokens.iter().map(|(id, _)| *id).collect();
        let done = Step { decode, prefill: prefilled, ..step };
        self.sequences.stepped(&done, began.elapsed());
        done.decode.iter().chain(done.prefill.iter().map(|chunk| &chunk.id)).for_each(|id| {
            self.suspects.remove(id);
        });
        let telling = Instant::now();
        let decoded = tokens.len() as u64;
        for (id, token) in tokens {
            self.tell(id, token, decoded);
        }
        let StepTimes { graph, sample, wait } = times;
        let prefilled = done.prefill.iter().map(|chunk| chunk.tokens).sum();
        let tell = telling.elapsed();
        StepFinished { model: &done.model, decoded, prefilled, graph, sample, wait, tell }.emit();
    }

    /// Whoever it failed by must not take the others along: each is computed anew, by itself, until it has passed a step.
    fn step_failed(&mut self, model: &ModelName, ids: &[SequenceId], error: &Exception) {
        let out_of_memory = mlx::is_out_of_memory(error);
        if out_of_memory {
            self.give_all_back(model, error);
        }
        if let [id] = ids
            && (!out_of_memory || self.suspects.contains(id))
        {
            let error = if out_of_memory { EngineError::OutOfMemory } else { EngineError::mlx(error) };
            return self.fail(*id, error);
        }
        if let Some(batch) = self.batches.get_mut(model) {
            batch.forget(ids.iter().copied());
        }
        for id in ids {
            let Some(running) = self.sequences.running(*id) else { continue };
            running.sequence.place(0);
            let to_prefill = running.sequence.to_prefill();
            self.sequences.started(*id, to_prefill, 0);
            self.suspects.insert(*id);
        }
    }

    /// MLX had no memory: what can be given back is.
    fn give_all_back(&mut self, model: &ModelName, error: &Exception) {
        let bytes = self.memory.drop_all_kept();
        EngineOutOfMemory { model, bytes, error }.emit();
        if let Err(error) = mlx::clear_cache() {
            CacheNotCleared { error: &error }.emit();
        }
    }

    /// Tells a token of a sequence, from a step that gave so many one, and ends the sequence with its last one.
    fn tell(&mut self, id: SequenceId, token: u32, decoded: u64) {
        let Some(open) = self.sequences.get_mut(id) else { return };
        let Some(running) = open.running() else { return };
        let step = running.sequence.take(token);
        let tokens = running.sequence.produced();
        #[cfg(test)]
        let stop_id = running.sequence.last_token().filter(|_| step == Produced::Stop);
        let is_first = open.token_is_there(decoded);
        if let Produced::Token(token) | Produced::LastToken(token) = step {
            open.events.tell(GenerationEvent::Token(token));
        }
        let reason = match step {
            Produced::Token(_) if is_first => return self.tell_memory(),
            Produced::Token(_) => return,
            Produced::LastToken(_) => FinishReason::Length,
            Produced::Stop => FinishReason::Stop,
        };
        if let Some(mut ended) = self.remove(id, reason.as_str()) {
            ended.events.tell(GenerationEvent::Finished {
                reason,
                tokens,
                #[cfg(test)]
                stop_id,
            });
            self.keep(ended);
        }
    }

    /// Ends a sequence with an error.
    fn fail(&mut self, id: SequenceId, error: EngineError) {
        let Some(mut ended) = self.remove(id, "error") else { return };
        ended.events.tell(GenerationEvent::Failed(error));
        if ended.sequence.is_some() {
            // What was computed before may be what it failed by.
            self.memory.forget_prompts(&ended.model);
            if let Some(batch) = self.batches.get_mut(&ended.model) {
                drop(batch.leave(id));
            }
            self.tell_memory();
        }
    }

    /// Drops the sequences whose clients went away.
    fn drop_the_gone(&mut self) {
        self.recalls.drop_the_gone();
        for id in self.sequences.gone() {
            if let Some(ended) = self.remove(id, "abort") {
                self.keep(ended);
            }
        }
    }

    fn remove(&mut self, id: SequenceId, reason: &'static str) -> Option<Ended> {
        self.suspects.remove(&id);
        self.joining.retain(|(_, joining)| *joining != id);
        self.sequences.remove(id, reason)
    }

    /// Keeps what was computed for a sequence that is over, if it ran.
    fn keep(&mut self, ended: Ended) {
        let Ended { id, model, sequence, .. } = ended;
        let Some(sequence) = sequence else { return };
        match self.batches.get_mut(&model).map(|batch| batch.leave(id)).transpose().map(Option::flatten) {
            Ok(Some(computed)) => self.memory.keep(&model, sequence.held(&computed), &computed),
            Ok(None) => {}
            Err(error) => PromptNotKept { error: &error }.emit(),
        }
        self.tell_memory();
    }

    /// Whether MLX may hold buffers that nobody needs.
    pub(super) fn has_worked(&self) -> bool {
        self.worked
    }

    /// There has been nothing to do for a while: buffers that MLX keeps for the next arrays go back to the system.
    pub(super) fn rest(&mut self) {
        self.worked = false;
        if let Err(error) = mlx::clear_cache() {
            CacheNotCleared { error: &error }.emit();
        }
        self.tell_memory();
    }

    /// Drops a sequence that is not where it should be, so that nobody waits for it.
    fn discard(&mut self, id: SequenceId) {
        drop(self.remove(id, "error"));
    }

    fn tell_memory(&self) {
        self.memory.tell(|model| self.batches.get(model).map_or(0, Batch::bytes));
        if let Ok(held) = self.memory.held(self.live_bytes()) {
            held.emit();
        }
    }

    /// Bytes of keys and values of running sequences.
    fn live_bytes(&self) -> u64 {
        self.batches.values().map(Batch::bytes).sum()
    }

    #[cfg(test)]
    pub(super) fn stats(&self) -> EngineStats {
        let (waiting, running) = self.sequences.counts();
        let live = |model: &ModelName| self.batches.get(model).map_or(0, Batch::bytes);
        let bytes = |model: &ModelName| live(model) + self.memory.kept_bytes(model);
        let models = self.memory.models.all_ready();
        EngineStats {
            waiting,
            running,
            active_memory: mlx::active_memory().unwrap(),
            cache_memory: mlx::cache_memory().unwrap(),
            held: self.memory.held(self.live_bytes()).unwrap(),
            on_disk: self.memory.disk_bytes(),
            models: models.map(|(name, info)| (std::sync::Arc::clone(info), bytes(name))).collect(),
        }
    }
}

/// What a sequence takes that will have so many tokens, of which `computed` are computed at first, a chunk at a time.
fn wanted(model: &Model, length: u64, computed: usize, chunk: u64) -> Wanted {
    let needs = &model.info.needs;
    let computed = computed as u64;
    Wanted {
        sequence: needs.sequence(length),
        step: needs.step(computed.min(chunk), computed),
        weights: model.info.bytes,
    }
}
