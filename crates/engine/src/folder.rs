//! What is read of a model's folder before its weights.

use std::{
    io,
    path::{Path, PathBuf},
};

use mlx_manager_catalogue::Place;
use mlx_manager_llm::{Error, ErrorKind};

use super::{
    builtin,
    chat::{ChatModel, TextError},
    error::chain,
    mlx::Precision,
    model::{self, Footprint, LoadError, file_name},
};

/// A folder whose model can be loaded, as far as can be told without its weights.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) chat: ChatModel,
    /// What its weights will take in memory.
    pub(crate) footprint: Footprint,
}

impl Folder {
    /// Reads the folder of a model, which is unpacked into the cache folder before if it is the built-in one.
    pub(crate) fn read(place: &Place, cache_dir: &Path, precision: Precision) -> Result<Self, FolderError> {
        let path = match place {
            Place::BuiltinDemo => builtin::unpack(cache_dir).map_err(FolderError::Unpack)?,
            Place::Folder(folder) => folder.clone(),
        };
        if !path.join("config.json").is_file() {
            return Err(FolderError::Missing(path));
        }
        // Before the text side: what is no model of ours may lack all else too, and that isn't what is wrong with it.
        let footprint = model::measure(&path, precision)?;
        Ok(Self { chat: ChatModel::load(&path)?, footprint, path })
    }
}

/// Why a folder holds no model that can be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("there is no model in the folder {}: it has no config.json", file_name(.0))]
    Missing(PathBuf),
    #[error("the built-in model can't be unpacked into the cache folder")]
    Unpack(#[source] io::Error),
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
