//! The edge to MLX: what the rest of the engine needs of `mlx-rs`, under one roof.
//!
//! Everything here must be called on the thread that owns the arrays: MLX's default streams belong to a thread.

#[cfg(target_os = "linux")]
pub(crate) mod blas;
mod clock;
mod kernels;
mod memory;

pub(crate) use kernels::{check_kernels, kernels};
pub(crate) use memory::{
    active_memory, cache_memory, clear_cache, is_out_of_memory, keep_freed, limit_cache, limit_memory,
};
pub(crate) use mlx_rs::{Array, Dtype, error::Exception};

use mlx_rs::{Device, DeviceType, transforms};

/// The number type that weights and activations have while computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// 32 bits throughout: on a CPU, half-precision scales make quantized products ten times slower.
    Float32,
    /// As the tensors are stored.
    Stored,
}

impl Precision {
    /// The fastest one for the device that MLX computes on.
    pub(crate) fn for_device() -> Result<Self, Exception> {
        Ok(match Device::try_default()?.get_type()? {
            DeviceType::Cpu => Self::Float32,
            DeviceType::Gpu => Self::Stored,
        })
    }

    /// A floating-point array in this precision; others come back as they are. Nothing is computed yet.
    pub(crate) fn apply(self, array: Array) -> Result<Array, Exception> {
        match (self, array.dtype()) {
            (Self::Float32, Dtype::Bfloat16 | Dtype::Float16) => array.as_dtype(Dtype::Float32),
            _ => Ok(array),
        }
    }
}

/// Token ids as a row.
pub(crate) fn ids(tokens: &[u32]) -> Result<Array, Exception> {
    let length = i32::try_from(tokens.len()).map_err(|_| Exception::custom("more than 2^31 tokens"))?;
    Ok(Array::from_slice(tokens, &[length]))
}

/// Computes arrays and waits for them.
pub(crate) fn evaluate<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<(), Exception> {
    transforms::eval(arrays)
}

/// Has arrays computed without waiting.
pub(crate) fn start<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<(), Exception> {
    transforms::async_eval(arrays)
}

/// Waits for token ids that were started, and reads them.
pub(crate) fn read_ids(tokens: &Array) -> Result<Vec<u32>, Exception> {
    if tokens.size() == 0 {
        return Ok(Vec::new());
    }
    tokens.to_vec_exact::<u32>().map_err(|error| Exception::custom(error.to_string()))
}
