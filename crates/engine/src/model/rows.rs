//! Keys and values as bytes, position by position, so that those of any span of positions lie together.

use std::ops::Range;

use super::key_value::KeyValueRun;
use crate::mlx::{Array, Dtype, Exception};

/// How what the layers of a model have of one position, its row, lies in bytes: keys and values, layer by layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowLayout {
    parts: Vec<Part>,
}

/// The keys or the values of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    heads: usize,
    /// Bytes of a head.
    width: usize,
    dtype: Dtype,
}

impl RowLayout {
    /// That of the model that these are the layers of.
    pub(crate) fn of(layers: &[KeyValueRun]) -> Self {
        let part = |array: &Array| {
            let [.., heads, _, width] = array.shape() else { return Part { heads: 0, width: 0, dtype: array.dtype() } };
            let (heads, width) = (size(*heads), size(*width) * array.item_size());
            Part { heads, width, dtype: array.dtype() }
        };
        Self { parts: layers.iter().flat_map(KeyValueRun::arrays).map(part).collect() }
    }

    /// Bytes of a row.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// The rows of some positions of a run that was computed.
    pub(crate) fn rows(&self, layers: &[KeyValueRun], positions: Range<usize>) -> Result<Vec<u8>, Exception> {
        let mut rows = vec![0; positions.len() * self.bytes()];
        let mut offset = 0;
        for (array, part) in layers.iter().flat_map(KeyValueRun::arrays).zip(&self.parts) {
            let bytes = array.view_dtype(Dtype::Uint8)?;
            let bytes = bytes.try_as_slice::<u8>().map_err(|error| Exception::custom(error.to_string()))?;
            let heads = bytes.chunks_exact((size(array.dim(2)) * part.width).max(1));
            for (head, to) in heads.zip((offset..).step_by(part.width.max(1))) {
                let cells = head.chunks_exact(part.width.max(1)).skip(positions.start);
                for (row, cell) in rows.chunks_exact_mut(self.bytes().max(1)).zip(cells) {
                    if let Some(to) = row.get_mut(to..to + part.width) {
                        to.copy_from_slice(cell);
                    }
                }
            }
            offset += part.bytes();
        }
        Ok(rows)
    }

    /// The bytes of the arrays that rows are of. Needs no MLX.
    pub(crate) fn sorted(&self, rows: &[u8]) -> Vec<Vec<u8>> {
        let mut offset = 0;
        let sorted = self.parts.iter().map(|part| {
            let mut bytes = Vec::with_capacity(rows.len() / self.bytes().max(1) * part.bytes());
            for head in 0..part.heads {
                let from = offset + head * part.width;
                let cells = rows.chunks_exact(self.bytes().max(1)).filter_map(|row| row.get(from..from + part.width));
                cells.for_each(|cell| bytes.extend_from_slice(cell));
            }
            offset += part.bytes();
            bytes
        });
        sorted.collect()
    }

    /// The layers of a run of so many positions, of [`Self::sorted`] bytes.
    pub(crate) fn layers(&self, sorted: &[Vec<u8>], positions: usize) -> Result<Vec<KeyValueRun>, Exception> {
        let index = |number: usize| i32::try_from(number).map_err(|_| Exception::custom("more than 2^31 bytes"));
        let arrays = sorted.iter().zip(&self.parts).map(|(bytes, part)| {
            // Their product must be an index too.
            index(bytes.len())?;
            let shape = [1, index(part.heads)?, index(positions)?, index(part.width)?];
            if bytes.len() != part.bytes() * positions {
                return Err(Exception::custom("bytes of another shape"));
            }
            Array::from_slice(bytes, &shape).view_dtype(part.dtype)
        });
        let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
        let pairs = arrays.chunks_exact(2).filter_map(|pair| match pair {
            [keys, values] => Some(KeyValueRun::of(keys.clone(), values.clone())),
            _ => None,
        });
        Ok(pairs.collect())
    }
}

impl Part {
    fn bytes(&self) -> usize {
        self.heads * self.width
    }
}

fn size(dimension: i32) -> usize {
    usize::try_from(dimension).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;

    #[test]
    fn rows_of_a_span_become_that_span_again() {
        let array = |first: i32, heads: i32, width: i32, dtype| {
            let numbers: Vec<f32> = (first..first + heads * 9 * width).map(|number| number as f32).collect();
            Array::from_slice(&numbers, &[1, heads, 9, width]).as_dtype(dtype).unwrap()
        };
        let run = |first, heads, width, dtype| {
            KeyValueRun::of(array(first, heads, width, dtype), array(first + 50, heads, width, dtype))
        };
        let layers = [run(0, 2, 3, Dtype::Float32), run(7, 1, 5, Dtype::Bfloat16)];
        mlx::evaluate(layers.iter().flat_map(KeyValueRun::arrays)).unwrap();
        let layout = RowLayout::of(&layers);
        assert_eq!(layout.bytes(), 2 * (2 * 3 * 4) + 2 * (5 * 2));
        let mut rows = layout.rows(&layers, 2..4).unwrap();
        rows.extend(layout.rows(&layers, 4..8).unwrap());
        assert_eq!(rows.len(), 6 * layout.bytes());
        let again = layout.layers(&layout.sorted(&rows), 6).unwrap();
        let expected: Vec<_> = layers.iter().map(|layer| layer.part(2..8).unwrap()).collect();
        assert_eq!(RowLayout::of(&again), layout);
        for (one, other) in again.iter().zip(&expected).flat_map(|(a, b)| a.arrays().into_iter().zip(b.arrays())) {
            assert_eq!(one.shape(), other.shape());
            let numbers = |array: &Array| array.as_dtype(Dtype::Float32).unwrap().to_vec_exact::<f32>().unwrap();
            assert_eq!(numbers(one), numbers(other));
        }
        assert!(layout.layers(&layout.sorted(&rows), 5).is_err());
    }
}
