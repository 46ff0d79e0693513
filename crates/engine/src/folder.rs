//! What is read of a model's folder before its weights.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mlx_manager_catalogue::Place;
use mlx_manager_llm::{Error, ErrorKind};

use super::{
    builtin,
    chat::{ChatModel, TextError},
    error::chain,
    model::{self, LoadError, file_name},
};

/// A folder whose model can be loaded, as far as can be told without its weights.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) chat: ChatModel,
    /// What its weights take on disk.
    pub(crate) bytes: u64,
}

impl Folder {
    /// Reads the folder of a model, which is unpacked into the cache folder before if it is the built-in one.
    pub(crate) fn read(place: &Place, cache_dir: &Path) -> Result<Self, FolderError> {
        let path = match place {
            Place::BuiltinDemo => builtin::unpack(cache_dir).map_err(FolderError::Unpack)?,
            Place::Folder(folder) => folder.clone(),
        };
        if !path.join("config.json").is_file() {
            return Err(FolderError::Missing(path));
        }
        // Before the text side: what is no model of ours may lack all else too, and that isn't what is wrong with it.
        model::check(&path)?;
        let bytes = weight_bytes(&path).map_err(FolderError::Read)?;
        Ok(Self { chat: ChatModel::load(&path)?, bytes, path })
    }
}

/// Why a folder holds no model that can be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("there is no model in the folder {}: it has no config.json", file_name(.0))]
    Missing(PathBuf),
    #[error("the built-in model can't be unpacked into the cache folder")]
    Unpack(#[source] io::Error),
    #[error("the folder can't be read")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Model(#[from] LoadError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("reading the folder was broken off")]
    Task(#[source] Box<tokio::task::JoinError>),
}

impl FolderError {
    /// What a client is told who asked for the model by this name.
    pub(crate) fn for_client(self, name: &str) -> Error {
        let (kind, message) = match &self {
            Self::Missing(_) => (ErrorKind::ModelNotFound, format!("model {name:?}: {self}")),
            _ => (ErrorKind::Unavailable, format!("model {name:?} can't be loaded: {}", chain(&self))),
        };
        Error::new(kind, message).with_param("model").with_source(self)
    }
}

fn weight_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            // Through links too: the hub's cache is made of them.
            bytes += fs::metadata(&path)?.len();
        }
    }
    Ok(bytes)
}
