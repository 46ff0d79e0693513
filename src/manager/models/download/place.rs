//! Where a model is put together and where it goes: `.partial/ORG--NAME/COMMIT` below the models folder, which the
//! catalogue passes over, and then, by one rename, `ORG/NAME`, the name by which requests ask for it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags};

use super::{
    PullError, Repository,
    listing::{CONFIG, Listing},
};
use crate::manager::models::folder::{HIDDEN, RECEIPT, Receipt};

/// What there is of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Installed {
    /// Nothing.
    Absent,
    /// Another commit, or not all of it.
    Other,
    /// All of it.
    Complete,
}

/// The places of one model, held against other processes.
#[derive(Debug)]
pub(super) struct Place {
    repository: String,
    folder: PathBuf,
    /// One folder for each commit.
    scratches: PathBuf,
    _lock: File,
}

impl Place {
    /// Finds out where a model goes, and keeps others from pulling it at the same time.
    pub(super) fn lock(models_dir: &Path, repository: &Repository) -> Result<Self, PullError> {
        let Repository { organisation, name } = repository;
        let outer = models_dir.join(organisation);
        // The catalogue doesn't look for models inside of models.
        if outer.join(CONFIG).exists() {
            return Err(PullError::Taken { folder: outer });
        }
        let partial = models_dir.join(HIDDEN);
        fs::create_dir_all(&partial).map_err(failure(&partial))?;
        // It stays: were it removed, two processes could hold a lock on two files of this name.
        let path = partial.join(format!("{organisation}--{name}.lock"));
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(failure(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PullError::Busy { repository: repository.to_string() }),
            // Some network file systems have no locks, and a pull there is worth more than the check.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => return Err(PullError::Disk { path, source }),
        }
        Ok(Self {
            repository: repository.to_string(),
            folder: outer.join(name),
            scratches: partial.join(format!("{organisation}--{name}")),
            _lock: lock,
        })
    }

    /// Where the model will be.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is there of the model.
    pub(super) fn installed(&self, listing: &Listing) -> Result<Installed, PullError> {
        if !self.folder.exists() {
            return Ok(Installed::Absent);
        }
        let Some(receipt) = Receipt::of(&self.folder).filter(|receipt| receipt.repository == self.repository) else {
            return Err(PullError::Taken { folder: self.folder.clone() });
        };
        let complete = receipt.commit == listing.commit && present(&self.folder, listing) == listing.bytes();
        Ok(if complete { Installed::Complete } else { Installed::Other })
    }

    /// The folder in which a commit's files are gathered. What other commits left is removed.
    pub(super) fn scratch(&self, commit: &str) -> Result<PathBuf, PullError> {
        let scratch = self.scratches.join(commit);
        fs::create_dir_all(&scratch).map_err(failure(&scratch))?;
        for other in fs::read_dir(&self.scratches).map_err(failure(&self.scratches))?.flatten() {
            if other.file_name() != commit {
                fs::remove_dir_all(other.path()).map_err(failure(&other.path()))?;
            }
        }
        Ok(scratch)
    }

    /// Puts the gathered files in the model's place, in one step.
    pub(super) fn install(&self, scratch: &Path, listing: &Listing, installed: Installed) -> Result<(), PullError> {
        let receipt = Receipt { repository: self.repository.clone(), commit: listing.commit.clone() };
        receipt.write(scratch).map_err(failure(scratch))?;
        for entry in fs::read_dir(scratch).map_err(failure(scratch))?.flatten() {
            // An earlier choice of files may have left one.
            let name = entry.file_name();
            if name != RECEIPT && listing.files.iter().all(|file| file.name.as_str() != name) {
                fs::remove_file(entry.path()).map_err(failure(&entry.path()))?;
            }
        }
        // Before the rename, so that a power cut can't leave a model with holes.
        File::open(scratch).and_then(|folder| folder.sync_all()).map_err(failure(scratch))?;
        let outer = self.folder.parent().unwrap_or(&self.folder);
        fs::create_dir_all(outer).map_err(failure(outer))?;
        let placed = match installed {
            Installed::Absent => fs::rename(scratch, &self.folder),
            // A daemon that has the old files open keeps them.
            Installed::Other | Installed::Complete => {
                rustix::fs::renameat_with(CWD, scratch, CWD, &self.folder, RenameFlags::EXCHANGE).map_err(Into::into)
            }
        };
        placed.map_err(failure(&self.folder))?;
        fs::remove_dir_all(&self.scratches).map_err(failure(&self.scratches))
    }
}

/// Bytes of a listing that a folder has.
pub(super) fn present(folder: &Path, listing: &Listing) -> u64 {
    let length = |name: &str| fs::metadata(folder.join(name)).map_or(0, |metadata| metadata.len());
    // One that is too long is thrown away.
    listing.files.iter().map(|file| Some(length(&file.name)).filter(|length| *length <= file.size).unwrap_or(0)).sum()
}

/// Checks that a folder has room for so many bytes.
pub(super) fn check_free(folder: &Path, needed: u64) -> Result<(), PullError> {
    let space = rustix::fs::statvfs(folder).map_err(io::Error::from).map_err(failure(folder))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if needed > free {
        return Err(PullError::DiskFull { folder: folder.to_owned(), needed, free });
    }
    Ok(())
}

fn failure(path: &Path) -> impl FnOnce(io::Error) -> PullError {
    |source| PullError::Disk { path: path.to_owned(), source }
}
