//! What happens in the local engine.

use std::{error::Error, path::Path, time::Duration};

use mlx_manager_llm::Priority;

use super::milliseconds;
use crate::{
    metric::{
        Labels, add,
        name::{Counter, Gauge, Histogram, Label},
        observe, set,
    },
    target,
};

/// A model is ready.
#[derive(Debug)]
pub struct ModelLoaded<'a> {
    /// Its name.
    pub model: &'a str,
    /// Memory its weights take.
    pub bytes: u64,
    /// Time to load.
    pub duration: Duration,
    /// How they are kept: `stored`, or `unpacked` where they are packed on disk and floats in memory.
    pub weights: &'a str,
}

impl ModelLoaded<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(
            target: target::SERVER_ENGINE,
            model = self.model, bytes = self.bytes, weights = self.weights, duration_ms = milliseconds(self.duration),
            "model loaded"
        );
        let labels = Labels::none().with_text(Label::Model, self.model);
        set(Gauge::ModelLoaded, labels.clone(), 1.0);
        set(Gauge::ModelLoading, labels.clone(), 0.0);
        set(Gauge::ModelMemoryBytes, labels, self.bytes as f64);
    }
}

/// A model waits until others, which are in use, make room for it.
#[derive(Debug)]
pub struct ModelWaitsForRoom<'a> {
    /// Its name.
    pub model: &'a str,
    /// Memory its weights will take.
    pub bytes: u64,
    /// Memory that the weights of models in memory take.
    pub held: u64,
}

impl ModelWaitsForRoom<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(
            target: target::SERVER_ENGINE,
            model = self.model, bytes = self.bytes, held = self.held, "model waits for room"
        );
    }
}

/// A model could not be loaded.
#[derive(Debug)]
pub struct ModelLoadError<'a> {
    /// Its name.
    pub model: &'a str,
    /// Where it is; `None` when no folder was found. The error, which clients may read, names files only.
    pub folder: Option<&'a Path>,
    /// What went wrong.
    pub error: &'a (dyn Error + 'static),
}

impl ModelLoadError<'_> {
    /// States the fact.
    pub fn emit(self) {
        let folder = self.folder.map(|folder| tracing::field::display(folder.display()));
        tracing::error!(
            target: target::SERVER_ENGINE,
            model = self.model, folder, error = self.error, "model failed to load"
        );
    }
}

/// A model's memory was given back.
#[derive(Debug)]
pub struct ModelUnloaded<'a> {
    /// Its name.
    pub model: &'a str,
    /// `idle`, `memory` or `request`.
    pub reason: &'static str,
}

impl ModelUnloaded<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(target: target::SERVER_ENGINE, model = self.model, reason = self.reason, "model unloaded");
        let labels = Labels::none().with_text(Label::Model, self.model);
        set(Gauge::ModelLoaded, labels.clone(), 0.0);
        set(Gauge::ModelMemoryBytes, labels.clone(), 0.0);
        set(Gauge::KvCacheBytes, labels, 0.0);
        add(Counter::Evictions, Labels::none().with(Label::Reason, self.reason), 1);
    }
}

/// Requests waiting for the engine.
#[derive(Debug)]
pub struct QueueDepth(pub usize);

impl QueueDepth {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(target: target::SERVER_ENGINE, requests = self.0, "engine queue");
        set(Gauge::QueueDepth, Labels::none(), self.0 as f64);
    }
}

/// A request's turn has come.
#[derive(Debug)]
pub struct QueueLeft {
    /// How long it waited.
    pub wait: Duration,
    /// In which class.
    pub priority: Priority,
}

impl QueueLeft {
    /// States the fact.
    pub fn emit(self) {
        let seconds = self.wait.as_secs_f64();
        let priority = self.priority.as_str();
        tracing::debug!(target: target::SERVER_ENGINE, queue_ms = milliseconds(self.wait), priority, "turn has come");
        observe(Histogram::QueueWait, Labels::none(), seconds);
    }
}

/// It was looked how much of a prompt was computed before. Counts are tokens.
#[derive(Debug)]
pub struct PrefixLookedUp<'a> {
    /// The model.
    pub model: &'a str,
    /// The whole prompt.
    pub prompt: usize,
    /// How many of its first tokens agree with what is kept.
    pub matched: usize,
    /// How many of them need not be computed; 0 when nothing was found.
    pub restored: usize,
    /// How many of those were read from disk for it.
    pub from_disk: usize,
    /// Why it isn't more. It names positions, never tokens.
    pub reason: &'a str,
}

