//! The tensors of a folder, by name, handed out once each after a check of their shapes. Nothing is read from disk here
//! but headers: the arrays are lazy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mlx_rs::{Array, Dtype, error::IoError};
use serde::Deserialize;

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

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
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
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>, LoadError> {
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        let named: Index = config::parse(&index, &config::read(&index)?)?;
        let outside =
            named.weight_map.values().find(|file| file.contains(['/', '\\']) || !file.ends_with(".safetensors"));
        if let Some(file) = outside {
            return Err(LoadError::Damaged { path: index, problem: format!("{file:?} is no file of this folder") });
        }
        let files: BTreeSet<PathBuf> = named.weight_map.values().map(|file| folder.join(file)).collect();
        if !files.is_empty() {
            return Ok(files);
        }
    }
    let read_error = |source| LoadError::Read { path: PathBuf::from(folder), source };
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            files.insert(path);
        }
    }
    if files.is_empty() { Err(LoadError::NoWeights { folder: folder.to_path_buf() }) } else { Ok(files) }
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
