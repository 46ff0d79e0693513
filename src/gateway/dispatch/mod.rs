//! From a decoded request to an answer that has begun: pick targets, try them in order, measure.
//!
//! Nothing here knows a wire format or what a target does with a call.

pub mod breaker;
pub mod meter;
pub mod route;

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use mlx_manager_config::{CloudConfig, Target};
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Api, Backend, Call, Context, Error, ErrorKind, Request};
use mlx_manager_signal::{
    event::{RouteDecided, TargetCalled, TargetFailed, TargetFailedOver, TargetsTried},
    provider::{self, MLX},
    redact::ModelLabel,
    span::{self, Destination, InferenceStart},
};
use tracing::{Instrument, Span};

use self::{
    breaker::Breaker,
    meter::Meter,
    route::{Decision, RouteTable},
};
use super::{
    cloud::Provider,
    local::{Engine, Local},
};
use crate::store::AuditSender;

/// The provider name of local models in spans, metrics and audit rows.

/// Everything a request can be sent to.
pub struct Dispatch {
    routes: RouteTable,
    engine: Engine,
    providers: HashMap<String, Watched>,
    audit: AuditSender,
}

struct Watched {
    provider: Provider,
    breaker: Breaker,
}

/// A model in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedModel {
    /// What requests call it.
    pub id: String,
    /// When it came to be, as far as known.
    pub created: Timestamp,
    /// The provider, or `mlx`.
    pub owner: String,
}

impl Dispatch {
    /// Puts the targets together.
    ///
    /// # Errors
    /// When a route's pattern is no glob.
    pub fn new(
        config: &CloudConfig,
        engine: Engine,
        providers: Vec<(Provider, Breaker)>,
        audit: AuditSender,
    ) -> Result<Self, globset::Error> {
        let providers = providers
            .into_iter()
            .map(|(provider, breaker)| (provider.name().to_owned(), Watched { provider, breaker }))
            .collect();
        Ok(Self { routes: RouteTable::new(&config.routes)?, engine, providers, audit })
    }

    /// Opens the record of a request.
    pub fn meter(&self, api: Api, context: &Context) -> Meter {
        Meter::open(api, context, self.audit.clone())
    }

    /// Whether a model or a provider can answer.
    pub fn is_ready(&self) -> bool {
        self.engine.ready() || self.providers.values().any(|watched| watched.provider.is_off().is_none())
    }

    /// Lets breakers whose time has come half open, so that their gauge is true without a call.
    pub fn refresh_breakers(&self) {
        self.providers.values().for_each(|watched| watched.breaker.refresh());
    }

    /// The models that have a name: local ones, and those that a route names without a glob.
    pub fn models(&self) -> Vec<ListedModel> {
        let mut models: Vec<_> = self
            .engine
            .models()
            .into_iter()
            .map(|(id, created)| ListedModel { id, created, owner: MLX.to_owned() })
            .collect();
        for (id, provider) in self.routes.named_models() {
            if models.iter().all(|model| model.id != id) {
                let owner = provider::label(provider);
                models.push(ListedModel { id: id.to_owned(), created: Timestamp::UNIX_EPOCH, owner: owner.to_owned() });
            }
        }
        models
    }

