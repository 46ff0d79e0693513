//! `builtin:demo`: the model inside the binary.
//!
//! MLX reads weights from files, so the model is unpacked into the cache folder before its first use. The folder's name
//! holds a hash of the contents, so that daemons of different versions don't quarrel, and it appears by one rename, so
//! that another daemon sees all of it or nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mlx_manager_signal::event::FolderLeftOver;
use uuid::Uuid;

/// What a request calls it when the config names it so; its folder is named after it too.
const NAME: &str = "demo";

const FILES: [(&str, &[u8]); 6] = [
    ("chat_template.jinja", include_bytes!("../../../assets/demo-model/chat_template.jinja")),
    ("config.json", include_bytes!("../../../assets/demo-model/config.json")),
    ("generation_config.json", include_bytes!("../../../assets/demo-model/generation_config.json")),
    ("model.safetensors", include_bytes!("../../../assets/demo-model/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../../assets/demo-model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../assets/demo-model/tokenizer_config.json")),
];

/// Attempts to put the folder in place while other daemons do the same.
const ATTEMPTS: usize = 5;

/// The folder with the demo model below `cache_dir`, unpacked or repaired if need be.
///
/// # Errors
/// When the cache folder can't be written.
pub(crate) fn unpack(cache_dir: &Path) -> io::Result<PathBuf> {
    let folder = cache_dir.join(format!("{NAME}-{:016x}", hash()));
    if is_whole(&folder) {
        return Ok(folder);
    }
    fs::create_dir_all(cache_dir)?;
    let fresh = Scratch::new(cache_dir);
    fs::create_dir(&fresh.0)?;
    for (name, content) in FILES {
        fs::write(fresh.0.join(name), content)?;
    }
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match fs::rename(&fresh.0, &folder) {
            Ok(()) => return Ok(folder),
            Err(error) => last = Some(error),
        }
        // The name is taken: by another daemon's good copy, or by a damaged one that is moved out of the way. A daemon
        // that reads from the damaged copy keeps its open files.
        if is_whole(&folder) {
            return Ok(folder);
        }
        let damaged = Scratch::new(cache_dir);
        if let Err(error) = fs::rename(&folder, &damaged.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::Other.into()))
}

/// A folder of ours that is removed when it is no longer needed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(cache_dir: &Path) -> Self {
        Self(cache_dir.join(format!(".{NAME}-{}", Uuid::now_v7().simple())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = fs::remove_dir_all(&self.0)
        {
            FolderLeftOver { folder: &self.0, error: &error }.emit();
        }
    }
}

/// Whether the folder has exactly our files. Comparing 1.6 MB takes about a millisecond, and no damage escapes it.
fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(name, content)| fs::read(folder.join(name)).is_ok_and(|found| found == *content))
}

/// FNV-1a: it names a folder and guards against nothing.
fn hash() -> u64 {
    let bytes = FILES.iter().flat_map(|(name, content)| name.bytes().chain(content.iter().copied()));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_unpacked_once_and_repaired() {
        let cache = tempfile::tempdir().unwrap();
        let cache_dir = cache.path().join("new").join("cache");
        let folder = unpack(&cache_dir).unwrap();
        assert_eq!(names(&folder), FILES.map(|(name, _)| name.to_owned()));
        let written = fs::metadata(folder.join("config.json")).unwrap().modified().unwrap();
        assert_eq!(unpack(&cache_dir).unwrap(), folder);
        assert_eq!(fs::metadata(folder.join("config.json")).unwrap().modified().unwrap(), written);

        let mut damaged = FILES[3].1.to_vec();
        damaged[1000] ^= 1;
        fs::write(folder.join("model.safetensors"), damaged).unwrap();
        fs::remove_file(folder.join("config.json")).unwrap();
        assert_eq!(unpack(&cache_dir).unwrap(), folder);
        assert!(is_whole(&folder));
        assert_eq!(names(&cache_dir).len(), 1, "nothing is left over");
    }

    #[test]
    fn many_may_unpack_at_once() {
        let cache = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| unpack(cache.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(folders.iter().all(|folder| folder == &folders[0]));
        assert!(is_whole(&folders[0]));
        assert_eq!(names(cache.path()).len(), 1);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        fs::write(&file, "").unwrap();
        unpack(&file.join("below")).unwrap_err();
    }
}
