//! The tensors of a folder, by name, handed out once each after a check of their shapes. Nothing is read from disk here
//! but headers: the arrays are lazy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mlx_manager_catalogue::metadata;
use mlx_rs::{Array, Dtype, error::IoError};
use serde_json::Value;

use super::{
    LoadError, config,
    footprint::{Footprint, Form},
    linear::{Bias, Embedding, Linear, Matrix, Packed},
    plan::Head,
    quantization::{Packing, Quantization},
    safetensors,
};
use crate::mlx::Precision;

/// The tensors that no module has taken yet.
pub(crate) struct Weights {
    tensors: HashMap<String, (Array, Arc<Path>)>,
    quantization: Quantization,
    precision: Precision,
    form: Form,
}

impl Weights {
    /// Opens every weights file of a folder.
    pub(crate) fn open(
        folder: &Path,
        quantization: Quantization,
        precision: Precision,
        form: Form,
    ) -> Result<Self, LoadError> {
        let mut tensors = HashMap::new();
        for path in files(folder)? {
            safetensors::check(&path)?;
            let path: Arc<Path> = path.into();
            let arrays = Array::load_safetensors(&path).map_err(|error| match error {
                IoError::Exception(error) => LoadError::Mlx(error),
                other => LoadError::Damaged { path: path.to_path_buf(), problem: other.to_string() },
            })?;
            tensors.extend(arrays.into_iter().map(|(name, array)| (name, (array, Arc::clone(&path)))));
        }
        Ok(Self { tensors, quantization, precision, form })
    }

