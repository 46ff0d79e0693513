//! The engine of a build without local inference: it has no models and says why.

use jiff::Timestamp;
use mlx_manager_config::LocalConfig;
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error, ErrorKind, ModelState, ModelStates};
use mlx_manager_signal::event::EngineAbsent;
use tokio_util::task::TaskTracker;

/// What this build has for an engine.
pub const NAME: &str = super::NONE;

/// What this build computes with.
pub fn kernels() -> String {
    "no kernels".to_owned()
}

/// An engine without models.
#[derive(Debug, Clone)]
pub struct Engine;

impl Engine {
    /// Says once that `[local]` has no effect in this build.
    pub fn start(config: &LocalConfig, _tasks: &TaskTracker) -> Self {
        if config.default_model.is_some() || !config.models.is_empty() {
            EngineAbsent.emit();
        }
        Self
    }

    /// Always false.
    pub fn has(&self, _name: &str) -> bool {
        false
    }

    /// None.
    pub fn models(&self) -> Vec<(String, Timestamp)> {
        Vec::new()
    }

    /// Never.
    pub fn ready(&self) -> bool {
        false
    }

    /// On disk, as all of them.
    pub fn state(&self, _model: &str) -> ModelState {
        ModelState::OnDisk
    }

    /// It stays there.
    pub fn watch(&self, _model: &str) -> ModelStates {
        Box::pin(futures_util::stream::once(async { ModelState::OnDisk }))
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always, with the feature that is missing.
    pub async fn load(&self, _model: &str) -> Result<(), Error> {
        Err(missing())
    }

    /// There is nothing to unload.
    ///
    /// # Errors
    /// None.
    pub async fn unload(&self, _model: &str) -> Result<(), Error> {
        Ok(())
    }

    /// There is nothing to end.
    pub async fn shutdown(&self) {}
}

/// An engine open for a call, which this build never has.
#[derive(Debug)]
pub enum Local {}

impl Local {
    /// Refuses, whatever the call would be.
    ///
    /// # Errors
    /// Always, with the feature that is missing.
    pub fn open(_engine: &Engine) -> Result<Self, Error> {
        Err(missing())
    }
}

fn missing() -> Error {
    Error::new(ErrorKind::Unavailable, "built without local inference (feature `mlx`)").with_param("model")
}

impl Backend for Local {
    fn call<'a>(self: Box<Self>, _call: Call) -> BoxFuture<'a, Result<Answer, Error>>
    where
        Self: 'a,
    {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_why_it_has_no_models() {
        let error = Local::open(&Engine).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("mlx"));
        assert!(!Engine.ready() && !Engine.has("demo"));
    }
}
