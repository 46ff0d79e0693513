//! The local engine: MLX models on one thread of their own. Who depends on this crate has local models; a build that
//! does without them leaves the crate out.
//!
//! Enter at [`Engine`], which answers conversations. `pool` knows what is in memory, and has `folder` read what isn't (`states`
//! tells how far that is); what there is on disk is the catalogue's to know. A conversation becomes token ids (`chat`, with
//! `template` and `tokenizer`), `thread` generates from them and knows nothing of text, and what it generates becomes events again (`answer`, with
//! `detokenizer`, `parse` and `stop`).
//!
//! The thread computes with `model`, chooses with `sample`, and keeps in `cache` what prompts have in common. `mlx` is the
//! edge to MLX.

mod answer;
mod backend;
mod builtin;
mod cache;
mod chat;
mod detokenizer;
mod error;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod json;
mod machine;
mod mlx;
mod model;
mod parse;
mod pool;
mod sample;
mod states;
mod stop;
mod template;
mod thread;
mod tokenizer;

pub use answer::CACHE_HEADER;
pub use backend::{Ask, Engine, LocalAnswer};
pub use cache::{PrefixLookup, Reason};

/// What this engine is called where a build says what it is made of.
pub const NAME: &str = "mlx";

/// What it computes with on a CPU: the library, and the processor that the kernels it picked are made for.
pub fn kernels() -> String {
    mlx::kernels()
}
