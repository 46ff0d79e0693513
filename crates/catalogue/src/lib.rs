//! What is on disk: the models that requests may name.
//!
//! Three sources, the first that knows a name wins: `[[local.models]]`, the folders below `local.models_dir`, and the
//! Hugging Face hub's cache. Names come from the folders, never the other way round, so no request can name a path.

pub mod metadata;

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use mlx_manager_config::{LocalConfig, LocalModel, ModelPath};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use unicode_normalization::UnicodeNormalization;

/// The least time between two looks at the disk, so that requests for unknown models can't keep it busy.
const RESCAN: Duration = Duration::from_secs(1);

/// What `model_type` may say for a model to be listed; others are found too, so that the answer can say what is wrong.
pub const SUPPORTED: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// A model that requests may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// What requests call it.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// When its folder, or the binary, was made, as far as the file system tells.
    pub created: Timestamp,
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Inside the binary.
    BuiltinDemo,
    /// A folder in MLX format.
    Folder(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltinDemo => formatter.write_str("builtin:demo"),
            Self::Folder(folder) => folder.display().fmt(formatter),
        }
    }
}

/// Knows the models on disk.
#[derive(Debug)]
pub struct Catalogue {
    named: Vec<LocalModel>,
    models_dir: PathBuf,
    hub_dir: Option<PathBuf>,
    /// When the binary was made, and with it the model inside.
    builtin_since: Timestamp,
    scan: Mutex<Scan>,
}

#[derive(Debug)]
struct Scan {
    at: Instant,
    folders: BTreeMap<String, PathBuf>,
}

impl Catalogue {
    /// Looks at the disk once.
    pub fn new(config: &LocalConfig) -> Self {
        let folders = scan(&config.models_dir, config.hub_dir.as_deref());
        Self {
            named: config.models.clone(),
            models_dir: config.models_dir.clone(),
            hub_dir: config.hub_dir.clone(),
            builtin_since: binary_since().unwrap_or_else(Timestamp::now),
            scan: Mutex::new(Scan { at: Instant::now(), folders }),
        }
    }

    /// Where the model of this name is. An unknown name is looked for on disk again, so that a folder that was added
    /// later is found without a restart. That a place is known doesn't mean that a model is there and can be loaded.
    pub fn find(&self, name: &str) -> Option<Place> {
        let wanted = composed(name);
        if let Some(model) = self.named.iter().find(|model| composed(&model.name) == wanted) {
            return Some(place(&model.path));
        }
        self.found(|folders| folders.get(&wanted).cloned()).map(Place::Folder)
    }

    /// Every model that can be expected to load, by name.
    pub fn models(&self) -> Vec<ModelEntry> {
        let mut entries = BTreeMap::new();
        self.found(|folders| {
            for (name, folder) in folders {
                entries.insert(name.clone(), Place::Folder(folder.clone()));
            }
            // Looks again if the last look is long ago.
            None::<()>
        });
        for model in &self.named {
            entries.insert(composed(&model.name), place(&model.path));
        }
        entries
            .into_iter()
            .filter_map(|(name, place)| {
                let created = match &place {
                    Place::BuiltinDemo => self.builtin_since,
                    Place::Folder(folder) => loadable_since(folder)?,
                };
                Some(ModelEntry { name, place, created })
            })
            .collect()
    }

    /// Asks what is known, and once more after a fresh look at the disk when that gave nothing.
    fn found<T>(&self, mut ask: impl FnMut(&BTreeMap<String, PathBuf>) -> Option<T>) -> Option<T> {
        let mut known = self.scan.lock();
        let found = ask(&known.folders);
        if found.is_some() || known.at.elapsed() < RESCAN {
            return found;
        }
        known.folders = scan(&self.models_dir, self.hub_dir.as_deref());
        known.at = Instant::now();
        ask(&known.folders)
    }
}

/// A name in Unicode's composed form (NFC). macOS's tools write names decomposed and people type them composed; both are
/// one name to a reader, and to whoever compares the names of this crate.
pub fn composed(name: &str) -> String {
    name.nfc().collect()
}

