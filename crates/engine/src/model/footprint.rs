//! What a model's weights take in memory, told from the headers of its files before anything is read.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    plan::Head,
    quantization::{Packing, Quantization},
    safetensors::Stored,
};
use crate::mlx::Precision;

/// How packed weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are stored, as are all others.
    Stored,
    /// As floats: all that multiply activations. On a CPU products with packed weights take as many times longer as there are
    /// rows; with floats sixteen rows take half as long again as one.
    Unpacked,
}

impl Form {
    /// What logs and listings call it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Unpacked => "unpacked",
        }
    }
}

/// Where a model is, and how it is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) folder: PathBuf,
    pub(crate) form: Form,
}

impl From<PathBuf> for Source {
    fn from(folder: PathBuf) -> Self {
        Self { folder, form: Form::Stored }
    }
}

/// Bytes of a model's weights in memory, in either form. They are equal when nothing is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// With which it was measured.
    pub(crate) precision: Precision,
    pub(crate) stored: u64,
    pub(crate) unpacked: u64,
}

/// The table that looks tokens up.
const EMBEDDING: &str = "embed_tokens";

impl Footprint {
    /// Of tensors by name. With [`Precision::Float32`] half floats are widened.
    pub(super) fn of(
        tensors: &BTreeMap<String, Stored>,
        quantization: &Quantization,
        head: Head,
        precision: Precision,
    ) -> Self {
        let mut footprint = Self { precision, stored: 0, unpacked: 0 };
        // What is left out when a model is built isn't there.
        let is_left_out =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || (head == Head::Tied && name.starts_with("lm_head."));
        for (name, tensor) in tensors.iter().filter(|(name, _)| !is_left_out(name)) {
            let stored = in_memory(tensor, precision);
            footprint.stored += stored;
            let Some((path, part)) = name.rsplit_once('.') else {
                footprint.unpacked += stored;
                continue;
            };
            let scales = tensors.get(&format!("{path}.scales"));
            let looks_up_only = path.ends_with(EMBEDDING) && head == Head::Separate;
            footprint.unpacked += match (part, scales) {
                (_, None) => stored,
                _ if looks_up_only => stored,
                ("weight", Some(scales)) => unpacked_bytes(tensor, scales, quantization, path).unwrap_or(stored),
                ("scales" | "biases", Some(_)) => 0,
                _ => stored,
            };
        }
        footprint
    }

    /// In this form.
    pub(crate) fn bytes(self, form: Form) -> u64 {
        match form {
            Form::Stored => self.stored,
            Form::Unpacked => self.unpacked,
        }
    }

    /// Whether the forms differ at all.
    pub(crate) fn has_packed(self) -> bool {
        self.stored != self.unpacked
    }
}

fn in_memory(tensor: &Stored, precision: Precision) -> u64 {
    match (precision, tensor.dtype.as_str()) {
        (Precision::Float32, "F16" | "BF16") => tensor.bytes.saturating_mul(2),
        _ => tensor.bytes,
    }
}

/// Bytes of packed weights as floats of 32 bits. A row of `input` weights has `input` / group size scales, and `input` · bits / 32
/// elements; where what config.json says makes no sense of both, a group size that does is taken.
fn unpacked_bytes(weight: &Stored, scales: &Stored, quantization: &Quantization, path: &str) -> Option<u64> {
    let (&[rows, columns], &[_, groups]) = (weight.shape.as_slice(), scales.shape.as_slice()) else { return None };
    let told = match quantization.paths.get(path) {
        Some(Packing::Dense) => return None,
        Some(Packing::Affine(told)) => Some(*told),
        None => quantization.default,
    };
    let told = told.and_then(|told| u64::try_from(told.group_size).ok());
    let bits = |group_size: u64| columns.checked_mul(32)?.checked_div(groups.checked_mul(group_size)?);
    let sensible = |group_size: &u64| matches!(bits(*group_size), Some(2..=6 | 8));
    let group_size = told.into_iter().chain([64, 128, 32]).find(sensible)?;
    rows.checked_mul(groups)?.checked_mul(group_size)?.checked_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(dtype: &str, shape: &[u64]) -> Stored {
        let width = match dtype {
            "BF16" => 2,
            _ => 4,
        };
        Stored { dtype: dtype.to_owned(), shape: shape.to_vec(), bytes: width * shape.iter().product::<u64>() }
    }

    fn packed(path: &str, rows: u64, input: u64) -> [(String, Stored); 3] {
        [
            (format!("{path}.weight"), stored("U32", &[rows, input / 8])),
            (format!("{path}.scales"), stored("BF16", &[rows, input / 64])),
            (format!("{path}.biases"), stored("BF16", &[rows, input / 64])),
        ]
    }

    #[test]
    fn packed_projections_grow_and_a_table_that_looks_up_does_not() {
        let mut tensors = BTreeMap::from([("model.norm.weight".to_owned(), stored("BF16", &[128]))]);
        tensors.extend(packed("model.layers.0.mlp.up_proj", 256, 128));
        tensors.extend(packed("model.embed_tokens", 1000, 128));
        let of = |head, precision| Footprint::of(&tensors, &Quantization::default(), head, precision);
        let (norm, projection, table) = (512, 256 * 64 + 2 * 256 * 2 * 4, 1000 * 64 + 2 * 1000 * 2 * 4);
        let separate = of(Head::Separate, Precision::Float32);
        let sizes = (separate.stored, separate.unpacked);
        assert_eq!(sizes, (norm + projection + table, norm + 256 * 128 * 4 + table));
        let tied = of(Head::Tied, Precision::Float32);
        assert_eq!(tied.unpacked, norm + (256 + 1000) * 128 * 4);
        assert!(of(Head::Tied, Precision::Stored).stored < tied.stored, "half floats stay what they are");
    }

    #[test]
    fn without_packed_weights_both_forms_are_one() {
        let tensors = BTreeMap::from([("lm_head.weight".to_owned(), stored("BF16", &[10, 10]))]);
        let footprint = Footprint::of(&tensors, &Quantization::default(), Head::Separate, Precision::Float32);
        assert_eq!((footprint.stored, footprint.unpacked), (400, 400));
        assert!(!footprint.has_packed());
    }
}
