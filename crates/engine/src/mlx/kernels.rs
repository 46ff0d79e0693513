//! What MLX multiplies matrices with where the device is a CPU. A Mac has Accelerate, of which there is only one.

use crate::error::EngineError;

/// The library and the processor that its kernels are made for, such as `OpenBLAS 0.3.34 for Haswell`.
#[cfg(target_os = "linux")]
pub(crate) fn kernels() -> String {
    format!("OpenBLAS {} for {}", super::blas::version(), super::blas::core())
}

/// States which kernels were picked and tries them.
///
/// # Errors
/// When they compute wrong numbers.
#[cfg(target_os = "linux")]
pub(crate) fn check_kernels() -> Result<(), EngineError> {
    let (version, core) = (super::blas::version(), super::blas::core());
    mlx_manager_signal::event::KernelsPicked { library: "OpenBLAS", version: &version, core: &core }.emit();
    Ok(super::blas::check()?)
}

/// The library.
#[cfg(not(target_os = "linux"))]
pub(crate) fn kernels() -> String {
    "Accelerate".to_owned()
}

/// There is nothing to pick.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check_kernels() -> Result<(), EngineError> {
    Ok(())
}
