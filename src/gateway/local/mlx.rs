//! The engine of a build with local inference: it understands a conversation to its last field before it answers.

use http::HeaderMap;
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error};
use mlx_manager_signal::span;
use tracing::Instrument;

pub use mlx_manager_engine::{Engine, NAME};

/// The local engine, open for a call.
#[derive(Debug)]
pub struct Local(Engine);

impl Local {
    /// Opens the engine.
    ///
    /// # Errors
    /// None in this build: what may be wrong with a model shows when it is called.
    pub fn open(engine: &Engine) -> Result<Self, Error> {
        Ok(Self(engine.clone()))
    }
}

impl Backend for Local {
    fn call<'a>(self: Box<Self>, call: Call) -> BoxFuture<'a, Result<Answer, Error>>
    where
        Self: 'a,
    {
        let span = call.span.clone();
        let answer = async move {
            let chat = dialect::decode_chat(&call.request)?;
            span::capture_input(&call.span, &chat);
            let events = self.0.answer(&call.model, chat, &call.span).await?;
            Ok(Answer { headers: HeaderMap::new(), events, retries: 0, keep_alive: true })
        };
        Box::pin(answer.instrument(span))
    }
}
