//! The models in memory: loaded when first asked for, given back when idle or when another needs the room.
//!
//! Loading and unloading happen one at a time, so that the sum of what is in memory is always known. They run as tasks of
//! their own: a client that goes away while its model loads doesn't leave half a model behind.

use std::{
    collections::HashMap,
    path::PathBuf,
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
    chat::ChatModel,
    error::{EngineError, chain},
    folder::{Folder, FolderError},
    model::{LoadError, ModelInfo},
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
    fn is_idle(&self) -> bool {
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
    /// Where the built-in model is unpacked.
    cache_dir: PathBuf,
    /// Bytes that the models' weights may take together.
    memory_limit: Option<u64>,
    tasks: TaskTracker,
    models: Mutex<HashMap<String, Arc<LoadedModel>>>,
    /// Held while a model is loaded or unloaded.
    change: AsyncMutex<()>,
}

impl Pool {
    /// A pool without models yet. `memory_limit` is in bytes.
    pub(crate) fn new(thread: Handle, cache_dir: PathBuf, memory_limit: Option<u64>, tasks: TaskTracker) -> Self {
        let (models, change) = (Mutex::default(), AsyncMutex::default());
        Self { thread, cache_dir, memory_limit, tasks, models, change }
    }

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

    /// The names of the models in memory.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        self.models.lock().keys().cloned().collect()
    }

    /// Whether nobody uses a model that is in memory.
    #[cfg(test)]
    pub(crate) fn is_idle(&self, name: &str) -> bool {
        self.models.lock()[name].is_idle()
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
        let read = move || Folder::read(&place, &cache_dir);
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
