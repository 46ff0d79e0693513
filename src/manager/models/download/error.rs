//! Why a model can't be pulled, and what its user can do about it.

use std::{io, path::PathBuf};

use bytesize::ByteSize;

/// Why a model can't be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The hub knows no such repository, or doesn't admit to it.
    #[error("the hub has no model {repository}")]
    UnknownModel {
        /// `organisation/name`
        repository: String,
    },
    /// The hub knows it and denies access.
    #[error("the hub denies access to {repository} (status {status})")]
    Gated {
        /// `organisation/name`
        repository: String,
        /// Where its terms can be accepted.
        page: String,
        /// The HTTP status.
        status: u16,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no revision {revision:?}")]
    UnknownRevision {
        /// `organisation/name`
        repository: String,
        /// What was asked for.
        revision: String,
    },
    /// Its files are none that the engine could load.
    #[error("{repository} is no model that can be served here: {reason}")]
    Unusable {
        /// `organisation/name`
        repository: String,
        /// What is missing.
        reason: String,
    },
    /// The hub's answer makes no sense, or would do harm.
    #[error("the hub's answer can't be used: {reason}")]
    Answer {
        /// What is wrong with it.
        reason: String,
    },
    /// The hub, or where it sent us, refuses for another reason.
    #[error("{host} answered with status {status}")]
    Refused {
        /// Who.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// No answer, or one that broke off.
    #[error("{host} can't be reached")]
    Unreachable {
        /// Who.
        host: String,
        /// Why.
        source: reqwest::Error,
    },
    /// What arrived isn't what the hub says it is.
    #[error("{file} arrived damaged, twice")]
    Damaged {
        /// Its name.
        file: String,
    },
    /// Another process pulls the same model.
    #[error("another process is pulling {repository}")]
    Busy {
        /// `organisation/name`
        repository: String,
    },
    /// The model's folder is there, and not of our making.
    #[error("{} is in the way: it was not made by a pull", folder.display())]
    Taken {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk has no room.
    #[error("{} needs {} more and has {}", folder.display(), ByteSize(*needed), ByteSize(*free))]
    DiskFull {
        /// The folder.
        folder: PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that there is room for.
        free: u64,
    },
    /// The disk refuses.
    #[error("{} can't be written", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl PullError {
    /// The kind, one of a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "unknown_model",
            Self::Gated { .. } => "gated",
            Self::UnknownRevision { .. } => "unknown_revision",
            Self::Unusable { .. } => "unusable",
            Self::Answer { .. } => "answer",
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::Damaged { .. } => "damaged",
            Self::Busy { .. } => "busy",
            Self::Taken { .. } => "taken",
            Self::DiskFull { .. } => "disk_full",
            Self::Disk { .. } => "disk",
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::UnknownModel { .. } => {
                "check the name; a private model needs an access token in HF_TOKEN that may read it".to_owned()
            }
            Self::Gated { page, .. } => {
                format!("accept the licence at {page}, and set HF_TOKEN to an access token of that account")
            }
            Self::UnknownRevision { .. } => {
                "leave out the @ for the newest version, or name a branch, a tag or a commit".to_owned()
            }
            Self::Unusable { .. } => {
                "look for a conversion to MLX, for instance at https://huggingface.co/mlx-community".to_owned()
            }
            Self::Answer { .. } => "check HF_ENDPOINT".to_owned(),
            Self::Refused { status: 401, .. } => "set HF_TOKEN to a valid access token, or unset it".to_owned(),
            Self::Refused { .. } => "run the command again later; what arrived is kept".to_owned(),
            Self::Unreachable { .. } => {
                "check the network, HF_ENDPOINT and HTTPS_PROXY, and run the command again; what arrived is kept"
                    .to_owned()
            }
            Self::Damaged { .. } => {
                "run the command again; should it repeat itself, tell the model's authors".to_owned()
            }
            Self::Busy { .. } => "wait for it, or stop it".to_owned(),
            Self::Taken { .. } => "move it away, or point local.models_dir elsewhere".to_owned(),
            Self::DiskFull { .. } => "free space, or point local.models_dir to another disk".to_owned(),
            Self::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free space and run the command again; what arrived is kept".to_owned()
            }
            Self::Disk { .. } => "check who may write there, or point local.models_dir elsewhere".to_owned(),
        }
    }
}
