//! The engine as the rest of the server knows it: a backend that answers conversations.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{Timestamp, Zoned};
use mlx_manager_catalogue::{Catalogue, composed};
use mlx_manager_config::{self as config, LocalConfig};
use mlx_manager_llm::{Chat, Error, ErrorKind, EventStream, KeepAlive, ModelState, ModelStates, Priority};
use mlx_manager_signal::event::{EngineStartError, ModelLoadError};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{AnswerStream, Transcript},
    cache::{self, DiskSettings, PrefixLookup},
    error::EngineError,
    machine, mlx,
    pool::{Lease, Pool, PoolSettings},
    states::States,
    thread::{EngineSettings, Generate, Handle},
};

/// The local engine. Clones are the same engine.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    catalogue: Catalogue,
    default_model: Option<String>,
    /// Loaded at start, in this order.
    preload: Vec<String>,
    /// Whether these are still being loaded for the first time.
    starting: AtomicBool,
    /// Or why there is none.
    pool: Result<Arc<Pool>, EngineError>,
    states: States,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is asked of a model.
#[derive(Debug)]
pub struct Ask {
    /// The conversation.
    pub chat: Chat,
    /// Who goes first where requests wait.
    pub priority: Priority,
    /// How long its turn is waited for before the answer counts as begun; `None` is as long as it takes.
    pub queue_patience: Option<Duration>,
}

/// An answer that has begun.
pub struct LocalAnswer {
    /// How much of its prompt was computed before, if its turn has come.
    pub lookup: Option<PrefixLookup>,
    /// Its events.
    pub events: EventStream,
}

impl Engine {
    /// Starts the MLX thread and, in the background, loads the models that are wanted at start. A failure of either is logged; the engine
    /// then answers with it, and the daemon serves what it can.
    pub fn start(config: &LocalConfig, tasks: &TaskTracker) -> Self {
        let memory_limit = machine::memory_limit(config.memory_limit);
        let states = States::default();
        let (room_wanted, wants_room) = mpsc::unbounded_channel();
        let settings = EngineSettings {
            max_batch: config.max_batch,
            queue_limit: config.queue,
            queue_tokens: config.queue_tokens,
            memory_limit,
            room_wanted: Some(room_wanted),
            states: states.clone(),
            prefix_cache: config.prefix_cache,
            prefix_disk: Some(DiskSettings {
                folder: config.cache_dir.clone(),
                limit_bytes: config.prefix_disk,
                open: cache::create,
            }),
            ..EngineSettings::default()
        };
        let pool = mlx::check_kernels().and_then(|()| Handle::start(settings)).map(|thread| {
            Arc::new(Pool::new(thread, PoolSettings::new(config, memory_limit), states.clone(), tasks.clone()))
        });
        let mut preload: Vec<String> = config.default_model.iter().chain(&config.preload).cloned().collect();
        let mut seen = HashSet::new();
        preload.retain(|name| seen.insert(name.clone()));
        let inner = Arc::new(Inner {
            catalogue: Catalogue::new(config),
            default_model: config.default_model.as_deref().map(composed),
            starting: AtomicBool::new(!preload.is_empty()),
            preload,
            pool,
            states,
            tasks: tasks.clone(),
            stop: CancellationToken::new(),
        });
        match &inner.pool {
            Ok(pool) => {
                tasks.spawn(Arc::clone(pool).unload_idle(inner.stop.clone()));
                tasks.spawn(Arc::clone(pool).unload_for_sequences(wants_room, inner.stop.clone()));
            }
            Err(error) => {
                EngineStartError { error }.emit();
            }
        }
        tasks.spawn(Arc::clone(&inner).preload());
        Self { inner }
    }

    /// Whether requests may name this model. It may still turn out that it can't be loaded.
    pub fn has(&self, name: &str) -> bool {
        self.inner.catalogue.find(name).is_some()
    }

