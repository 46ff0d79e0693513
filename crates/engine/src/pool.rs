//! The models in memory: loaded when first asked for, given back when idle or when another needs the room.
//!
//! Loading and unloading happen one at a time, so that the sum of what is in memory is always known. They run as tasks of
//! their own: a client that goes away while its model loads doesn't leave half a model behind.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mlx_manager_catalogue::Place;
use mlx_manager_llm::{Error, ErrorKind};
use mlx_manager_signal::event::ModelLoadError;
use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    builtin,
    chat::{ChatModel, TextError},
    error::{EngineError, file_name},
    model::{self, LoadError, ModelInfo},
    thread::Handle,
};

/// The longest pause between two looks for idle models.
const IDLE_CHECK: Duration = Duration::from_secs(30);

/// A model in memory.
#[derive(Debug)]
pub(crate) struct LoadedModel {
    /// What the MLX thread knows of it.
    pub(crate) info: Arc<ModelInfo>,
    /// Its text side.
    pub(crate) chat: ChatModel,
    in_use: AtomicUsize,
    last_used: Mutex<Instant>,
}

impl LoadedModel {
    pub(crate) fn is_idle(&self) -> bool {
        self.in_use.load(Ordering::Acquire) == 0
    }

    fn last_used(&self) -> Instant {
        *self.last_used.lock()
    }
}

/// Keeps a model in memory while it is used.
#[derive(Debug)]
pub(crate) struct Lease(Arc<LoadedModel>);

impl Lease {
    /// Called with the pool's map locked, so that no model is taken for idle in between.
    fn new(model: &Arc<LoadedModel>) -> Self {
        model.in_use.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(model))
    }
}

impl std::ops::Deref for Lease {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The models in memory.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) thread: Handle,
    pub(crate) cache_dir: PathBuf,
    /// Bytes that the models' weights may take together.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) tasks: TaskTracker,
    pub(crate) models: Mutex<HashMap<String, Arc<LoadedModel>>>,
    /// Held while a model is loaded or unloaded.
    pub(crate) change: Arc<AsyncMutex<()>>,
}

