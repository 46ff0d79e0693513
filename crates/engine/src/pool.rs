//! The models in memory: loaded when first asked for, given back when idle or when another needs the room.
//!
//! Loading and unloading happen one at a time, so that the sum of what is in memory is always known: the headers of a model
//! tell what it will take, room is made or waited for, and only then it is read.

use std::{
    collections::HashMap,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mlx_manager_catalogue::Place;
use mlx_manager_config::{KeepAlive, LocalConfig, Unpack};
use mlx_manager_llm::{Error, ErrorKind};
use mlx_manager_signal::event::{ModelLoadError, ModelWaitsForRoom};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, mpsc::UnboundedReceiver},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    chat::ChatModel,
    error::{EngineError, chain},
    folder::{Folder, FolderError},
    mlx::Precision,
    model::{Footprint, Form, LoadError, ModelInfo, Source},
    states::{States, WaitingForRoom},
    thread::Handle,
};

/// The pause before an idle model that turned out to be in use is looked at again.
const STILL_IN_USE: Duration = Duration::from_secs(1);

/// A model in memory.
#[derive(Debug)]
pub(crate) struct LoadedModel {
    /// What the MLX thread knows of it.
    pub(crate) info: Arc<ModelInfo>,
    /// Its text side.
    pub(crate) chat: ChatModel,
    in_use: AtomicUsize,
    usage: Mutex<Usage>,
    /// Told when nobody uses it any more.
    released: Arc<Notify>,
}

#[derive(Debug, Clone, Copy)]
struct Usage {
    last: Instant,
    keep_alive: KeepAlive,
}

impl LoadedModel {
    fn is_idle(&self) -> bool {
        self.in_use.load(Ordering::Acquire) == 0
    }

    fn last_used(&self) -> Instant {
        self.usage.lock().last
    }

    /// When it is to be unloaded if nobody uses it until then.
    fn expires(&self) -> Option<Instant> {
        let usage = *self.usage.lock();
        match usage.keep_alive {
            KeepAlive::Forever => None,
            KeepAlive::For(duration) => usage.last.checked_add(duration),
        }
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

    /// From now on the model stays this long after its last request.
    pub(crate) fn keep_alive(&self, keep_alive: KeepAlive) {
        self.0.usage.lock().keep_alive = keep_alive;
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
        self.0.usage.lock().last = Instant::now();
        if self.0.in_use.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.released.notify_waiters();
        }
    }
}

/// What the pool goes by.
#[derive(Debug)]
pub(crate) struct PoolSettings {
    /// Where the built-in model is unpacked.
    cache_dir: PathBuf,
    /// Bytes that the models' weights may take together.
    memory_limit: Option<u64>,
    max_models: Option<usize>,
    unpack: Unpack,
    /// Models that are never unloaded.
    pin: Vec<String>,
    /// How long a request may wait for room.
    load_timeout: Duration,
    keep_alive: KeepAlive,
    /// Of models that have one of their own.
    own_keep_alive: HashMap<String, KeepAlive>,
}

impl PoolSettings {
    /// `memory_limit` is in bytes.
    pub(crate) fn new(config: &LocalConfig, memory_limit: Option<u64>) -> Self {
        let own = config.models.iter().filter_map(|model| Some((model.name.clone(), model.keep_alive?)));
        Self {
            cache_dir: config.cache_dir.clone(),
            memory_limit,
            max_models: config.max_models,
            unpack: config.unpack,
            pin: config.pin.clone(),
            load_timeout: config.load_timeout,
            keep_alive: config.keep_alive,
            own_keep_alive: own.collect(),
        }
    }

    fn keep_alive(&self, name: &str) -> KeepAlive {
        self.own_keep_alive.get(name).copied().unwrap_or(self.keep_alive)
    }

    /// How a model's weights are to be kept beside others that take `held` bytes.
    fn form(&self, footprint: Footprint, held: u64) -> Form {
        if footprint.precision != Precision::Float32 || !footprint.has_packed() {
            return Form::Stored;
        }
        let fits = |share: u64| {
            self.memory_limit.is_some_and(|limit| held.saturating_add(footprint.unpacked) <= limit / share)
        };
        match self.unpack {
            Unpack::Auto if fits(2) => Form::Unpacked,
            Unpack::Always if fits(1) || self.memory_limit.is_none() => Form::Unpacked,
            Unpack::Auto | Unpack::Always | Unpack::Never => Form::Stored,
        }
    }
}