impl PrefixLookedUp<'_> {
    /// States the fact.
    pub fn emit(self) {
        let Self { model, prompt, matched, restored, from_disk, reason } = self;
        let disk = (from_disk > 0).then_some(from_disk);
        tracing::debug!(
            target: target::SERVER_ENGINE,
            model, prompt, matched, restored, disk, reason, "prompt looked up"
        );
        let labels = Labels::none().with_text(Label::Model, model);
        add(Counter::PrefixCacheLookups, labels.clone(), 1);
        add(Counter::PrefixCacheHits, labels.clone(), u64::from(restored > 0));
        add(Counter::PrefixCacheQueriedTokens, labels.clone(), prompt as u64);
        add(Counter::PrefixCacheHitTokens, labels, restored as u64);
    }
}

/// A prompt was computed.
#[derive(Debug)]
pub struct PrefillFinished<'a> {
    /// The model.
    pub model: &'a str,
    /// Prompt tokens.
    pub tokens: u64,
    /// How many of them came from a cache.
    pub cached: u64,
    /// Time to compute the rest.
    pub duration: Duration,
}

impl PrefillFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        let seconds = self.duration.as_secs_f64();
        tracing::debug!(
            target: target::SERVER_ENGINE,
            model = self.model, tokens = self.tokens, cached = self.cached, duration_ms = milliseconds(self.duration), "prompt computed"
        );
        observe(Histogram::Prefill, Labels::none().with_text(Label::Model, self.model), seconds);
    }
}

/// A sequence was generated to its end.
#[derive(Debug)]
pub struct DecodeFinished<'a> {
    /// The model.
    pub model: &'a str,
    /// Tokens generated.
    pub tokens: u64,
    /// From the first token to the last.
    pub duration: Duration,
}

impl DecodeFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        let seconds = self.duration.as_secs_f64();
        // The duration begins with the first token, so that one is not part of the rate.
        let rate = (self.tokens > 1 && seconds > 0.0).then(|| (self.tokens - 1) as f64 / seconds);
        tracing::debug!(
            target: target::SERVER_ENGINE,
            model = self.model, tokens = self.tokens, duration_ms = milliseconds(self.duration), tokens_per_second = rate,
            "answer generated"
        );
        let labels = Labels::none().with_text(Label::Model, self.model);
        observe(Histogram::Decode, labels.clone(), seconds);
        if let Some(rate) = rate {
            observe(Histogram::DecodeTokensPerSecond, labels, rate);
        }
    }
}

/// What the engine's memory looks like; measured on the MLX thread.
#[derive(Debug)]
pub struct EngineMemory<'a> {
    /// The model.
    pub model: &'a str,
    /// Bytes of the key-value caches of open sequences, and of those kept for later prompts.
    pub kv_cache_bytes: u64,
}

impl EngineMemory<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(
            target: target::SERVER_ENGINE,
            model = self.model, kv_cache_bytes = self.kv_cache_bytes, "engine memory"
        );
        set(Gauge::KvCacheBytes, Labels::none().with_text(Label::Model, self.model), self.kv_cache_bytes as f64);
    }
}

/// What MLX's memory is for. Together it is all that MLX holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineMemoryHeld {
    /// Weights of the models in memory.
    pub weights: u64,
    /// Keys and values of open sequences.
    pub kv_live: u64,
    /// What is kept of ended sequences for prompts to come.
    pub prefix_cache: u64,
    /// Freed buffers that MLX keeps for the next arrays.
    pub allocator_cache: u64,
    /// All else that is in arrays.
    pub other: u64,
}

impl EngineMemoryHeld {
    /// States the fact.
    pub fn emit(self) {
        let Self { weights, kv_live, prefix_cache, allocator_cache, other } = self;
        tracing::trace!(
            target: target::SERVER_ENGINE,
            weights, kv_live, prefix_cache, allocator_cache, other, "engine memory by kind"
        );
        let kinds = [
            ("weights", weights),
            ("kv_live", kv_live),
            ("prefix_cache", prefix_cache),
            ("allocator_cache", allocator_cache),
            ("other", other),
        ];
        for (kind, bytes) in kinds {
            set(Gauge::EngineMemoryBytes, Labels::none().with(Label::Kind, kind), bytes as f64);
        }
    }
}

