//! Weights that multiply: dense, or packed in groups with a scale and a bias each.

use mlx_rs::{Array, error::Exception, ops};

/// Packed weights of shape [output, input]: 32 / `bits` of them per element.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(super) weight: Array,
    pub(super) scales: Array,
    pub(super) biases: Array,
    pub(super) group_size: i32,
    pub(super) bits: i32,
}

impl Packed {
    fn product(&self, x: &Array) -> Result<Array, Exception> {
        ops::quantized_matmul(x, &self.weight, &self.scales, &self.biases, true, self.group_size, self.bits)
    }

    /// The same as floats of the scales' type. Nothing is computed yet.
    pub(super) fn unpacked(&self) -> Result<Array, Exception> {
        ops::dequantize(&self.weight, &self.scales, &self.biases, self.group_size, self.bits)
    }

    fn arrays(&self) -> [&Array; 3] {
        [&self.weight, &self.scales, &self.biases]
    }
}

/// A matrix.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// Stored as [output, input], kept as a transposed view.
    Dense(Array),
    /// Packed.
    Packed(Packed),
}

/// Whether a projection adds a bias of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    /// It doesn't.
    None,
    /// One number for each output.
    PerOutput,
}

impl Bias {
    /// `attention_bias` or `mlp_bias` of config.json.
    pub(super) fn of(present: bool) -> Self {
        if present { Self::PerOutput } else { Self::None }
    }
}

/// A projection, with or without a bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Array>,
}

impl Linear {
    /// x · weightᵀ + bias, over the last dimension.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array, Exception> {
        match (&self.matrix, &self.bias) {
            (Matrix::Dense(weight), None) => x.matmul(weight),
            (Matrix::Dense(weight), Some(bias)) => ops::addmm(bias, x, weight, None, None),
            (Matrix::Packed(packed), None) => packed.product(x),
            (Matrix::Packed(packed), Some(bias)) => packed.product(x)?.add(bias),
        }
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.matrix.arrays().into_iter().chain(&self.bias)
    }
}

impl Matrix {
    fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::Dense(weight) => vec![weight],
            Self::Packed(packed) => packed.arrays().to_vec(),
        }
    }
}

/// The table of token vectors, which may also serve as the output projection.
#[derive(Debug)]
pub(crate) enum Embedding {
    /// Stored as [vocabulary, hidden].
    Dense { weight: Array, transposed: Array },
    /// Packed.
    Packed(Packed),
}

impl Embedding {
    pub(super) fn dense(weight: Array) -> Result<Self, Exception> {
        let transposed = weight.transpose()?;
        Ok(Self::Dense { weight, transposed })
    }

    /// The vectors of token ids.
    pub(crate) fn look_up(&self, ids: &Array) -> Result<Array, Exception> {
        match self {
            Self::Dense { weight, .. } => weight.take_axis(ids, 0),
            Self::Packed(packed) => ops::dequantize(
                packed.weight.take_axis(ids, 0)?,
                packed.scales.take_axis(ids, 0)?,
                &packed.biases.take_axis(ids, 0)?,
                packed.group_size,
                packed.bits,
            ),
        }
    }

    /// Logits, when the table is tied to the output.
    pub(crate) fn project(&self, x: &Array) -> Result<Array, Exception> {
        match self {
            Self::Dense { transposed, .. } => x.matmul(transposed),
            Self::Packed(packed) => packed.product(x),
        }
    }

    pub(super) fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::Dense { weight, .. } => vec![weight],
            Self::Packed(packed) => packed.arrays().to_vec(),
        }
    }
}
