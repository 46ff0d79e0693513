//! The engine of a build without local inference: it has no models and says why.

use jiff::Timestamp;
use mlx_manager_config::LocalConfig;
use mlx_manager_llm::{Chat, Error, ErrorKind, EventStream};
use mlx_manager_signal::event::EngineAbsent;
use tokio_util::task::TaskTracker;
use tracing::Span;

/// What this build has for an engine.
pub const NAME: &str = "none";

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

    /// There is nothing to end.
    pub async fn shutdown(&self) {}

    /// Refuses.
    ///
    /// # Errors
    /// Always, with the feature that is missing.
    pub async fn answer(&self, _model: &str, _chat: Chat, _span: &Span) -> Result<EventStream, Error> {
        Err(Error::new(ErrorKind::Unavailable, "built without local inference (feature `mlx`)").with_param("model"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_why_it_has_no_models() {
        let error = Engine.answer("demo", Chat::default(), &Span::none()).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("mlx"));
        assert!(!Engine.ready() && !Engine.has("demo"));
    }
}
