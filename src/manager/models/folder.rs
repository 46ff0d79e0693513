//! A model's folder: what was pulled into it, and how large it is.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// In the models folder, what is none: the catalogue passes over hidden names.
pub(super) const HIDDEN: &str = ".partial";

/// In a pulled model's folder: a [`Receipt`].
pub(super) const RECEIPT: &str = ".pulled.json";

/// What a model's folder was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// `organisation/name`
    pub repository: String,
    /// The commit of its files.
    pub commit: String,
}

impl Receipt {
    /// That of a folder, if it was made by a pull.
    pub fn of(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(RECEIPT)).ok()?).ok()
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join(RECEIPT), serde_json::to_vec(self)?)
    }
}

/// Bytes of a folder and what is below it; links count for nothing.
pub(super) fn bytes(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        Ok(sum + if metadata.is_dir() { bytes(&entry.path())? } else { metadata.len() })
    })
}
