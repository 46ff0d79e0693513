//! Knows when a client is making a connection, which nothing else tells apart from a call that has to wait for another reason.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};

/// How long a connection that is being made excuses a call that waits. One that takes longer may be none that the call needs.
const EXCUSE: Duration = Duration::from_secs(1);

/// The connections that a client makes; a layer around what makes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Dials(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    last_begun: Option<Instant>,
    last_ended: Option<Instant>,
}

impl Dials {
    /// Whether none is being made, nor was within `time`.
    pub(super) fn are_quiet_for(&self, time: Duration) -> bool {
        let state = self.0.lock();
        let within = |moment: Option<Instant>, time| moment.is_some_and(|moment| moment.elapsed() < time);
        let making = state.under_way > 0 && within(state.last_begun, EXCUSE);
        !making && !within(state.last_ended, time)
    }
}

/// A connection that is being made.
struct Dial(Dials);

impl Dial {
    fn begin(dials: &Dials) -> Self {
        let mut state = dials.0.lock();
        state.under_way += 1;
        state.last_begun = Some(Instant::now());
        drop(state);
        Self(dials.clone())
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.under_way -= 1;
        state.last_ended = Some(Instant::now());
    }
}

impl<S> Layer<S> for Dials {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, dials: self.clone() }
    }
}

/// What makes connections, watched.
#[derive(Debug, Clone)]
pub(super) struct Watched<S> {
    inner: S,
    dials: Dials,
}

impl<S, R> Service<R> for Watched<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, place: R) -> Self::Future {
        let dial = Dial::begin(&self.dials);
        let made = self.inner.call(place);
        Box::pin(async move {
            let made = made.await;
            drop(dial);
            made
        })
    }
}
