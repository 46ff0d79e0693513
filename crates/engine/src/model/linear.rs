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

/// Projections of the same input, side by side: as one where their weights are stored alike, since it is the calls that cost
/// when there are few rows.
#[derive(Debug)]
pub(crate) struct Stacked(Vec<Linear>);

impl Stacked {
    pub(super) fn new(parts: Vec<Linear>) -> Result<Self, Exception> {
        Ok(Self(match join(&parts)? {
            Some(joined) => vec![joined],
            None => parts,
        }))
    }

    /// Their outputs in a row, over the last dimension.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array, Exception> {
        match self.0.as_slice() {
            [joined] => joined.forward(x),
            parts => {
                let parts = parts.iter().map(|part| part.forward(x)).collect::<Result<Vec<_>, _>>()?;
                ops::concatenate(&parts, -1)
            }
        }
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.0.iter().flat_map(Linear::arrays)
    }
}

/// `None` where the weights are not stored alike.
fn join(parts: &[Linear]) -> Result<Option<Linear>, Exception> {
    let side_by_side = |arrays: Vec<&Array>| ops::concatenate(&arrays, 0);
    let dense: Option<Vec<Array>> = parts
        .iter()
        .map(|part| match &part.matrix {
            Matrix::Dense(weight) => weight.transpose().ok(),
            Matrix::Packed(_) => None,
        })
        .collect();
    let packed: Option<Vec<&Packed>> = parts
        .iter()
        .map(|part| match &part.matrix {
            Matrix::Dense(_) => None,
            Matrix::Packed(packed) => Some(packed),
        })
        .collect();
    let biases: Vec<&Array> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
    if !biases.is_empty() && biases.len() < parts.len() {
        return Ok(None);
    }
    let matrix = if let Some(dense) = dense {
        Matrix::Dense(side_by_side(dense.iter().collect())?.transpose()?)
    } else if let Some(packed) = packed
        && let Some(first) = packed.first()
        && packed.iter().all(|part| (part.bits, part.group_size) == (first.bits, first.group_size))
    {
        let all = |of: fn(&Packed) -> &Array| side_by_side(packed.iter().map(|part| of(part)).collect());
        Matrix::Packed(Packed {
            weight: all(|part| &part.weight)?,
            scales: all(|part| &part.scales)?,
            biases: all(|part| &part.biases)?,
            group_size: first.group_size,
            bits: first.bits,
        })
    } else {
        return Ok(None);
    };
    let bias = if biases.is_empty() { None } else { Some(side_by_side(biases)?) };
    Ok(Some(Linear { matrix, bias }))
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
