//! From a decoded request to an answer that has begun: pick targets, ask them in turn, measure.
//!
//! Each target is asked in the same steps: found, measured from then on, opened ([`target`]) and called. What may keep a
//! request from its target stands before the call, so that a refusal costs nothing. Where a request goes on after a failure
//! is said by one table ([`verdict`]), in which order and when by its [`course`]. Nothing here knows a wire format or what a
//! target does with a call.

pub(crate) mod breaker;
mod budget;
mod course;
pub mod meter;
mod route;
mod target;
mod verdict;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use mlx_manager_config as config;
use mlx_manager_config::Config;
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Answer, Api, Call, Context, Error, ErrorKind, Priority, Request};
use mlx_manager_signal::{
    event::{
        AttemptFailed, AttemptRetried, RetryBudgetSpent, RouteDecided, TargetCalled, TargetFailed, TargetFailedOver,
        TargetsTried,
    },
    provider::{self, MLX},
    redact::ModelLabel,
    span::{self, InferenceStart},
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use self::{
    breaker::Breaker,
    budget::Budget,
    course::{Course, Step, told},
    meter::Meter,
    route::{Decision, RouteTable},
    target::{Target, Watched},
    verdict::verdict,
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
    stream_commit_after: Duration,
}

/// What a caller asks for, and how.
pub(crate) struct Ask {
    pub request: Arc<Request>,
    pub context: Context,
    /// What its provider should see beside the body.
    pub passed: Passed,
    /// What the caller says of who goes first, before its route and the default do.
    pub priority: Option<Priority>,
}

/// A target that is being asked.
struct Visit {
    /// The model's name there.
    model: String,
    span: Span,
    tries: u32,
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
        providers: Vec<(Provider, Arc<Breaker>)>,
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
            stream_commit_after: config.cloud.stream_commit_after,
        })
    }

    /// Opens the record of a request.
    pub(crate) fn meter(&self, api: Api, context: &Context) -> Box<Meter> {
        Meter::open(api, context, self.audit.clone(), self.cut_off.clone())
    }

    /// How long the head of a streamed answer waits for its content.
    pub(crate) fn stream_commit_after(&self) -> Duration {
        self.stream_commit_after
    }

    /// The local engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether a model or a provider can answer.
    pub(crate) fn is_ready(&self) -> bool {
        self.engine.ready() || self.providers.values().any(|watched| watched.provider.is_off().is_none())
    }

    /// Lets breakers whose time has come half open, so that their gauge is true without a call, and closes connections that no
    /// call has used for long.
    pub(crate) fn refresh(&self) {
        for watched in self.providers.values() {
            watched.breaker.refresh();
            watched.provider.prune();
        }
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

    /// Finds the targets and asks them in turn until one answers.
    ///
    /// # Errors
    /// The most telling failure, when none answered.
    pub(crate) async fn start(&self, meter: &mut Meter, ask: Ask) -> Result<Answer, Error> {
        let began = Instant::now();
        let Decision { rule, targets: named, priority, budget } =
            self.decide(&ask.request, meter.model(), &ask.context)?;
        let priority = ask.priority.or(priority).unwrap_or(self.priority);
        budget.into_iter().for_each(Budget::deposit);
        TargetsTried { rule }.emit();
        let targets = named.iter().map(|target| self.target(target)).collect::<Result<Vec<_>, _>>()?;
        let mut course = Course::new(targets.iter().map(|target| target.patience(began)));
        let mut called = vec![false; targets.len()];
        let mut failures: Vec<Error> = Vec::new();
        // The target that was asked last, and the span of that.
        let mut visit: Option<(usize, Visit)> = None;
        loop {
            let index = match course.step() {
                Step::Ask(index) => index,
                // One that was paused and hasn't been called yet.
                Step::AskAgain { index, at, .. } if !called[index] => {
                    sleep_until(at).await;
                    index
                }
                Step::AskAgain { index, at, delay, reason } => {
                    if budget.is_some_and(|budget| !budget.withdraw()) {
                        RetryBudgetSpent { rule }.emit();
                        break;
                    }
                    let provider = &named[index].provider;
                    if let Some(error) = failures.last().filter(|_| visit.as_ref().is_some_and(|(at, _)| *at == index))
                    {
                        AttemptFailed { provider, error }.emit();
                    }
                    AttemptRetried { provider, reason, attempt: course.retries(), delay }.emit();
                    meter.retried();
                    sleep_until(at).await;
                    index
                }
                Step::End => break,
            };
            if let (Some((from, _)), Some(error)) = (visit.take_if(|(asked, _)| *asked != index), failures.last()) {
                let (from, to, reason) = (&named[from].provider, &named[index].provider, error.kind.as_str());
                TargetFailed { provider: from, kind: reason, error }.emit();
                meter.failed_over(error);
                TargetFailedOver { from, to, reason }.emit();
            }
            let (_, asked) =
                visit.get_or_insert_with(|| (index, self.visit(meter, &ask, &named[index], &targets[index])));
            let call = Call {
                request: Arc::clone(&ask.request),
                model: asked.model.clone(),
                priority,
                context: ask.context.clone(),
                span: asked.span.clone(),
                headers: ask.passed.headers.clone(),
                query: ask.passed.query.clone(),
                resend: asked.tries,
                deadline: targets[index].patience(began).1,
            };
            let answered = match targets[index].open(&ask.request, &call.model) {
                Ok(backend) => {
                    called[index] = true;
                    asked.tries += 1;
                    backend.call(call).await
                }
                Err(error) => Err(error),
            };
            let error = match answered {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            course.failed(index, &error, verdict(&error));
            failures.push(error);
        }
        if let (Some((index, _)), Some(error)) = (visit, failures.last()) {
            TargetFailed { provider: &named[index].provider, kind: error.kind.as_str(), error }.emit();
        }
        Err(told(failures).unwrap_or_else(|| Error::new(ErrorKind::TimeoutTotal, "no target could be asked in time")))
    }

    /// Begins to ask a target.
    fn visit(&self, meter: &mut Meter, ask: &Ask, named: &config::Target, target: &Target<'_>) -> Visit {
        let model = named.model.as_deref().unwrap_or(&ask.request.model);
        let label = named.model.as_deref().map_or_else(|| meter.model().clone(), ModelLabel::new);
        TargetCalled { provider: &named.provider, model: &label }.emit();
        let destination = target.destination();
        let started = InferenceStart { request: &ask.request, model: &label, destination, capture: dialect::CAPTURE };
        let span = span::inference(&ask.context.span, &started);
        meter.target(destination, &label, target.prices(), &span);
        Visit { model: model.to_owned(), span, tries: 0 }
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