    /// The models that requests may name, and since when they are there.
    pub fn models(&self) -> Vec<(String, Timestamp)> {
        self.inner.catalogue.models().into_iter().map(|model| (model.name, model.created)).collect()
    }

    /// Whether a model can answer: one is in memory, or none is waited for and there is another than the default model.
    pub fn ready(&self) -> bool {
        let inner = &self.inner;
        let Ok(pool) = &inner.pool else { return false };
        if inner.starting.load(Ordering::Acquire) {
            return false;
        }
        pool.has_any() || self.models().iter().any(|(name, _)| Some(name) != inner.default_model.as_ref())
    }

    /// Where a model stands on its way into memory.
    pub fn state(&self, model: &str) -> ModelState {
        self.inner.states.of(model)
    }

    /// Where a model stands, now and after each change.
    pub fn watch(&self, model: &str) -> ModelStates {
        self.inner.states.watch(model.to_owned())
    }

    /// Brings a model into memory.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn load(&self, model: &str) -> Result<(), Error> {
        self.inner.lease(model).await.map(drop)
    }

    /// Takes a model out of memory.
    ///
    /// # Errors
    /// When it is in use.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        let pool = self.inner.pool.as_ref().map_err(|error| Error::from(error.clone()))?;
        pool.unload_now(model).await
    }

    /// Ends the MLX thread, and open answers with an error.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if let Ok(pool) = &self.inner.pool {
            pool.thread.shutdown().await;
        }
    }

    /// Answers a conversation with a model. Resolves once the engine has taken it in; `span` is the inference span, of which
    /// queue, prefill and decode are children.
    ///
    /// # Errors
    /// When the model can't be had, or can't do what is asked.
    pub async fn answer(&self, model: &str, ask: Ask, span: &tracing::Span) -> Result<LocalAnswer, Error> {
        let Ask { chat, priority, queue_patience } = ask;
        // One name in all of its forms, so that one model is loaded.
        let model = composed(model);
        let (pool, lease) = self.inner.lease(&model).await?;
        if let Some(keep_alive) = chat.keep_alive {
            lease.keep_alive(match keep_alive {
                KeepAlive::Forever => config::KeepAlive::Forever,
                KeepAlive::For(duration) => config::KeepAlive::For(duration),
            });
        }
        // A long prompt takes its time to tokenize, which must not hold up other requests.
        let prepared = self.inner.tasks.spawn_blocking(move || {
            let prompt = lease.chat.prepare(&chat, &lease.info, Zoned::now());
            (lease, prompt)
        });
        let (lease, prompt) = prepared
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, "the prompt could not be prepared").with_source(error))?;
        let prompt = prompt?;
        let transcript = Transcript::new(model.clone(), &prompt, Arc::clone(&lease.chat.tokenizer));
        let tokens = pool.thread.generate(Generate {
            model,
            prompt: prompt.ids,
            sampling: prompt.sampling,
            max_tokens: prompt.max_tokens,
            open_ended: prompt.open_ended,
            stop_ids: lease.chat.end_ids(&lease.info),
            priority,
            span: span.clone(),
        });
        let answer = AnswerStream::begin(transcript, tokens, lease, queue_patience).await?;
        Ok(LocalAnswer { lookup: answer.lookup(), events: Box::pin(answer) })
    }
}

impl Inner {
    async fn lease(&self, model: &str) -> Result<(&Arc<Pool>, Lease), Error> {
        let pool = self.pool.as_ref().map_err(|error| Error::from(error.clone()))?;
        let place = self.catalogue.find(model).ok_or_else(|| {
            let message = format!("there is no local model {model:?}");
            Error::new(ErrorKind::ModelNotFound, message).with_param("model")
        })?;
        Ok((pool, pool.lease(model, place).await?))
    }

    async fn preload(self: Arc<Self>) {
        for name in &self.preload {
            if let Err(error) = self.lease(name).await
                // Whatever was met while loading was reported there.
                && error.source.is_none()
            {
                ModelLoadError { model: name, folder: None, error: &error }.emit();
            }
        }
        self.starting.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
