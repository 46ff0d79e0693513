//! What the MLX thread is told, and what it tells of each sequence.

use std::{sync::Arc, time::Duration};

use mlx_manager_llm::{FinishReason, Priority};
#[cfg(test)]
use mlx_manager_signal::event::EngineMemoryHeld;
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    time::Instant,
};
use tracing::Span;

use crate::{
    cache::{DiskEvent, PrefixLookup},
    error::EngineError,
    mlx::Precision,
    model::{ModelInfo, ModelName, Source},
    sample::SamplingParameters,
};

/// One answer to be generated.
#[derive(Debug)]
pub(crate) struct Generate {
    /// A model that was loaded by this name.
    pub(crate) model: String,
    /// Token ids of the prompt, which together with `max_tokens` must fit the model's context; the caller checks that.
    pub(crate) prompt: Vec<u32>,
    /// How to choose tokens.
    pub(crate) sampling: SamplingParameters,
    /// The most tokens to generate, at least 1.
    pub(crate) max_tokens: u32,
    /// Whether nobody named that limit, so that hardly any answer comes near it.
    pub(crate) open_ended: bool,
    /// All ids that end the answer, the model's own included ([`ModelInfo::end_ids`]).
    pub(crate) stop_ids: Vec<u32>,
    /// Who goes first where sequences wait.
    pub(crate) priority: Priority,
    /// The inference span; queue, prefill and decode become its children.
    pub(crate) span: Span,
}

/// What happens to a sequence, in this order. `Failed` may come at any time; `Finished` and `Failed` are the last.
#[derive(Debug, Clone)]
pub(crate) enum GenerationEvent {
    /// It was taken in and waits for its turn.
    Accepted,
    /// It waited so long, and its prompt is being computed now.
    Started {
        /// From submission to now.
        queued: Duration,
        /// How much of the prompt came from the prefix cache.
        lookup: PrefixLookup,
    },
    /// One more token of the answer.
    Token(u32),
    /// The answer is complete.
    Finished {
        /// [`FinishReason::Stop`] or [`FinishReason::Length`].
        reason: FinishReason,
        /// Tokens generated, the stop token included.
        tokens: u64,
        /// The token that ended the answer.
        #[cfg(test)]
        stop_id: Option<u32>,
    },
    /// The answer can't be given, or not to its end.
    Failed(EngineError),
}

/// What the engine holds and does.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineStats {
    /// Sequences that wait.
    pub(crate) waiting: usize,
    /// Sequences that are computed.
    pub(crate) running: usize,
    /// Bytes of the arrays that MLX holds.
    pub(crate) active_memory: u64,
    /// Bytes of freed buffers that it keeps.
    pub(crate) cache_memory: u64,
    /// What they are for.
    pub(crate) held: EngineMemoryHeld,
    /// Bytes of the prefix cache on disk.
    pub(crate) on_disk: u64,
    /// The loaded models, with the bytes of their key-value caches, those of ended sequences included.
    pub(crate) models: Vec<(Arc<ModelInfo>, u64)>,
}

pub(super) type LoadReply = oneshot::Sender<Result<Arc<ModelInfo>, EngineError>>;

/// A sequence on its way to the thread.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: Generate,
    pub(super) events: Outbox,
    pub(super) submitted: Instant,
    pub(super) queue_span: Span,
}

/// What the thread is told.
pub(super) enum Command {
    Work(Work),
    Shutdown { reply: oneshot::Sender<()> },
}

/// What the thread is to do.
pub(super) enum Work {
    Load {
        name: ModelName,
        source: Source,
        reply: LoadReply,
    },
    /// With which precision it computes.
    Precision {
        reply: oneshot::Sender<Result<Precision, EngineError>>,
    },
    Unload {
        name: ModelName,
        reason: &'static str,
        reply: oneshot::Sender<Result<(), EngineError>>,
    },
    Generate(Box<Submission>),
    /// What the prefix cache's disk has to say.
    Disk(DiskEvent),
    #[cfg(test)]
    Stats {
        reply: oneshot::Sender<EngineStats>,
    },
    #[cfg(test)]
    Panic,
    /// MLX fails with these words at the next steps, one after the other.
    #[cfg(test)]
    FailSteps(Vec<&'static str>),
    /// MLX fails at all sequences.
    #[cfg(test)]
    Fail,
}

/// Where the events of a sequence go. Whatever becomes of it, the last one is `Finished` or `Failed`.
#[derive(Debug)]
pub(super) struct Outbox {
    events: UnboundedSender<GenerationEvent>,
    ended: bool,
}

impl Outbox {
    pub(super) fn new(events: UnboundedSender<GenerationEvent>) -> Self {
        Self { events, ended: false }
    }

    /// Tells a client that may have left; that it has is noticed at the next step.
    pub(super) fn tell(&mut self, event: GenerationEvent) {
        self.ended |= matches!(event, GenerationEvent::Finished { .. } | GenerationEvent::Failed(_));
        drop(self.events.send(event));
    }

    /// Whether the client left.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(GenerationEvent::Failed(EngineError::Stopped));
        }
    }
}
