//! The seam between dispatch and whatever answers: the local engine or a cloud provider.

use std::{future::Future, pin::Pin, sync::Arc};

use futures_util::Stream;
use http::HeaderMap;
use tokio::time::Instant;

use super::{Context, Error, Event, Priority, Request};

/// A boxed future, since [`Backend`] is used as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The only thing that comes back from a backend. Dropping it cancels the work. After an `Err` it ends.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>;

/// One call to one target.
#[derive(Debug, Clone)]
pub struct Call {
    /// What the caller asked for.
    pub request: Arc<Request>,
    /// The model's name at this target, which a route may have renamed.
    pub model: String,
    /// Who goes first where calls wait.
    pub priority: Priority,
    /// Who asks, and since when.
    pub context: Context,
    /// The inference span; attempts, queue, prefill and decode are its children.
    pub span: tracing::Span,
    /// The caller's headers that a provider may see, never credentials.
    pub headers: HeaderMap,
    /// The query of the caller's URL as far as a provider may see it, never credentials.
    pub query: Option<String>,
    /// Which try of this target it is, from 0.
    pub resend: u32,
    /// When the answer has to be complete.
    pub deadline: Instant,
}

/// An answer that has begun.
pub struct Answer {
    /// Headers of the provider that the caller should see (rate limits, request ids).
    pub headers: HeaderMap,
    /// The answer.
    pub events: EventStream,
    /// Physical calls made beyond the first.
    pub retries: u32,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Answer")
            .field("headers", &self.headers)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// A target that is open for one call: whatever may be refused without calling it was not.
pub trait Backend: Send {
    /// Starts the call. Resolves once the answer has begun or can't begin any more; until then nothing was sent to the
    /// client, so the caller of this method may try another target.
    fn call<'a>(self: Box<Self>, call: Call) -> BoxFuture<'a, Result<Answer, Error>>
    where
        Self: 'a;
}
