//! The engine as the rest of the server knows it: a backend that answers conversations.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use jiff::{Timestamp, Zoned};
use mlx_manager_catalogue::{Catalogue, composed};
use mlx_manager_config::{IdleUnload, LocalConfig};
use mlx_manager_llm::{Chat, Error, ErrorKind, EventStream};
use mlx_manager_signal::event::{EngineStartError, ModelLoadError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{AnswerStream, Transcript},
    error::EngineError,
    machine,
    pool::{Lease, Pool},
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
    /// Whether the default model is still being loaded for the first time.
    starting: AtomicBool,
    /// Or why there is none.
    pool: Result<Arc<Pool>, EngineError>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Engine {
    /// Starts the MLX thread and, in the background, loads the default model. A failure of either is logged; the engine
    /// then answers with it, and the daemon serves what it can.
    pub fn start(config: &LocalConfig, tasks: &TaskTracker) -> Self {
        let memory_limit = machine::memory_limit(config.memory_limit);
        let (max_batch, prompt_cache) = (config.max_batch, config.prompt_cache);
        let settings = EngineSettings { max_batch, memory_limit, prompt_cache, ..EngineSettings::default() };
        let pool = Handle::start(settings)
            .map(|thread| Arc::new(Pool::new(thread, config.cache_dir.clone(), memory_limit, tasks.clone())));
        let inner = Arc::new(Inner {
            catalogue: Catalogue::new(config),
            default_model: config.default_model.as_deref().map(composed),
            starting: AtomicBool::new(config.default_model.is_some()),
            pool,
            tasks: tasks.clone(),
            stop: CancellationToken::new(),
        });
        match &inner.pool {
            Ok(pool) => {
                if let IdleUnload::After(after) = config.idle_unload {
                    tasks.spawn(Arc::clone(pool).unload_idle(after, inner.stop.clone()));
                }
            }
            Err(error) => {
                EngineStartError { error }.emit();
            }
        }
        tasks.spawn(Arc::clone(&inner).load_default());
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

    /// Whether a model can answer: one is in memory, or the default model is not what is waited for and there is another.
    pub fn ready(&self) -> bool {
        let inner = &self.inner;
        let Ok(pool) = &inner.pool else { return false };
        if inner.starting.load(Ordering::Acquire) {
            return false;
        }
        pool.has_any() || self.models().iter().any(|(name, _)| Some(name) != inner.default_model.as_ref())
    }

    /// Ends the MLX thread, and open answers with an error.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if let Ok(pool) = &self.inner.pool {
            pool.thread.shutdown().await;
        }
    }

    /// Answers a conversation with a model. Resolves once the answer has begun; `span` is the inference span, of which
    /// queue, prefill and decode are children.
    ///
    /// # Errors
    /// When the model can't be had, or can't do what is asked.
    pub async fn answer(&self, model: &str, chat: Chat, span: &tracing::Span) -> Result<EventStream, Error> {
        // One name in all of its forms, so that one model is loaded.
        let model = composed(model);
        let (pool, lease) = self.inner.lease(&model).await?;
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
            stop_ids: lease.chat.end_ids(&lease.info),
            span: span.clone(),
        });
        Ok(Box::pin(AnswerStream::begin(transcript, tokens, lease).await?))
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

    async fn load_default(self: Arc<Self>) {
        if let Some(name) = &self.default_model
            && let Err(error) = self.lease(name).await
            // Whatever was met while loading was reported there.
            && error.source.is_none()
        {
            ModelLoadError { model: name, folder: None, error: &error }.emit();
        }
        self.starting.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