/// Some more of a model is read.
#[derive(Debug)]
pub struct ModelLoading<'a> {
    /// Its name.
    pub model: &'a str,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes that it will have.
    pub total: u64,
}

impl ModelLoading<'_> {
    /// States the fact.
    pub fn emit(self) {
        let ratio = if self.total == 0 { 0.0 } else { self.bytes as f64 / self.total as f64 };
        tracing::debug!(
            target: target::SERVER_ENGINE,
            model = self.model, bytes = self.bytes, total = self.total, percent = (ratio * 100.0) as u64, "model is loading"
        );
        set(Gauge::ModelLoading, Labels::none().with_text(Label::Model, self.model), ratio);
    }
}

/// MLX had no memory for a step; what can be given back was, and the step is tried again.
#[derive(Debug)]
pub struct EngineOutOfMemory<'a> {
    /// The model whose step it was.
    pub model: &'a str,
    /// Bytes given back.
    pub bytes: u64,
    /// What MLX says.
    pub error: &'a (dyn Error + 'static),
}

impl EngineOutOfMemory<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_ENGINE,
            model = self.model, bytes = self.bytes, error = self.error,
            "out of memory: what was kept is given back, and the step is tried again"
        );
    }
}

/// The configuration names local models, and this build has no engine.
#[derive(Debug)]
pub struct EngineAbsent;

impl EngineAbsent {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_ENGINE_ABSENT,
            "built without local inference (feature `mlx`): local models are not served"
        );
    }
}

/// The library that MLX computes with on a CPU has picked its kernels.
#[derive(Debug)]
pub struct KernelsPicked<'a> {
    /// Its name.
    pub library: &'static str,
    /// Its version.
    pub version: &'a str,
    /// The processor that the kernels are made for, which may be an older one than the machine's.
    pub core: &'a str,
}

impl KernelsPicked<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(
            target: target::SERVER_ENGINE_BACKEND,
            library = self.library, version = self.version, core = self.core, "kernels picked"
        );
    }
}

/// The engine is not to be had.
#[derive(Debug)]
pub struct EngineStartError<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl EngineStartError<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::error!(
            target: target::SERVER_ENGINE_BACKEND, error = self.error, "the local engine can't be started"
        );
    }
}

/// A share of this machine's memory was asked for, and nobody knows how much that is.
#[derive(Debug)]
pub struct MachineMemoryUnknown;

impl MachineMemoryUnknown {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_ENGINE_MACHINE,
            "this machine's memory is unknown: set `local.memory_limit` in bytes; until then there is none"
        );
    }
}

/// A folder of an extraction that was given up stays on disk.
#[derive(Debug)]
pub struct FolderLeftOver<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl FolderLeftOver<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_ENGINE_BUILTIN,
            folder = %self.folder.display(), error = self.error, "a left-over folder can't be removed"
        );
    }
}

/// Generated tokens have no text.
#[derive(Debug)]
pub struct DecodeError<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl DecodeError<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(target: target::SERVER_ENGINE_TOKENIZER, error = self.error, "tokens can't be decoded");
    }
}

/// MLX keeps memory that it was asked to give back.
#[derive(Debug)]
pub struct CacheNotCleared<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl CacheNotCleared<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(target: target::SERVER_ENGINE_TURN, error = self.error, "MLX's cache can't be cleared");
    }
}

/// A computed prompt does not go into the prefix cache.
#[derive(Debug)]
pub struct PromptNotKept<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl PromptNotKept<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(target: target::SERVER_ENGINE_TURN, error = self.error, "a prompt can't be kept");
    }
}

/// The MLX thread is gone.
#[derive(Debug)]
pub enum MlxThreadGone<'a> {
    /// The system refused it.
    Refused(&'a (dyn Error + 'static)),
    /// It panicked, which has a line of its own; another one follows.
    Panicked,
}

impl MlxThreadGone<'_> {
    /// States the fact.
    pub fn emit(self) {
        match self {
            Self::Refused(error) => {
                tracing::error!(target: target::SERVER_ENGINE_WORKER, error, "the MLX thread can't be started");
            }
            Self::Panicked => {
                tracing::error!(target: target::SERVER_ENGINE_WORKER, "the MLX thread panicked and is started again");
            }
        }
    }
}
