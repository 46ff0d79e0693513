//! Why the engine can't do what it was asked.

use std::{sync::Arc, time::Duration};

use mlx_manager_llm as llm;

use super::{mlx::Exception, model::LoadError, thread::Bound};

/// Why the engine can't do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum EngineError {
    /// Too many requests wait already.
    #[error("{}", overloaded(*waiting, *waiting_tokens, *bound))]
    Overloaded {
        /// How many.
        waiting: usize,
        /// Their prompts' tokens.
        waiting_tokens: u64,
        /// Which bound was met.
        bound: Bound,
        /// When there should be room.
        retry_after: Duration,
    },
    /// The model was not loaded before.
    #[error("model {model:?} is not loaded")]
    NotLoaded {
        /// Its name.
        model: String,
    },
    /// The model can't be loaded.
    #[error("model {model:?} can't be loaded: {source}")]
    Load {
        /// Its name.
        model: String,
        /// Why.
        source: Arc<LoadError>,
    },
    /// The model has requests in flight.
    #[error("model {model:?} is in use")]
    InUse {
        /// Its name.
        model: String,
    },
    /// A sequence that the memory limit has no room for, whatever else ends.
    #[error(
        "{tokens} tokens of model {model:?} take {bytes} bytes beside the {weights} of its weights; `local.memory_limit` allows \
         {limit}: shorten the prompt, lower `max_tokens`, or raise that"
    )]
    TooLarge {
        /// The model.
        model: String,
        /// Of prompt and answer.
        tokens: u64,
        /// What they take.
        bytes: u64,
        /// What the model takes.
        weights: u64,
        /// What there may be.
        limit: u64,
    },
    /// MLX had no memory, even after all was given back that could be.
    #[error("the local engine has no memory for this request now; try again later, or with a shorter prompt")]
    OutOfMemory,
    /// A prompt without tokens, or no tokens allowed in the answer.
    #[error("{0}")]
    Request(&'static str),
    /// MLX failed.
    #[error("the local engine failed: {0}")]
    Mlx(String),
    /// There was a defect, and the thread began anew.
    #[error("the local engine failed and was started again")]
    Panicked,
    /// The engine is shut down.
    #[error("the local engine has stopped")]
    Stopped,
    /// The machine's kernels compute wrong numbers.
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Kernels(#[from] super::mlx::blas::WrongProduct),
    /// The operating system gave no thread.
    #[error("the local engine's thread can't be started: {0}")]
    Thread(Arc<std::io::Error>),
}

impl EngineError {
    /// MLX failed at a sequence, or at the memory.
    pub(crate) fn mlx(error: &Exception) -> Self {
        Self::Mlx(error.to_string())
    }

    /// What class of failure it is.
    pub(crate) fn kind(&self) -> llm::ErrorKind {
        match self {
            Self::Overloaded { .. } | Self::OutOfMemory => llm::ErrorKind::Overloaded,
            Self::NotLoaded { .. }
            | Self::Load { .. }
            | Self::InUse { .. }
            | Self::TooLarge { .. }
            | Self::Stopped
            | Self::Thread(_) => llm::ErrorKind::Unavailable,
            #[cfg(target_os = "linux")]
            Self::Kernels(_) => llm::ErrorKind::Unavailable,
            Self::Request(_) => llm::ErrorKind::InvalidRequest,
            Self::Mlx(_) | Self::Panicked => llm::ErrorKind::Engine,
        }
    }
}

impl From<EngineError> for llm::Error {
    /// Paths and MLX's own words are for the log only.
    fn from(error: EngineError) -> Self {
        let message = match &error {
            EngineError::Load { model, .. } => format!("model {model:?} can't be loaded; the log says why"),
            EngineError::Mlx(_) => "the local engine failed".to_owned(),
            #[cfg(target_os = "linux")]
            EngineError::Kernels(_) => "the local engine can't be started; the log says why".to_owned(),
            EngineError::Thread(_) => "the local engine can't be started".to_owned(),
            other => other.to_string(),
        };
        let after = match &error {
            EngineError::Overloaded { retry_after, .. } => Some(*retry_after),
            _ => None,
        };
        let told = Self::new(error.kind(), message).with_source(error);
        match after {
            Some(after) => told.with_retry_after(after),
            None => told,
        }
    }
}

fn overloaded(waiting: usize, waiting_tokens: u64, bound: Bound) -> String {
    let bound = match bound {
        Bound::Sequences => "local.queue allows no more",
        Bound::Tokens => "local.queue_tokens allows no more",
    };
    format!(
        "the local engine is busy: {waiting} requests with {waiting_tokens} prompt tokens are waiting, and {bound}; \
         come back later, or raise that"
    )
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