    /// Finds the targets and calls them in order until one answers. `headers` are those of the caller's that its
    /// provider should see.
    ///
    /// # Errors
    /// The last target's failure, when none answered.
    pub async fn start(
        &self,
        meter: &mut Meter,
        request: Arc<Request>,
        context: &Context,
        headers: Vec<(String, String)>,
    ) -> Result<Answer, Error> {
        let Decision { rule, targets } = self.decide(&request, meter.model(), context)?;
        TargetsTried { rule }.emit();
        let mut failed: Option<(&Target, Error)> = None;
        for target in &targets {
            if let Some((from, error)) = &failed {
                TargetFailedOver { from: &from.provider, to: &target.provider, reason: error.kind.as_str() }.emit();
            }
            match self.attempt(meter, &request, context, target, &headers).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    TargetFailed { provider: &target.provider, kind: error.kind.as_str(), error: &error }.emit();
                    let is_last = std::ptr::eq(target, targets.last().unwrap_or(target));
                    if is_last || !another_may_answer(&error) {
                        return Err(error);
                    }
                    meter.failed_over(&error);
                    failed = Some((target, error));
                }
            }
        }
        Err(failed.map_or_else(|| Error::new(ErrorKind::Internal, "the route has no targets"), |(_, error)| error))
    }

    fn decide(&self, request: &Request, model: &ModelLabel, context: &Context) -> Result<Decision<'_>, Error> {
        let span = span::route(&context.span, model);
        let _entered = span.enter();
        let decision = self.routes.decide(&request.model, |name| self.engine.has(name));
        let rule = decision.as_ref().map_or("none", |decision| decision.rule);
        let targets: Vec<String> = decision.iter().flat_map(|decision| &decision.targets).map(target_name).collect();
        span::route_finished(&span, rule, &targets);
        RouteDecided { rule, model, target: targets.first().map(String::as_str) }.emit();
        decision.ok_or_else(|| {
            let message = format!(
                "the model {:?} does not exist: no route matches it and no local model has that name; GET /v1/models lists what there is",
                model.as_str()
            );
            Error::new(ErrorKind::ModelNotFound, message).with_param("model")
        })
    }

    /// Calls one target.
    async fn attempt(
        &self,
        meter: &mut Meter,
        request: &Arc<Request>,
        context: &Context,
        target: &Target,
        headers: &[(String, String)],
    ) -> Result<Answer, Error> {
        let model = target.model.as_deref().unwrap_or(&request.model);
        let call = |span: &Span| Call {
            request: Arc::clone(request),
            model: model.to_owned(),
            context: context.clone(),
            span: span.clone(),
            headers: headers.to_vec(),
        };
        let label = target.model.as_deref().map_or_else(|| meter.model().clone(), ModelLabel::new);
        let asked = |destination| InferenceStart { request, model: &label, destination, capture: dialect::CAPTURE };
        TargetCalled { provider: &target.provider, model: &label }.emit();
        if target.is_local() {
            let span = span::inference(&context.span, &asked(Destination::Local));
            meter.target(Destination::Local, &label, None, &span);
            return Local(self.engine.clone()).call(call(&span)).instrument(span.clone()).await;
        }
        let Some(Watched { provider, breaker }) = self.providers.get(&target.provider) else {
            let message = format!("the route names a provider {:?} that is not configured", target.provider);
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        let destination = Destination::Cloud {
            provider: provider.name(),
            kind: provider.kind(),
            address: provider.address(),
            port: provider.port(),
        };
        let span = span::inference(&context.span, &asked(destination));
        meter.target(destination, &label, Some(provider.prices()), &span);
        if provider.dialect() != request.api.dialect() {
            let message = format!(
                "the model {:?} is served by {:?}, which does not speak the API of {}; call it through the other API, or route the model elsewhere",
                label.as_str(),
                provider.name(),
                request.api.path()
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message).with_param("model"));
        }
        if let Some(error) = provider.is_off() {
            return Err(error);
        }
        let permit = match breaker.permit() {
            Ok(permit) => permit,
            Err(wait) => {
                let seconds = wait.as_secs().max(1);
                let message = format!(
                    "the provider {:?} failed too often and is left alone for another {seconds} s (cloud.breaker)",
                    provider.name()
                );
                let mut error = Error::new(ErrorKind::Unavailable, message);
                error.headers.push(("retry-after".to_owned(), seconds.to_string()));
                return Err(error);
            }
        };
        match provider.call(call(&span)).instrument(span.clone()).await {
            Ok(answer) => {
                permit.succeed();
                Ok(answer)
            }
            Err(error) => {
                if blames_provider(&error) {
                    permit.fail();
                } else {
                    permit.succeed();
                }
                Err(error)
            }
        }
    }

    /// Stops the engine; open requests were drained before.
    pub async fn shutdown(&self) {
        self.engine.shutdown().await;
    }
}

fn target_name(target: &Target) -> String {
    match &target.model {
        Some(model) => format!("{}/{model}", target.provider),
        None => target.provider.clone(),
    }
}

/// Whether another target could do better. What the caller did wrong is wrong everywhere, except that a model unknown
/// to one target, or a request that it can't carry out, may suit the next.
fn another_may_answer(error: &Error) -> bool {
    match error.kind {
        ErrorKind::RateLimited
        | ErrorKind::Overloaded
        | ErrorKind::Unavailable
        | ErrorKind::Upstream
        | ErrorKind::Engine
        | ErrorKind::Unauthorized
        | ErrorKind::ModelNotFound
        | ErrorKind::TimeoutFirstToken
        | ErrorKind::TimeoutIdle => true,
        ErrorKind::InvalidRequest
        | ErrorKind::ContextLength
        | ErrorKind::BodyTooLarge
        | ErrorKind::UpstreamRefused
        | ErrorKind::TimeoutTotal
        | ErrorKind::Internal => false,
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
