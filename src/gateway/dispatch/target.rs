//! A target of a request, and what it takes to open one for a call.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error, ErrorKind, Event, EventStream, Fault, Request};
use mlx_manager_signal::{price::PriceList, redact::ModelLabel, span::Destination};
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    breaker::{Breaker, Closed, Permit},
    verdict::verdict,
};
use crate::gateway::{
    cloud::Provider,
    local::{Engine, Local},
};

/// The longest pause that is waited for by those who come into it.
const WORTH_WAITING: Duration = Duration::from_secs(1);

/// As good as no limit, and a time that clocks can hold.
const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// A provider and what watches it.
pub(super) struct Watched {
    pub(super) provider: Provider,
    pub(super) breaker: Arc<Breaker>,
}

/// Something that a request can be sent to.
pub(super) enum Target<'a> {
    /// The local engine.
    Local(&'a Engine),
    /// A provider.
    Cloud(&'a Watched),
}

impl<'a> Target<'a> {
    /// What telemetry calls it.
    pub(super) fn destination(&self) -> Destination<'a> {
        match self {
            Self::Local(_) => Destination::Local,
            Self::Cloud(Watched { provider, .. }) => Destination::Cloud {
                provider: provider.name(),
                kind: provider.kind(),
                address: provider.address(),
                port: provider.port(),
            },
        }
    }

    /// What its calls cost; those of a local model nothing.
    pub(super) fn prices(&self) -> Option<&'a Arc<PriceList>> {
        match self {
            Self::Local(_) => None,
            Self::Cloud(watched) => Some(watched.provider.prices()),
        }
    }

    /// How often a request may be tried again as far as it goes, and until when a request that began then has to be answered.
    pub(super) fn patience(&self, began: Instant) -> (u32, Instant) {
        match self {
            // It knows itself what it can take on.
            Self::Local(_) => (0, began + NEVER),
            Self::Cloud(Watched { provider, .. }) => {
                (provider.calls().retries, began + provider.calls().total_timeout.min(NEVER))
            }
        }
    }

    /// Opens it for one call of a model.
    ///
    /// # Errors
    /// The target's own refusal: this build has no engine, or the provider speaks another dialect, is off, or is left alone.
    pub(super) fn open(&self, request: &Request, model: &str) -> Result<Box<dyn Backend + 'a>, Error> {
        Ok(match self {
            Self::Local(engine) => Box::new(Local::open(engine)?),
            Self::Cloud(watched) => Box::new(watched.open(request, model)?),
        })
    }
}

impl Watched {
    fn open(&self, request: &Request, model: &str) -> Result<Permitted<'_>, Error> {
        let Self { provider, breaker } = self;
        let name = provider.name();
        if provider.dialect() != request.api.dialect() {
            let message = format!(
                "the model {:?} is served by {name:?}, which does not speak the API of {}; call it through the other API, or route the model elsewhere",
                ModelLabel::new(model).as_str(),
                request.api.path()
            );
            let error = Error::new(ErrorKind::InvalidRequest, message).with_param("model");
            return Err(error.with_fault(Fault::Target));
        }
        if let Some(error) = provider.is_off() {
            return Err(error);
        }
        let seconds = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let (kind, wait, why) = match breaker.permit(model) {
            Ok(permit) => return Ok(Permitted { provider, permit }),
            Err(Closed::Failing(wait)) => (ErrorKind::Unavailable, wait, "failed too often (cloud.breaker)"),
            Err(Closed::Paused(wait)) => (ErrorKind::RateLimited, wait, "limited the rate of our calls"),
        };
        let model = ModelLabel::new(model);
        let message = format!(
            "the provider {name:?} {why} with the model {:?} and is left alone for another {} s",
            model.as_str(),
            seconds(wait)
        );
        let mut error = Error::new(kind, message).with_retry_after(wait);
        // Else all who come meanwhile would wait, to call at the same time.
        if wait > WORTH_WAITING {
            error.should_retry = Some(false);
        }
        Err(error)
    }
}

/// A provider with leave to call it once, of which the breaker hears how it went.
struct Permitted<'a> {
    provider: &'a Provider,
    permit: Permit,
}

impl Backend for Permitted<'_> {
    fn call<'a>(self: Box<Self>, call: Call) -> BoxFuture<'a, Result<Answer, Error>>
    where
        Self: 'a,
    {
        let Self { provider, permit } = *self;
        let span = call.span.clone();
        Box::pin(async move {
            match provider.answer(call).instrument(span).await {
                Ok(answer) => {
                    permit.began();
                    let events = Box::pin(Judged { events: answer.events, permit: Some(permit) });
                    Ok(Answer { events, ..answer })
                }
                Err(error) => {
                    judge(permit, &error);
                    Err(error)
                }
            }
        })
    }
}

/// Tells the breaker how a call failed.
fn judge(permit: Permit, error: &Error) {
    match (error.kind, error.retry_after) {
        _ if verdict(error).blames => permit.fail(),
        (ErrorKind::RateLimited, Some(wait)) if error.fault() == Fault::Model => permit.pause(wait),
        // It says no more of the model's health than that it is busy.
        (ErrorKind::RateLimited, _) => drop(permit),
        _ => permit.succeed(),
    }
}

/// The events of an answer, of which the breaker hears how it ends: a target that breaks off after its first token is no
/// better than one that never begins.
struct Judged {
    events: EventStream,
    permit: Option<Permit>,
}

impl Stream for Judged {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.events.as_mut().poll_next(task));
        match &next {
            Some(Ok(_)) => {}
            Some(Err(error)) => self.permit.take().into_iter().for_each(|permit| judge(permit, error)),
            None => self.permit.take().into_iter().for_each(Permit::succeed),
        }
        Poll::Ready(next)
    }
}