    /// Drops the tensors whose names match: leftovers of a conversion.
    pub(crate) fn drop_where(&mut self, matches: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| !matches(name));
    }

    /// A floating-point tensor.
    pub(crate) fn float(&mut self, name: &str, shape: &[i32]) -> Result<Array, LoadError> {
        let (array, path) = self.take(name)?;
        fits(&array, &path, name, shape)?;
        if !matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) {
            return Err(wrong(&path, name, format!("has the type {:?} where floats are needed", array.dtype())));
        }
        Ok(self.precision.apply(array)?)
    }

    /// The projection at `path`, from `input` to `output` features.
    pub(crate) fn linear(&mut self, path: &str, (input, output): (i32, i32), bias: Bias) -> Result<Linear, LoadError> {
        let matrix = match self.packed(path, (input, output))? {
            Some(packed) if self.form == Form::Unpacked => Matrix::Dense(packed.unpacked()?.transpose()?),
            Some(packed) => Matrix::Packed(packed),
            None => Matrix::Dense(self.float(&format!("{path}.weight"), &[output, input])?.transpose()?),
        };
        let bias = match bias {
            Bias::None => None,
            Bias::PerOutput => Some(self.float(&format!("{path}.bias"), &[output])?),
        };
        Ok(Linear { matrix, bias })
    }

    /// The table at `path`, of `vocabulary` vectors. One that only looks up stays packed: a row costs next to nothing.
    pub(crate) fn embedding(
        &mut self,
        path: &str,
        (vocabulary, hidden): (i32, i32),
        head: Head,
    ) -> Result<Embedding, LoadError> {
        match self.packed(path, (hidden, vocabulary))? {
            Some(packed) if self.form == Form::Unpacked && head == Head::Tied => {
                Ok(Embedding::dense(packed.unpacked()?)?)
            }
            Some(packed) => Ok(Embedding::Packed(packed)),
            None => Ok(Embedding::dense(self.float(&format!("{path}.weight"), &[vocabulary, hidden])?)?),
        }
    }

    /// Ends the taking: a tensor that is left over belongs to a computation that we would leave out.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        let first = self.tensors.into_iter().min_by(|a, b| a.0.cmp(&b.0));
        match first {
            None => Ok(()),
            Some((name, (_, path))) => Err(wrong(&path, &name, "has no place in this architecture".to_owned())),
        }
    }

    /// The weights at `path` if they are packed, which is told by their scales.
    fn packed(&mut self, path: &str, (input, output): (i32, i32)) -> Result<Option<Packed>, LoadError> {
        let named = self.quantization.paths.get(path).copied();
        let scales_name = format!("{path}.scales");
        if named == Some(Packing::Dense) || !self.tensors.contains_key(&scales_name) {
            return Ok(None);
        }
        let weight_name = format!("{path}.weight");
        let (weight, file) = self.take(&weight_name)?;
        if weight.dtype() != Dtype::Uint32 || weight.ndim() != 2 {
            return Err(wrong(&file, &weight_name, format!("of type {:?} is not packed", weight.dtype())));
        }
        let groups = match self.tensors.get(&scales_name) {
            Some((scales, _)) if scales.ndim() == 2 && scales.dim(1) > 0 => scales.dim(1),
            _ => return Err(wrong(&file, &scales_name, "must have two dimensions".to_owned())),
        };
        // Converters don't name every path, so the shapes decide.
        let group_size = input / groups;
        let bits = i32::try_from(i64::from(weight.dim(1)) * 32 / i64::from(input)).unwrap_or_default();
        if ![2, 3, 4, 5, 6, 8].contains(&bits) || ![32, 64, 128].contains(&group_size) {
            let problem = format!("of {bits} bits in groups of {group_size} is not supported");
            return Err(wrong(&file, &weight_name, problem));
        }
        if let Some(Packing::Affine(named)) = named
            && (named.bits, named.group_size) != (bits, group_size)
        {
            let problem = format!(
                "has {bits} bits in groups of {group_size}, but config.json says {} in groups of {}",
                named.bits, named.group_size
            );
            return Err(wrong(&file, &weight_name, problem));
        }
        let packed_columns = i32::try_from(i64::from(input) * i64::from(bits) / 32).unwrap_or_default();
        fits(&weight, &file, &weight_name, &[output, packed_columns])?;
        let shape = [output, input / group_size];
        let scales = self.float(&scales_name, &shape)?;
        let biases = self.float(&format!("{path}.biases"), &shape)?;
        Ok(Some(Packed { weight, scales, biases, group_size, bits }))
    }

    fn take(&mut self, name: &str) -> Result<(Array, Arc<Path>), LoadError> {
        self.tensors.remove(name).ok_or_else(|| LoadError::MissingTensor { tensor: name.to_owned() })
    }
}

/// Checks the header of every weights file of a folder, and tells from them what the weights will take.
pub(super) fn measure(
    folder: &Path,
    quantization: &Quantization,
    head: Head,
    precision: Precision,
) -> Result<Footprint, LoadError> {
    let mut tensors = BTreeMap::new();
    for path in files(folder)? {
        tensors.extend(safetensors::check(&path)?);
    }
    Ok(Footprint::of(&tensors, quantization, head, precision))
}

/// The weights files: those the index names, or all of them.
///
/// Converters leave the original's index behind, which names files that aren't there beside weights that are whole without
/// it: if none of the index's files is there, or the only other file is the whole model's, the index is passed over.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>, LoadError> {
    let index = folder.join("model.safetensors.index.json");
    let present = present(folder)?;
    let all = |present: BTreeSet<PathBuf>| match present.is_empty() {
        true => Err(LoadError::NoWeights { folder: folder.to_path_buf() }),
        false => Ok(present),
    };
    if !index.exists() {
        return all(present);
    }
    let named = named(&index)?;
    let outside = named.iter().find(|file| file.contains(['/', '\\']) || !file.ends_with(".safetensors"));
    if let Some(file) = outside {
        return Err(LoadError::Damaged { path: index, problem: format!("{file:?} is no file of this folder") });
    }
    let named: BTreeSet<PathBuf> = named.iter().map(|file| folder.join(file)).collect();
    let Some(missing) = named.iter().find(|file| !file.exists()) else {
        return if named.is_empty() { all(present) } else { Ok(named) };
    };
    let whole = folder.join("model.safetensors");
    if present.contains(&whole) && !named.contains(&whole) {
        return Ok(BTreeSet::from([whole]));
    }
    // A set of shards of its own, cut otherwise than the index says.
    if !present.is_empty() && named.is_disjoint(&present) && shards_are_whole(&present) {
        return Ok(present);
    }
    Err(LoadError::MissingFile { path: missing.clone() })
}

