//! Local models as targets: understands a conversation to its last field, and has the engine answer it.
//!
//! The only place that knows whether this build has an engine.

#[cfg(not(feature = "mlx"))]
mod absent;

use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error};
use mlx_manager_signal::span;

#[cfg(not(feature = "mlx"))]
pub use absent::{Engine, NAME};
#[cfg(feature = "mlx")]
pub use mlx_manager_engine::{Engine, NAME};

/// The local engine as a target.
#[derive(Debug, Clone)]
pub struct Local(pub Engine);

impl Backend for Local {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, Error>> {
        Box::pin(async move {
            let chat = dialect::decode_chat(&call.request)?;
            span::capture_input(&call.span, &chat);
            let events = self.0.answer(&call.model, chat, &call.span).await?;
            Ok(Answer { headers: Vec::new(), events, retries: 0 })
        })
    }
}
