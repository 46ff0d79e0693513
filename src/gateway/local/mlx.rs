//! The engine of a build with local inference: it understands a conversation to its last field before it answers.

use http::{HeaderMap, HeaderName, HeaderValue};
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error};
use mlx_manager_signal::span;
use tracing::Instrument;

use mlx_manager_engine::LocalAnswer;
pub use mlx_manager_engine::{Engine, NAME, kernels};

/// How much of the prompt was computed before, and why not more.
const CACHE: HeaderName = HeaderName::from_static("x-mlx-manager-cache");

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
            let LocalAnswer { lookup, events } = self.0.answer(&call.model, chat, &call.span).await?;
            let mut headers = HeaderMap::new();
            if let Some(value) = lookup.and_then(|lookup| HeaderValue::try_from(lookup.to_string()).ok()) {
                headers.insert(CACHE, value);
            }
            Ok(Answer { headers, events, retries: 0 })
        };
        Box::pin(answer.instrument(span))
    }
}
