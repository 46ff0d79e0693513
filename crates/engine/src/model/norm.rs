//! Norms: each vector divided by its root mean square, and weighed.

use mlx_rs::{Array, error::Exception, fast};

/// A norm over the last dimension.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Array,
    pub(super) epsilon: f32,
}

impl Norm {
    pub(super) fn forward(&self, x: &Array) -> Result<Array, Exception> {
        fast::rms_norm(x, Some(&self.weight), self.epsilon)
    }
}
