//! The engine of a build without local inference: it has no models and says why.

use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::{
    config::LocalConfig,
    llm::{Answer, Backend, BoxFuture, Call, Error, ErrorKind},
};

/// An engine without models.
#[derive(Debug, Clone)]
pub struct Engine;

impl Engine {
    /// Says once that `[local]` has no effect in this build.
    pub fn start(config: &LocalConfig, _tasks: &TaskTracker) -> Self {
        if config.default_model.is_some() || !config.models.is_empty() {
            tracing::warn!("built without local inference (feature `mlx`): local models are not served");
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
}

impl Backend for Engine {
    fn call(&self, _call: Call) -> BoxFuture<'_, Result<Answer, Error>> {
        Box::pin(async {
            Err(Error::new(ErrorKind::Unavailable, "built without local inference (feature `mlx`)").with_param("model"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::llm::{Api, Body, Context, Request, Sampling};

    #[tokio::test]
    async fn it_says_why_it_has_no_models() {
        let request = Request {
            api: Api::Messages,
            model: "demo".into(),
            stream: false,
            include_usage: false,
            sampling: Sampling::default(),
            body: Body::default(),
        };
        let context = Context {
            request_id: "r".into(),
            key_id: None,
            arrived_at: Timestamp::UNIX_EPOCH,
            arrived: Instant::now(),
            span: tracing::Span::none(),
        };
        let span = tracing::Span::none();
        let call = Call { request: Arc::new(request), model: "demo".into(), context, span, headers: Vec::new() };
        let error = Engine.call(call).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("mlx"));
        assert!(!Engine.ready() && !Engine.has("demo"));
    }
}
