//! The local engine: MLX models on one thread of their own.
//!
//! Enter at [`Engine`], which answers conversations. [`catalogue`] knows what is on disk and [`pool`] what is in memory.
//! A conversation becomes token ids ([`chat`], with [`template`] and [`tokenizer`]), [`worker`] generates from them and
//! knows nothing of text, and what it generates becomes events again ([`answer`], with [`detokenizer`], [`parse`] and
//! [`stop`]). A build without the feature `mlx` has an [`Engine`] that has no models.

#[cfg(not(feature = "mlx"))]
mod absent;
#[cfg(feature = "mlx")]
mod answer;
#[cfg(feature = "mlx")]
mod backend;
#[cfg(feature = "mlx")]
mod builtin;
#[cfg(feature = "mlx")]
mod cache;
pub mod catalogue;
#[cfg(feature = "mlx")]
mod chat;
#[cfg(feature = "mlx")]
mod detokenizer;
#[cfg(feature = "mlx")]
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(feature = "mlx")]
mod json;
#[cfg(feature = "mlx")]
mod machine;
#[cfg(feature = "mlx")]
mod mlx;
#[cfg(feature = "mlx")]
mod model;
#[cfg(any(feature = "mlx", fuzzing))]
mod parse;
#[cfg(feature = "mlx")]
mod pool;
#[cfg(feature = "mlx")]
mod sample;
#[cfg(feature = "mlx")]
mod scheduler;
#[cfg(feature = "mlx")]
mod sequence;
#[cfg(any(feature = "mlx", fuzzing))]
mod stop;
#[cfg(feature = "mlx")]
mod template;
#[cfg(test)]
#[cfg(feature = "mlx")]
mod tests;
#[cfg(feature = "mlx")]
mod tokenizer;
#[cfg(feature = "mlx")]
mod turn;
#[cfg(feature = "mlx")]
mod worker;

#[cfg(not(feature = "mlx"))]
pub use absent::Engine;
#[cfg(feature = "mlx")]
pub use {
    backend::Engine,
    error::EngineError,
    mlx::{Memory, Precision},
    model::{Architecture, LoadError, ModelInfo, QuantizationSummary},
    sample::SamplingParameters,
    worker::{Engine as Worker, EngineSettings, EngineStats, Generate, GenerationEvent},
};
