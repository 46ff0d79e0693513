//! A target of a request, and what it takes to open one for a call.

use std::sync::Arc;

use http::{HeaderValue, header::RETRY_AFTER};
use mlx_manager_llm::{Answer, Backend, BoxFuture, Call, Error, ErrorKind, Request};
use mlx_manager_signal::{price::PriceList, redact::ModelLabel, span::Destination};
use tracing::Instrument;

use super::breaker::{Breaker, Permit};
use crate::gateway::{
    cloud::Provider,
    local::{Engine, Local},
};

/// A provider and what watches it.
pub(super) struct Watched {
    pub(super) provider: Provider,
    pub(super) breaker: Breaker,
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

    /// Opens it for one call.
    ///
    /// # Errors
    /// The target's own refusal: this build has no engine, or the provider speaks another dialect, is off, or failed too
    /// often.
    pub(super) fn open(&self, request: &Request, model: &ModelLabel) -> Result<Box<dyn Backend + 'a>, Error> {
        Ok(match self {
            Self::Local(engine) => Box::new(Local::open(engine)?),
            Self::Cloud(watched) => Box::new(watched.open(request, model)?),
        })
    }
}

impl Watched {
    fn open(&self, request: &Request, model: &ModelLabel) -> Result<Permitted<'_>, Error> {
        let Self { provider, breaker } = self;
        if provider.dialect() != request.api.dialect() {
            let message = format!(
                "the model {:?} is served by {:?}, which does not speak the API of {}; call it through the other API, or route the model elsewhere",
                model.as_str(),
                provider.name(),
                request.api.path()
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message).with_param("model"));
        }
        if let Some(error) = provider.is_off() {
            return Err(error);
        }
        match breaker.permit() {
            Ok(permit) => Ok(Permitted { provider, permit }),
            Err(wait) => {
                let seconds = wait.as_secs().max(1);
                let message = format!(
                    "the provider {:?} failed too often and is left alone for another {seconds} s (cloud.breaker)",
                    provider.name()
                );
                let mut error = Error::new(ErrorKind::Unavailable, message);
                error.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
                Err(error)
            }
        }
    }
}

/// A provider with leave to call it once, of which the breaker hears how it went.
struct Permitted<'a> {
    provider: &'a Provider,
    permit: Permit<'a>,
}

impl Backend for Permitted<'_> {
    fn call<'a>(self: Box<Self>, call: Call) -> BoxFuture<'a, Result<Answer, Error>>
    where
        Self: 'a,
    {
        let Self { provider, permit } = *self;
        let span = call.span.clone();
        Box::pin(async move {
            let result = provider.answer(call).instrument(span).await;
            match &result {
                Err(error) if blames_provider(error) => permit.fail(),
                _ => permit.succeed(),
            }
            result
        })
    }
}

/// Whether a failure counts against the provider's breaker.
fn blames_provider(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Upstream
            | ErrorKind::RateLimited
            | ErrorKind::TimeoutFirstToken
            | ErrorKind::TimeoutIdle
            | ErrorKind::TimeoutTotal
    )
}