impl Pool {
    /// The model, loaded if it isn't.
    pub(crate) async fn lease(self: &Arc<Self>, name: &str, place: Place) -> Result<Lease, Error> {
        if let Some(lease) = self.loaded(name) {
            return Ok(lease);
        }
        let (pool, name) = (Arc::clone(self), name.to_owned());
        let task = self.tasks.spawn(async move {
            let _change = pool.change.lock().await;
            match pool.loaded(&name) {
                Some(lease) => Ok(lease),
                None => pool.load(&name, place).await,
            }
        });
        task.await.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Internal, "the model could not be loaded").with_source(error))
        })
    }

    /// Whether any model is in memory.
    pub(crate) fn has_any(&self) -> bool {
        !self.models.lock().is_empty()
    }

    /// Gives back, until `stop`, models that nobody used for so long.
    pub(crate) async fn unload_idle(self: Arc<Self>, after: Duration, stop: CancellationToken) {
        let pause = (after / 4).clamp(Duration::from_millis(10), IDLE_CHECK);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let _change = self.change.lock().await;
            while let Some(name) = self.idle_longest(after) {
                if !self.unload(&name, "idle").await {
                    break;
                }
            }
        }
    }

    fn loaded(&self, name: &str) -> Option<Lease> {
        self.models.lock().get(name).map(Lease::new)
    }

    async fn load(&self, name: &str, place: Place) -> Result<Lease, Error> {
        let cache_dir = self.cache_dir.clone();
        // For the log: what a client may read has no paths.
        let at = match &place {
            Place::BuiltinDemo => cache_dir.clone(),
            Place::Folder(folder) => folder.clone(),
        };
        let read = move || read_folder(&place, &cache_dir);
        let read = self.tasks.spawn_blocking(read).await.map_err(|error| FolderError::Task(Box::new(error)));
        let folder = read.and_then(|read| read).map_err(|error| {
            ModelLoadError { model: name, folder: Some(&at), error: &error }.emit();
            error.for_client(name)
        })?;
        self.make_room(name, folder.bytes).await?;
        let info = self.thread.load(name, folder.path).await.map_err(|error| cant_load(name, error))?;
        let (in_use, last_used) = (AtomicUsize::new(0), Mutex::new(Instant::now()));
        let model = Arc::new(LoadedModel { info, chat: folder.chat, in_use, last_used });
        let mut models = self.models.lock();
        models.insert(name.to_owned(), Arc::clone(&model));
        Ok(Lease::new(&model))
    }

    /// Unloads models that nobody uses, those not used for longest first, until `bytes` more fit.
    async fn make_room(&self, name: &str, bytes: u64) -> Result<(), Error> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        if bytes > limit {
            let message = format!("model {name:?} takes {bytes} bytes; `local.memory_limit` allows {limit}");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        loop {
            let held: u64 = {
                let models = self.models.lock();
                models.values().map(|model| model.info.bytes).sum()
            };
            if held.saturating_add(bytes) <= limit {
                return Ok(());
            }
            let made = match self.idle_longest(Duration::ZERO) {
                Some(idle) => self.unload(&idle, "memory").await,
                None => false,
            };
            if !made {
                let message = format!("no memory for model {name:?} while other models are in use; try again later");
                return Err(Error::new(ErrorKind::Overloaded, message));
            }
        }
    }

    fn idle_longest(&self, at_least: Duration) -> Option<String> {
        let models = self.models.lock();
        let idle = models.iter().filter(|(_, model)| model.is_idle() && model.last_used().elapsed() >= at_least);
        idle.min_by_key(|(_, model)| model.last_used()).map(|(name, _)| name.clone())
    }

    /// Takes a model out of memory; false when it is in use after all.
    async fn unload(&self, name: &str, reason: &'static str) -> bool {
        let model = {
            let mut models = self.models.lock();
            // Taken meanwhile, between the choice and now.
            if models.get(name).is_none_or(|model| !model.is_idle()) {
                return false;
            }
            models.remove(name)
        };
        match self.thread.unload(name, reason).await {
            // A sequence that was cancelled lives on until the next step.
            Err(EngineError::InUse { .. }) => {
                let mut models = self.models.lock();
                models.extend(model.map(|model| (name.to_owned(), model)));
                false
            }
            // A thread that was started again has no models; what counts is that it is gone.
            Ok(()) | Err(_) => true,
        }
    }
}

/// What is read of a model's folder before its weights.
struct Folder {
    path: PathBuf,
    chat: ChatModel,
    /// What its weights take on disk.
    bytes: u64,
}

#[derive(Debug, thiserror::Error)]
enum FolderError {
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
    fn for_client(self, name: &str) -> Error {
        let (kind, message) = match &self {
            Self::Missing(_) => (ErrorKind::ModelNotFound, format!("model {name:?}: {self}")),
            _ => (ErrorKind::Unavailable, format!("model {name:?} can't be loaded: {}", chain(&self))),
        };
        Error::new(kind, message).with_param("model").with_source(self)
    }
}

fn cant_load(name: &str, error: EngineError) -> Error {
    match &error {
        EngineError::Load { source, .. } => {
            let reason = match &**source {
                // MLX's own words may hold a path.
                LoadError::Mlx(_) => format!("{source}; the log says why"),
                told => chain(told),
            };
            let message = format!("model {name:?} can't be loaded: {reason}");
            Error::new(error.kind(), message).with_param("model").with_source(error)
        }
        _ => error.into(),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn read_folder(place: &Place, cache_dir: &Path) -> Result<Folder, FolderError> {
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
    Ok(Folder { chat: ChatModel::load(&path)?, bytes, path })
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
