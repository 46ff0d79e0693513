//! The one OS thread that owns every MLX array.
//!
//! Enter at [`Handle`], by which everybody else talks to it. [`command`] is what is said between the two, [`supervisor`]
//! keeps the thread alive. On it, [`step`] does one piece of work at a time and ties the parts that know nothing of each
//! other: [`sequences`] is the queue, in the order that [`scheduler`] decides; [`memory`] holds the [`models`] and what was
//! computed for prompts, for which [`recall`] has some sequences wait; a [`sequence`] is one prompt and its answer on the device.

mod admission;
mod batch;
mod command;
mod handle;
mod memory;
mod models;
mod recall;
mod scheduler;
mod sequence;
mod sequences;
mod step;
mod supervisor;
#[cfg(test)]
mod tests;

pub(crate) use command::{Generate, GenerationEvent};
pub(crate) use handle::Handle;
pub(crate) use scheduler::Bound;

use tokio::sync::mpsc::UnboundedSender;

use crate::{cache::DiskSettings, mlx::Precision, states::States};

/// How the thread works.
#[derive(Debug, Clone)]
pub(crate) struct EngineSettings {
    /// Sequences computed at the same time.
    pub(crate) max_batch: usize,
    /// Sequences that may wait beyond them; more are refused as overloaded.
    pub(crate) queue_limit: usize,
    /// Prompt tokens that those may have together.
    pub(crate) queue_tokens: u64,
    /// The most prompt tokens computed in one step.
    pub(crate) prefill_chunk: usize,
    /// Bytes that MLX is asked to stay below.
    pub(crate) memory_limit: Option<u64>,
    /// Hears how many bytes sequences wait for that only a model's going would free.
    pub(crate) room_wanted: Option<UnboundedSender<u64>>,
    /// Hears where each model stands.
    pub(crate) states: States,
    /// Bytes that keys and values of sequences that ended may take, for prompts that begin alike; 0 keeps none.
    pub(crate) prefix_cache: u64,
    /// Where those go that give way there; `None` drops them.
    pub(crate) prefix_disk: Option<DiskSettings>,
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
            queue_tokens: 1_000_000,
            // A GPU is fastest with the largest chunks, a CPU with those that fit its caches.
            prefill_chunk: if cfg!(target_os = "macos") { 2048 } else { 256 },
            memory_limit: None,
            room_wanted: None,
            states: States::default(),
            prefix_cache: 512 << 20,
            prefix_disk: None,
            precision: None,
            run_ahead: None,
        }
    }
}
