//! From a decoded request to an answer that has begun: pick targets, try them in order, measure.
//!
//! Each target is tried in the same steps: found, measured from then on, opened ([`target`]) and called. What may keep a
//! request from its target stands before the call, so that a refusal costs nothing. Nothing here knows a wire format or
//! what a target does with a call.

pub(crate) mod breaker;
pub mod meter;
mod route;
mod target;

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use mlx_manager_config as config;
use mlx_manager_config::Config;
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Api, Call, Context, Error, ErrorKind, Priority, Request};
use mlx_manager_signal::{
    event::{RouteDecided, TargetCalled, TargetFailed, TargetFailedOver, TargetsTried},
    provider::{self, MLX},
    redact::ModelLabel,
    span::{self, InferenceStart},
};
use tokio_util::sync::CancellationToken;

use self::{
    breaker::Breaker,
    meter::Meter,
    route::{Decision, RouteTable},
    target::{Target, Watched},
};
use super::{
    cloud::{Passed, Provider},
    local::Engine,
};
use crate::store::AuditSender;

/// Everything a request can be sent to.
pub(crate) struct Dispatch {
    routes: RouteTable,
    engine: Engine,
    providers: HashMap<String, Watched>,
    audit: AuditSender,
    /// Cancelled when the daemon drops what is still open.
    cut_off: CancellationToken,

    /// Of requests for which nobody says another.
    priority: Priority,
}

/// A model in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedModel {
    /// What requests call it.
    pub id: String,
    /// When it came to be, as far as known.
    pub created: Timestamp,
    /// The provider, or `mlx`.
    pub owner: String,
}

impl Dispatch {
    /// Puts the targets together. `cut_off` is cancelled before requests are dropped whose clients are still there.
    ///
    /// # Errors
    /// When a route's pattern is no glob.
    pub(crate) fn new(
        config: &Config,
        engine: Engine,
        providers: Vec<(Provider, Breaker)>,
        audit: AuditSender,
        cut_off: CancellationToken,
    ) -> Result<Self, globset::Error> {
        let providers = providers
            .into_iter()
            .map(|(provider, breaker)| (provider.name().to_owned(), Watched { provider, breaker }))
            .collect();
        Ok(Self {
            routes: RouteTable::new(&config.cloud.routes)?,
            engine,
            providers,
            audit,
            cut_off,
            priority: config.local.priority,
        })
    }

    /// Opens the record of a request.
    pub(crate) fn meter(&self, api: Api, context: &Context) -> Meter {
        Meter::open(api, context, self.audit.clone(), self.cut_off.clone())
    }

    /// The local engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether a model or a provider can answer.
    pub(crate) fn is_ready(&self) -> bool {
        self.engine.ready() || self.providers.values().any(|watched| watched.provider.is_off().is_none())
    }

    /// Lets breakers whose time has come half open, so that their gauge is true without a call.
    pub(crate) fn refresh_breakers(&self) {
        self.providers.values().for_each(|watched| watched.breaker.refresh());
    }

    /// The models that have a name: local ones, and those that a route names without a glob.
    pub(crate) fn models(&self) -> Vec<ListedModel> {
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

    /// Finds the targets and calls them in order until one answers. `passed` is what its provider should see
    /// beside the body, and `priority` is what it says itself, before its route and the default do.
    ///
    /// # Errors
    /// The last target's failure, when none answered.
    pub(crate) async fn start(
        &self,
        meter: &mut Meter,
        request: Arc<Request>,
        context: &Context,
        passed: Passed,
        priority: Option<Priority>,
    ) -> Result<Answer, Error> {
        let Decision { rule, targets, priority: of_route } = self.decide(&request, meter.model(), context)?;
        let priority = priority.or(of_route).unwrap_or(self.priority);
        TargetsTried { rule }.emit();
        let mut failed: Option<(&config::Target, Error)> = None;
        for target in &targets {
            if let Some((from, error)) = &failed {
                TargetFailedOver { from: &from.provider, to: &target.provider, reason: error.kind.as_str() }.emit();
            }
            match self.attempt(meter, &request, context, target, &passed, priority).await {
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
        target: &config::Target,
        passed: &Passed,
        priority: Priority,
    ) -> Result<Answer, Error> {
        let model = target.model.as_deref().unwrap_or(&request.model);
        let label = target.model.as_deref().map_or_else(|| meter.model().clone(), ModelLabel::new);
        TargetCalled { provider: &target.provider, model: &label }.emit();
        let target = self.target(target)?;
        let destination = target.destination();
        let started = InferenceStart { request, model: &label, destination, capture: dialect::CAPTURE };
        let span = span::inference(&context.span, &started);
        meter.target(destination, &label, target.prices(), &span);
        let backend = target.open(request, &label)?;
        let call = Call {
            request: Arc::clone(request),
            model: model.to_owned(),
            priority,
            context: context.clone(),
            span,
            headers: passed.headers.clone(),
            query: passed.query.clone(),
        };
        backend.call(call).await
    }

    /// The target that a route names.
    fn target(&self, named: &config::Target) -> Result<Target<'_>, Error> {
        if named.is_local() {
            return Ok(Target::Local(&self.engine));
        }
        self.providers.get(&named.provider).map(Target::Cloud).ok_or_else(|| {
            let message = format!("the route names a provider {:?} that is not configured", named.provider);
            Error::new(ErrorKind::Unavailable, message)
        })
    }

    /// Stops the engine; open requests were drained before.
    pub(crate) async fn shutdown(&self) {
        self.engine.shutdown().await;
    }
}

fn target_name(target: &config::Target) -> String {
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
        | ErrorKind::Forbidden
        | ErrorKind::InsufficientQuota
        | ErrorKind::ModelNotFound
        | ErrorKind::TimeoutFirstToken
        | ErrorKind::TimeoutIdle => true,
        ErrorKind::InvalidRequest
        | ErrorKind::ContextLength
        | ErrorKind::BodyTooLarge
        | ErrorKind::UnsupportedMediaType
        | ErrorKind::UpstreamRefused
        | ErrorKind::TimeoutTotal
        | ErrorKind::Internal => false,
    }
}
