//! Models in MLX format: from a folder to logits.
//!
//! Enter at [`Loader`], which gives a [`Model`]. [`Config`] is what the folder says of itself; each architecture has a
//! file that turns it into a [`plan::Plan`]; [`decoder`] builds and runs every plan.

mod attention;
mod config;
mod decoder;
mod error;
mod footprint;
mod key_value;
mod linear;
mod llama;
mod loader;
mod norm;
mod plan;
mod quantization;
mod qwen2;
mod qwen3;
mod rope;
mod safetensors;
mod weights;

pub(crate) use config::{Architecture, Config};
pub(crate) use error::{LoadError, file_name};
pub(crate) use footprint::{Footprint, Form, Source};
pub(crate) use key_value::KeyValueCache;
pub(crate) use loader::{Loader, Model, ModelInfo, Progress, measure};

/// What requests call a model.
pub(crate) type ModelName = std::sync::Arc<str>;

#[cfg(test)]
mod tests;
