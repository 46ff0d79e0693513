//! The header of a safetensors file, checked before MLX sees the file: MLX reads tensors lazily on threads of its own,
//! where a file that is shorter than its header says would end the process.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::LoadError;

/// The largest header the format allows, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;

/// What a header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// As the format calls it, such as `BF16`.
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Checks that the header is well-formed and that the file holds every tensor it names; gives what it says of each.
pub(super) fn check(path: &Path) -> Result<BTreeMap<String, Stored>, LoadError> {
    let read_error = |source| LoadError::Read { path: PathBuf::from(path), source };
    let damaged = |problem: String| LoadError::Damaged { path: PathBuf::from(path), problem };
    let mut file = File::open(path).map_err(read_error)?;
    let length = file.metadata().map_err(read_error)?.len();
    let mut size = [0; 8];
    if length < 8 {
        return Err(damaged(format!("it has only {length} bytes")));
    }
    file.read_exact(&mut size).map_err(read_error)?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER || size > length - 8 {
        return Err(damaged(format!("its header claims {size} bytes of {length}")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(read_error)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|source| LoadError::Json { path: PathBuf::from(path), source })?;
    let data = length - 8 - size;
    let mut tensors = BTreeMap::new();
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry =
            serde_json::from_value(value).map_err(|error| damaged(format!("the entry of tensor `{name}`: {error}")))?;
        let (start, end) = entry.data_offsets;
        let expected = element_bytes(&entry.dtype)
            .and_then(|bytes| entry.shape.iter().try_fold(bytes, |product, dimension| product.checked_mul(*dimension)));
        match expected {
            None => return Err(damaged(format!("tensor `{name}` has the unknown type {:?}", entry.dtype))),
            Some(expected) if end.checked_sub(start) != Some(expected) => {
                return Err(damaged(format!("tensor `{name}` of {expected} bytes lies at {start}..{end}")));
            }
            Some(_) if end > data => {
                return Err(damaged(format!("tensor `{name}` ends at byte {end} of {data}; the file is cut off")));
            }
            Some(bytes) => tensors.insert(name, Stored { dtype: entry.dtype, shape: entry.shape, bytes }),
        };
    }
    Ok(tensors)
}

fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" => Some(8),
        _ => None,
    }
}
