//! Why a model could not be loaded: always with the file, key or tensor at fault. A client may read it, so files go by
//! their names, except for what MLX says.

use std::{
    io,
    path::{Path, PathBuf},
};

use mlx_manager_catalogue::SUPPORTED;

use crate::mlx::Exception;

/// The last part of a path. Errors that a client may read name files by it, since where they lie on the server is not the
/// client's business; the log has the folder.
pub(crate) fn file_name(path: &Path) -> std::path::Display<'_> {
    path.file_name().map_or(path, Path::new).display()
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// A file can't be read.
    #[error("can't read {}", file_name(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not valid", file_name(path))]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A model type that this engine doesn't know.
    #[error("config.json: the model type {found:?} is not supported; supported are {}", SUPPORTED.join(", "))]
    Architecture {
        /// What config.json says.
        found: String,
    },
    /// config.json doesn't say what kind of model it is.
    #[error("config.json: `model_type` is missing; supported are {}", SUPPORTED.join(", "))]
    NoArchitecture,
    /// A key of config.json is missing, wrong or not supported.
    #[error("config.json: `{key}` {problem}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder has no weights.
    #[error("{} holds no model*.safetensors", file_name(folder))]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that the index of the weights names is not there.
    #[error("{} is missing, which model.safetensors.index.json names", file_name(path))]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A weights file is damaged.
    #[error("{} is damaged: {problem}", file_name(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No file has a tensor that the model needs.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor does not fit the model.
    #[error("{}: tensor `{tensor}` {problem}", file_name(path))]
    Tensor {
        /// The file it is in.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// MLX failed.
    #[error("MLX failed while loading")]
    Mlx(#[from] Exception),
}

impl LoadError {
    /// A key of config.json is at fault.
    pub(super) fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into() }
    }
}