/// The files that an index names; a damaged one names none.
fn named(index: &Path) -> Result<BTreeSet<String>, LoadError> {
    let map = metadata::parse(&config::read(index)?).unwrap_or_default();
    let files = map.get("weight_map").and_then(Value::as_object).into_iter().flatten();
    Ok(files.filter_map(|(_, file)| file.as_str().map(str::to_owned)).collect())
}

/// Whether files are numbered to an end that is reached: `model-00001-of-00002.safetensors` and so on.
fn shards_are_whole(files: &BTreeSet<PathBuf>) -> bool {
    let part = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix("model-")?.strip_suffix(".safetensors")?.to_owned();
        let (part, count) = name.split_once("-of-")?;
        Some((part.parse().ok()?, count.parse().ok()?))
    };
    let parts: Option<BTreeSet<(usize, usize)>> = files.iter().map(part).collect();
    parts.is_some_and(|parts| parts.iter().copied().eq((1..=files.len()).map(|part| (part, files.len()))))
}

/// Every weights file that is there.
fn present(folder: &Path) -> Result<BTreeSet<PathBuf>, LoadError> {
    let read_error = |source| LoadError::Read { path: PathBuf::from(folder), source };
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // A dangling link is a file that isn't there.
        if name.starts_with("model") && name.ends_with(".safetensors") && path.exists() {
            files.insert(path);
        }
    }
    Ok(files)
}

fn fits(array: &Array, path: &Path, name: &str, shape: &[i32]) -> Result<(), LoadError> {
    if array.shape() == shape {
        return Ok(());
    }
    Err(wrong(path, name, format!("has the shape {:?} where {shape:?} is needed", array.shape())))
}

fn wrong(path: &Path, tensor: &str, problem: String) -> LoadError {
    LoadError::Tensor { path: path.to_path_buf(), tensor: tensor.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The names of the files that are taken of a folder with these, and an index that names those.
    fn taken(there: &[&str], named: &[&str]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        for name in there {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let map: serde_json::Map<String, Value> =
            named.iter().enumerate().map(|(index, file)| (format!("tensor{index}"), json!(file))).collect();
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        files(folder.path()).map(|files| files.iter().map(name).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_stale_index_is_passed_over_and_a_missing_shard_is_named() {
        let original = ["model-00001-of-00005.safetensors", "model-00005-of-00005.safetensors"];
        let whole = ["model.safetensors"];
        let own = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(taken(&whole, &original).unwrap(), whole);
        assert_eq!(taken(&own, &original).unwrap(), own);
        // One that is only left over beside the whole.
        assert_eq!(taken(&["model.safetensors", original[0]], &original).unwrap(), whole);
        assert_eq!(taken(&["model.safetensors", "model-00009.safetensors"], &whole).unwrap(), whole);
        assert_eq!(taken(&whole, &[]).unwrap(), whole);
        for there in [vec![original[0]], vec![own[0]], vec![]] {
            assert!(taken(&there, &original).unwrap_err().contains("model-0000"), "{there:?}");
        }
        assert!(taken(&whole, &["../model.safetensors"]).is_err());
    }

    #[test]
    fn a_damaged_index_names_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), "").unwrap();
        fs::write(folder.path().join("model.safetensors.index.json"), "{").unwrap();
        assert_eq!(files(folder.path()).unwrap().len(), 1);
    }
}