/// The models in memory.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) thread: Handle,
    settings: PoolSettings,
    tasks: TaskTracker,
    models: Mutex<HashMap<String, Arc<LoadedModel>>>,
    /// Held while a model is loaded or unloaded, and while room for one is waited for: first come, first served.
    change: Arc<AsyncMutex<()>>,
    /// Told when nobody uses a model any more.
    released: Arc<Notify>,
    states: States,
}

/// A model that has room.
struct Prepared {
    folder: Folder,
    form: Form,
    /// Whose room it is, as long as nobody else may change what is in memory.
    change: OwnedMutexGuard<()>,
}

impl Pool {
    /// A pool without models yet.
    pub(crate) fn new(thread: Handle, settings: PoolSettings, states: States, tasks: TaskTracker) -> Self {
        let (models, change, released) = (Mutex::default(), Arc::default(), Arc::default());
        Self { thread, settings, tasks, models, change, released, states }
    }

    /// The model, loaded if it isn't. Waits for room while other models are in use; whoever drops this future has given its
    /// place in that queue up.
    pub(crate) async fn lease(self: &Arc<Self>, name: &str, place: Place) -> Result<Lease, Error> {
        if let Some(lease) = self.loaded(name) {
            return Ok(lease);
        }
        let deadline = Instant::now() + self.settings.load_timeout;
        let change = timeout_at(deadline, Arc::clone(&self.change).lock_owned()).await;
        let change = change.map_err(|_| self.no_room(name, "others wait for room before it"))?;
        if let Some(lease) = self.loaded(name) {
            return Ok(lease);
        }
        let folder = self.read(name, place).await?;
        let form = self.make_room(name, folder.footprint, deadline).await?;
        let prepared = Prepared { folder, form, change };
        let (pool, name) = (Arc::clone(self), name.to_owned());
        // A client that goes away while its model loads doesn't leave half a model behind.
        let task = self.tasks.spawn(async move { pool.load(&name, prepared).await });
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

    /// Gives back, until `stop`, models that nobody used for as long as they are to be kept.
    pub(crate) async fn unload_idle(self: Arc<Self>, stop: CancellationToken) {
        let unload = async {
            loop {
                let mut released = pin!(self.released.notified());
                released.as_mut().enable();
                match self.next_to_expire() {
                    None => released.await,
                    Some((at, name)) if at <= Instant::now() => {
                        let _change = self.change.lock().await;
                        // It may have been used while others had the change.
                        let is_due =
                            self.next_to_expire().is_some_and(|(at, next)| next == name && at <= Instant::now());
                        if is_due && !self.unload(&name, "idle").await {
                            tokio::time::sleep(STILL_IN_USE).await;
                        }
                    }
                    Some((at, _)) => drop(timeout_at(at, released).await),
                }
            }
        };
        stop.run_until_cancelled(unload).await.unwrap_or(())
    }

    /// Unloads, until `stop`, idle models for sequences that wait for so many bytes each time.
    pub(crate) async fn unload_for_sequences(
        self: Arc<Self>,
        mut wanted: UnboundedReceiver<u64>,
        stop: CancellationToken,
    ) {
        let unload = async {
            while let Some(mut bytes) = wanted.recv().await {
                // What was asked for meanwhile is asked for again if it is still missing.
                while wanted.try_recv().is_ok() {}
                let _change = self.change.lock().await;
                while bytes > 0
                    && let Some(idle) = self.idle_longest()
                {
                    let freed = self.held(|name| *name == idle);
                    if !self.unload(&idle, "memory").await {
                        break;
                    }
                    bytes = bytes.saturating_sub(freed);
                }
            }
        };
        stop.run_until_cancelled(unload).await.unwrap_or(())
    }

    /// Takes a model out of memory because somebody asks; one that isn't there is what was asked for.
    pub(crate) async fn unload_now(&self, name: &str) -> Result<(), Error> {
        let _change = self.change.lock().await;
        if !self.models.lock().contains_key(name) || self.unload(name, "request").await {
            return Ok(());
        }
        let message = format!("model {name:?} is in use; try again when its requests have ended");
        Err(Error::new(ErrorKind::Overloaded, message).with_param("model"))
    }

    fn loaded(&self, name: &str) -> Option<Lease> {
        self.models.lock().get(name).map(Lease::new)
    }

    async fn read(&self, name: &str, place: Place) -> Result<Folder, Error> {
        let precision = self.thread.precision().await?;
        let cache_dir = self.settings.cache_dir.clone();
        // For the log: what a client may read has no paths.
        let at = match &place {
            Place::BuiltinDemo => cache_dir.clone(),
            Place::Folder(folder) => folder.clone(),
        };
        let read = move || Folder::read(&place, &cache_dir, precision);
        let read = self.tasks.spawn_blocking(read).await.map_err(|error| FolderError::Task(Box::new(error)));
        read.and_then(|read| read).map_err(|error| {
            ModelLoadError { model: name, folder: Some(&at), error: &error }.emit();
            error.for_client(name)
        })
    }

    async fn load(&self, name: &str, prepared: Prepared) -> Result<Lease, Error> {
        let Prepared { folder, form, change: _change } = prepared;
        let source = Source { folder: folder.path, form };
        let info = self.thread.load(name, source).await.map_err(|error| cant_load(name, error))?;
        let usage = Mutex::new(Usage { last: Instant::now(), keep_alive: self.settings.keep_alive(name) });
        let (in_use, released) = (AtomicUsize::new(0), Arc::clone(&self.released));
        let model = Arc::new(LoadedModel { info, chat: folder.chat, in_use, usage, released });
        let mut models = self.models.lock();
        models.insert(name.to_owned(), Arc::clone(&model));
        Ok(Lease::new(&model))
    }

    /// Unloads models that nobody uses, those not used for longest first, until one more fits, and waits where there is none
    /// to unload. Gives the form in which it fits.
    async fn make_room(&self, name: &str, footprint: Footprint, deadline: Instant) -> Result<Form, Error> {
        let mut waits = None;
        loop {
            let mut released = pin!(self.released.notified());
            released.as_mut().enable();
            let held = self.held(|_| true);
            let form = self.settings.form(footprint, held);
            let bytes = footprint.bytes(form);
            if let Some(limit) = self.settings.memory_limit {
                let pinned = self.held(|name| self.settings.pin.contains(name));
                if bytes.saturating_add(pinned) > limit {
                    return Err(never(name, bytes, pinned, limit));
                }
            }
            let fits = self.settings.memory_limit.is_none_or(|limit| held.saturating_add(bytes) <= limit);
            let is_one_more = self.settings.max_models.is_none_or(|most| self.models.lock().len() < most);
            if fits && is_one_more {
                return Ok(form);
            }
            if let Some(idle) = self.idle_longest()
                && self.unload(&idle, "memory").await
            {
                continue;
            }
            if waits.is_none() {
                waits = Some(WaitingForRoom::new(&self.states, name));
                ModelWaitsForRoom { model: name, bytes, held }.emit();
            }
            if timeout_at(deadline, released).await.is_err() {
                return Err(self.no_room(name, &format!("it takes {bytes} bytes, and models in use hold {held}")));
            }
        }
    }

    /// Bytes of the weights of some models.
    fn held(&self, of: impl Fn(&String) -> bool) -> u64 {
        let models = self.models.lock();
        models.iter().filter(|(name, _)| of(name)).map(|(_, model)| model.info.bytes).sum()
    }

    fn no_room(&self, name: &str, why: &str) -> Error {
        let seconds = self.settings.load_timeout.as_secs_f64();
        let message = format!(
            "no room for model {name:?} within {seconds} s (local.load_timeout): {why}; try again later, or raise \
             `local.memory_limit` or `local.max_models`"
        );
        Error::new(ErrorKind::Overloaded, message)
    }

    /// Of the models that may be unloaded, the one that was not used for longest.
    fn idle_longest(&self) -> Option<String> {
        let models = self.models.lock();
        let idle = models.iter().filter(|(name, model)| model.is_idle() && !self.settings.pin.contains(name));
        idle.min_by_key(|(_, model)| model.last_used()).map(|(name, _)| name.clone())
    }

    /// Of the models that nobody uses, the one whose time ends first.
    fn next_to_expire(&self) -> Option<(Instant, String)> {
        let models = self.models.lock();
        let idle = models.iter().filter(|(name, model)| model.is_idle() && !self.settings.pin.contains(name));
        idle.filter_map(|(name, model)| Some((model.expires()?, name.clone()))).min()
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

fn never(name: &str, bytes: u64, pinned: u64, limit: u64) -> Error {
    let beside = if pinned > 0 { format!(" beside {pinned} bytes of pinned ones (local.pin)") } else { String::new() };
    let message = format!("model {name:?} takes {bytes} bytes{beside}; `local.memory_limit` allows {limit}");
    Error::new(ErrorKind::Unavailable, message)
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
