//! Models in MLX format: from a folder to logits.
//!
//! Enter at [`Loader`], which gives a [`Model`]. [`Config`] is what the folder says of itself; each architecture has a
//! file that turns it into a [`plan::Plan`]; [`decoder`] builds and runs every plan. It computes tokens of many sequences side
//! by side, in the order of a [`Layout`]; what was computed of each is in a [`KeyValueStore`].

mod attention;
mod computed;
mod config;
mod decoder;
mod error;
mod footprint;
mod kernels;
mod key_value;
mod layout;
mod linear;
mod llama;
mod loader;
mod needs;
mod norm;
mod plan;
mod quantization;
mod qwen2;
mod qwen3;
mod rope;
mod rows;
mod safetensors;
mod slab;
mod store;
mod weights;

pub(crate) use computed::{Computed, Shared, Span, bytes, positions};
pub(crate) use config::{Architecture, Config};
pub(crate) use error::{LoadError, file_name};
pub(crate) use footprint::{Footprint, Form, Source};
pub(crate) use kernels::Kernels;
pub(crate) use key_value::{BLOCK, KeyValueCache, KeyValueRun};
pub(crate) use layout::{Layout, Segment, SequenceKey};
pub(crate) use loader::{Loader, Model, ModelInfo, Progress, measure};
#[cfg(test)]
pub(crate) use needs::Needs;
pub(crate) use rows::RowLayout;
pub(crate) use store::KeyValueStore;

/// What requests call a model.
pub(crate) type ModelName = std::sync::Arc<str>;

#[cfg(test)]
mod tests;
