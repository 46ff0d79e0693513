//! Local models as targets.
//!
//! The only place that knows whether this build has an engine: either file has all of these names.

#[cfg_attr(feature = "mlx", path = "mlx.rs")]
#[cfg_attr(not(feature = "mlx"), path = "absent.rs")]
mod build;

pub use build::{Engine, Local, NAME, kernels};

/// [`NAME`] in a build without an engine.
pub const NONE: &str = "none";
