//! Takes a model off the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::folder;

/// Why a model stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its folder isn't ours to remove.
    #[error("{} is not below {}", folder.display(), models_dir.display())]
    Elsewhere {
        /// The model's folder.
        folder: PathBuf,
        /// `local.models_dir`
        models_dir: PathBuf,
    },
    /// The disk refuses.
    #[error("{} can't be removed", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Removes a model's folder and returns the bytes that this frees. It goes in one step, so that nobody lists half a model;
/// whoever has its files open keeps them. Of a folder that is a link, the link goes.
///
/// # Errors
/// When it isn't below `models_dir`, not even by links, or the disk refuses.
pub fn remove(model: &Path, models_dir: &Path) -> Result<u64, RemoveError> {
    let outer = model.parent().unwrap_or(models_dir);
    let real = |path: &Path| fs::canonicalize(path).map_err(failure(path));
    let real_models_dir = real(models_dir)?;
    if !real(outer)?.starts_with(&real_models_dir) || real(model)? == real_models_dir {
        return Err(RemoveError::Elsewhere { folder: model.to_owned(), models_dir: models_dir.to_owned() });
    }
    if fs::symlink_metadata(model).map_err(failure(model))?.is_symlink() {
        fs::remove_file(model).map_err(failure(model))?;
        return Ok(0);
    }
    let bytes = folder::bytes(model).map_err(failure(model))?;
    let aside = models_dir.join(folder::HIDDEN).join("removed");
    // What a removal left that was cut short.
    remove_all(&aside)?;
    fs::create_dir_all(models_dir.join(folder::HIDDEN)).map_err(failure(&aside))?;
    fs::rename(model, &aside).map_err(failure(model))?;
    remove_all(&aside)?;
    if outer != models_dir {
        match fs::remove_dir(outer) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(failure(outer)(error)),
            _ => {}
        }
    }
    Ok(bytes)
}

fn remove_all(folder: &Path) -> Result<(), RemoveError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure(folder)(error)),
        _ => Ok(()),
    }
}

fn failure(path: &Path) -> impl FnOnce(io::Error) -> RemoveError {
    |source| RemoveError::Disk { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), "0123456789").unwrap();
    }

    #[test]
    fn a_model_goes_with_its_empty_folder_and_tells_what_it_freed() {
        let root = tempfile::tempdir().unwrap();
        let models = root.path().join("models");
        for name in ["org/one", "org/two", "plain"] {
            put(&models.join(name));
        }
        put(&models.join(".partial/removed"));
        assert_eq!(remove(&models.join("org/one"), &models).unwrap(), 10);
        assert!(!models.join("org/one").exists() && models.join("org/two").exists());
        assert_eq!(remove(&models.join("org/two"), &models).unwrap(), 10);
        assert!(!models.join("org").exists());
        assert_eq!(remove(&models.join("plain"), &models).unwrap(), 10);
        assert_eq!(fs::read_dir(models.join(".partial")).unwrap().count(), 0);
    }

    #[test]
    fn nothing_outside_the_models_folder_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let (models, outside) = (root.path().join("models"), root.path().join("outside"));
        fs::create_dir_all(&models).unwrap();
        put(&outside.join("model"));
        symlink(&outside, models.join("org")).unwrap();
        symlink(outside.join("model"), models.join("linked")).unwrap();
        for model in [outside.join("model"), models.join("org/model"), models.join("../outside/model"), models.clone()]
        {
            assert!(matches!(remove(&model, &models), Err(RemoveError::Elsewhere { .. })), "{model:?}");
        }
        assert_eq!(remove(&models.join("linked"), &models).unwrap(), 0);
        assert!(!models.join("linked").exists() && outside.join("model/config.json").exists());
        assert!(matches!(remove(&models.join("gone"), &models), Err(RemoveError::Disk { .. })));
    }
}
