//! The local engine: MLX models on one thread of their own.
//!
//! Enter at [`Engine`], which answers conversations. [`catalogue`] knows what is on disk and [`pool`] what is in memory.
//! A conversation becomes token ids ([`chat`], with [`template`] and [`tokenizer`]), [`worker`] generates from them and
//! knows nothing of text, and what it generates becomes events again ([`answer`], with [`detokenizer`], [`parse`] and
//! [`stop`]). A build without the feature `mlx` has an [`Engine`] that has no models.

mod answer;
mod backend;
mod builtin;
mod cache;
mod chat;
mod detokenizer;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod json;
mod machine;
mod mlx;
mod model;
mod parse;
mod pool;
mod sample;
mod scheduler;
mod sequence;
mod stop;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;
mod turn;
mod worker;

pub use backend::Engine;

/// What this engine is called where a build says what it is made of.
pub const NAME: &str = "mlx";
