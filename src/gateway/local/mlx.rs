//! The engine of a build with local inference: it understands a conversation to its last field before it answers.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error};
use mlx_manager_signal::span;
use tracing::Instrument;

use mlx_manager_engine::{Ask, CACHE_HEADER, LocalAnswer};
pub use mlx_manager_engine::{Engine, NAME, kernels};

/// How long a stream's head waits for what it says of the prompt. Whoever waits in the queue for longer finds it in the stream.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

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
            let queue_patience = call.request.stream.then_some(QUEUE_PATIENCE);
            let ask = Ask { chat, priority: call.priority, queue_patience };
            let LocalAnswer { lookup, events } = self.0.answer(&call.model, ask, &call.span).await?;
            let mut headers = HeaderMap::new();
            if let Some(value) = lookup.and_then(|lookup| HeaderValue::try_from(lookup.to_string()).ok()) {
                headers.insert(HeaderName::from_static(CACHE_HEADER), value);
            }
            Ok(Answer { headers, events, retries: 0 })
        };
        Box::pin(answer.instrument(span))
    }
}
