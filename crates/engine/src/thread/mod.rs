//! The one OS thread that owns every MLX array.
//!
//! Enter at [`Handle`], by which everybody else talks to it. [`command`] is what is said between the two, [`supervisor`]
//! keeps the thread alive. On it, [`step`] does one piece of work at a time and ties the parts that know nothing of each
//! other: [`sequences`] is the queue, in the order that [`scheduler`] decides; [`memory`] holds the [`models`] and what was
//! computed for prompts; a [`sequence`] is one prompt and its answer on the device.

mod batch;
mod command;
mod handle;
mod memory;
mod models;
mod scheduler;
mod sequence;
mod sequences;
mod step;
mod supervisor;
#[cfg(test)]
mod tests;

pub(crate) use command::{Generate, GenerationEvent};
pub(crate) use handle::Handle;

use crate::mlx::Precision;

/// How the thread works.
#[derive(Debug, Clone)]
pub(crate) struct EngineSettings {
    /// Sequences computed at the same time.
    pub(crate) max_batch: usize,
    /// Sequences that may wait beyond them; more are refused as overloaded.
    pub(crate) queue_limit: usize,
    /// Prompt tokens computed at once, between two decode steps of other sequences.
    pub(crate) prefill_chunk: usize,
    /// Bytes that MLX is asked to stay below.
    pub(crate) memory_limit: Option<u64>,
    /// Bytes that keys and values of sequences that ended may take, for prompts that begin alike; 0 keeps none.
    pub(crate) prompt_cache: u64,
    /// `None` takes the fastest precision for the device.
    pub(crate) precision: Option<Precision>,
    /// Whether a step is begun before the one before it is read; `None` does what is faster on the device.
    pub(crate) run_ahead: Option<bool>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_batch: 16,
            queue_limit: 256,
            prefill_chunk: 2048,
            memory_limit: None,
            prompt_cache: 512 << 20,
            precision: None,
            run_ahead: None,
        }
    }
}