fn place(path: &ModelPath) -> Place {
    match path {
        ModelPath::BuiltinDemo => Place::BuiltinDemo,
        ModelPath::Folder(folder) => Place::Folder(folder.clone()),
    }
}

fn scan(models_dir: &Path, hub_dir: Option<&Path>) -> BTreeMap<String, PathBuf> {
    let mut folders = BTreeMap::new();
    for hub_folder in hub_dir.into_iter().flat_map(subfolders) {
        if let Some((name, folder)) = hub_model(&hub_folder) {
            folders.insert(name, folder);
        }
    }
    for folder in subfolders(models_dir) {
        let Some(name) = name_of(&folder) else { continue };
        if is_model(&folder) {
            folders.insert(name, folder);
            continue;
        }
        for inner in subfolders(&folder) {
            if let Some(inner_name) = name_of(&inner)
                && is_model(&inner)
            {
                folders.insert(format!("{name}/{inner_name}"), inner);
            }
        }
    }
    folders
}

/// A folder that can't be read counts as empty: the models folder needn't exist.
fn subfolders(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

/// Hidden folders and names that are no UTF-8 are passed over.
fn name_of(folder: &Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    (!name.starts_with('.')).then(|| composed(name))
}

fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file()
}

/// `models--org--name/snapshots/<revision>`: the revision that `main` points at, else the newest.
fn hub_model(folder: &Path) -> Option<(String, PathBuf)> {
    let name = composed(folder.file_name()?.to_str()?).strip_prefix("models--")?.replacen("--", "/", 1);
    let snapshots = folder.join("snapshots");
    let main = fs::read_to_string(folder.join("refs").join("main")).ok();
    let main = main.map(|revision| snapshots.join(revision.trim())).filter(|snapshot| is_model(snapshot));
    let snapshot = main.or_else(|| {
        let modified = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        subfolders(&snapshots).filter(|snapshot| is_model(snapshot)).max_by_key(modified)
    })?;
    Some((name, snapshot))
}

/// When the folder's config was written, if the folder holds a model that we can compute.
fn loadable_since(folder: &Path) -> Option<Timestamp> {
    let path = folder.join("config.json");
    let config = metadata::parse(&fs::read(&path).ok()?).ok()?;
    let model_type = config.get("model_type").and_then(Value::as_str)?;
    let has_weights = fs::read_dir(folder).ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    });
    if !has_weights || !SUPPORTED.contains(&model_type) {
        return None;
    }
    Some(modified(&path).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// `None` where the system doesn't tell, or the binary was replaced since.
fn binary_since() -> Option<Timestamp> {
    modified(&env::current_exe().ok()?)
}

fn modified(path: &Path) -> Option<Timestamp> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok().and_then(|time| Timestamp::try_from(time).ok())
}

#[cfg(test)]
mod tests {
    use mlx_manager_config::{KeepAlive, MemoryLimit, Unpack};

    use super::*;

    fn put_model(folder: &Path, model_type: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), format!(r#"{{"model_type": "{model_type}"}}"#)).unwrap();
        fs::write(folder.join("model.safetensors"), "").unwrap();
    }

    fn config(root: &Path) -> LocalConfig {
        LocalConfig {
            models_dir: root.join("models"),
            hub_dir: Some(root.join("hub")),
            cache_dir: root.join("cache"),
            default_model: None,
            memory_limit: MemoryLimit::Share(0.75),
            prefix_cache: 512 << 20,
            prefix_disk: 0,
            preload: Vec::new(),
            pin: Vec::new(),
            max_models: None,
            load_timeout: std::time::Duration::from_secs(300),
            unpack: Unpack::Auto,
            keep_alive: KeepAlive::Forever,
            max_batch: 1,
            queue: 256,
            queue_tokens: 1_000_000,
            priority: Default::default(),
            models: vec![
                LocalModel { name: "demo".into(), path: ModelPath::BuiltinDemo, keep_alive: None },
                LocalModel { name: "gone".into(), path: ModelPath::Folder(root.join("nowhere")), keep_alive: None },
            ],
        }
    }

    #[test]
    fn models_are_found_in_every_place() {
        let root = tempfile::tempdir().unwrap();
        put_model(&root.path().join("models/plain"), "qwen3");
        put_model(&root.path().join("models/org/nested"), "llama");
        put_model(&root.path().join("models/other"), "mamba");
        fs::create_dir_all(root.path().join("models/empty")).unwrap();
        let hub = root.path().join("hub/models--mlx--some--thing");
        put_model(&hub.join("snapshots/old"), "qwen2");
        put_model(&hub.join("snapshots/new"), "qwen2");
        fs::create_dir_all(hub.join("refs")).unwrap();
        fs::write(hub.join("refs/main"), "old\n").unwrap();
        put_model(&root.path().join("hub/models--gpt/snapshots/1"), "mistral");
        put_model(&root.path().join("hub/datasets--mlx--set/snapshots/1"), "qwen2");

        let catalogue = Catalogue::new(&config(root.path()));
        let models = catalogue.models();
        let long_ago = "2020-01-01T00:00:00Z".parse().unwrap();
        assert!(models.iter().all(|model| model.created > long_ago), "{models:?}");
        let names: Vec<String> = models.into_iter().map(|model| model.name).collect();
        assert_eq!(names, ["demo", "gpt", "mlx/some--thing", "org/nested", "plain"]);
        assert_eq!(catalogue.find("mlx/some--thing"), Some(Place::Folder(hub.join("snapshots/old"))));
        assert_eq!(catalogue.find("demo"), Some(Place::BuiltinDemo));
        // Known, so that the answer can say what is wrong, but not listed.
        assert!(catalogue.find("gone").is_some() && catalogue.find("other").is_some());
        for unknown in ["empty", "", ".", "..", "../models/plain", "org", "models--gpt"] {
            assert_eq!(catalogue.find(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_name_is_found_in_either_form() {
        let root = tempfile::tempdir().unwrap();
        let (composed, decomposed) = ("mod\u{e8}le", "mode\u{300}le");
        put_model(&root.path().join("models").join(decomposed), "llama");
        put_model(&root.path().join("models/org").join("sen\u{303}or"), "llama");
        put_model(&root.path().join("hub/models--org--cafe\u{301}/snapshots/1"), "llama");
        let mut config = config(root.path());
        config.models =
            vec![LocalModel { name: "e\u{301}t\u{e9}".into(), path: ModelPath::BuiltinDemo, keep_alive: None }];
        let catalogue = Catalogue::new(&config);
        for name in [
            composed,
            decomposed,
            "org/se\u{f1}or",
            "org/sen\u{303}or",
            "org/caf\u{e9}",
            "org/cafe\u{301}",
            "\u{e9}t\u{e9}",
        ] {
            assert!(catalogue.find(name).is_some(), "{name:?}");
        }
        let names: Vec<String> = catalogue.models().into_iter().map(|model| model.name).collect();
        assert_eq!(names, [composed, "org/caf\u{e9}", "org/se\u{f1}or", "\u{e9}t\u{e9}"]);
    }

    #[test]
    fn a_sloppily_written_config_is_listed() {
        let root = tempfile::tempdir().unwrap();
        put_model(&root.path().join("models/sloppy"), "llama");
        let config_json = root.path().join("models/sloppy/config.json");
        fs::write(config_json, "\u{feff}{\"model_type\": \"llama\", \"rope_theta\": NaN}").unwrap();
        assert!(Catalogue::new(&config(root.path())).models().iter().any(|model| model.name == "sloppy"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_folder_is_found_without_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(&config(root.path()));
        put_model(&root.path().join("models/late"), "qwen3");
        assert_eq!(catalogue.find("late"), None, "the disk was looked at just now");
        tokio::time::advance(RESCAN).await;
        assert!(catalogue.find("late").is_some());
    }
}
