//! What is known before the first request: names from the configuration, and the series they open at 0, so that
//! `rate()` sees the first event.

use mlx_manager_config::{LOCAL, LocalConfig, LogConfig, OtlpConfig, Provider, Route};
use mlx_manager_llm::{Api, Operation, Outcome};

use mlx_manager_signal::{
    metric::{
        Labels, NO_PROVIDER, OTHER_MODEL, add, add_fraction,
        name::{self, Counter, Gauge, Histogram, Label, Sum},
        open, set, shift,
    },
    provider::{self, MLX},
};

/// Values of the `reason` label of `retries_total`.
const RETRY_REASONS: [&str; 6] = ["connect", "timeout", "rate_limited", "server_error", "conflict", "usage_refused"];

/// How a request may end before it reaches a target.
const OUTCOMES_WITHOUT_TARGET: [Outcome; 7] = [
    Outcome::ClientAbort,
    Outcome::Shutdown,
    Outcome::Shed,
    Outcome::InvalidRequest,
    Outcome::Unauthorized,
    Outcome::NotFound,
    Outcome::Unavailable,
];

/// The sections of the configuration that name labels.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Local models.
    pub local: &'a LocalConfig,
    /// Providers.
    pub providers: &'a [Provider],
    /// Routes.
    pub routes: &'a [Route],
    /// Log sinks.
    pub log: &'a LogConfig,
    /// OTLP destinations.
    pub otlp: &'a [OtlpConfig],
}

impl<'a> Known<'a> {
    /// Every model name of the configuration: what callers say and what targets are asked for. A glob is not a name.
    pub(super) fn models(&self) -> impl Iterator<Item = &'a str> {
        let renamed = self.routes.iter().flat_map(|route| {
            route
                .targets
                .iter()
                .filter(|target| target.model.is_some())
                .filter_map(|target| route.known_model_at(target))
        });
        self.local_models().chain(self.routes.iter().filter_map(Route::named_model)).chain(renamed)
    }

    fn local_models(&self) -> impl Iterator<Item = &'a str> {
        let configured = self.local.models.iter().map(|model| model.name.as_str());
        let default = self.local.default_model.as_deref();
        default.into_iter().filter(|name| self.local.models.iter().all(|model| model.name != *name)).chain(configured)
    }
}

/// Opens every series whose labels are known.
pub(super) fn open_series(known: &Known<'_>) {
    for &api in Api::ALL {
        for outcome in OUTCOMES_WITHOUT_TARGET {
            open_requests(api, NO_PROVIDER, OTHER_MODEL, &[outcome]);
        }
    }
    // A body that is wrong further on has named its model, and was not yet understood to ask for a stream.
    for model in known.local_models().chain(known.routes.iter().filter_map(Route::named_model)) {
        for &api in Api::ALL {
            open_request(api, NO_PROVIDER, model, "false", Outcome::InvalidRequest);
        }
    }
    known.local_models().for_each(open_local_model);
    for (model, asked) in routed(known.routes, LOCAL) {
        open_local_requests(model);
        open_local_inference(asked);
    }
    open(Histogram::QueueWait, Labels::none());
    for phase in values(Label::Phase) {
        open(Histogram::Overhead, Labels::none().with(Label::Phase, phase));
    }
    for &api in Api::ALL {
        let labels = Labels::none().with(Label::Method, "POST").with(Label::Route, api.path());
        shift(Gauge::HttpServerActiveRequests, labels, 0.0);
    }
    open_cloud(known);
    open_routes(known);
    open_telemetry(known);
    for reason in ["idle", "memory"] {
        add(Counter::Evictions, Labels::none().with(Label::Reason, reason), 0);
    }
    for reason in ["queue_full", "write_failed"] {
        add(Counter::AuditRowsDropped, Labels::none().with(Label::Reason, reason), 0);
    }
    add(Counter::AuditRowsWritten, Labels::none(), 0);
    add(Counter::AuditWriteErrors, Labels::none(), 0);
    set(Gauge::AuditQueueDepth, Labels::none(), 0.0);
    set(Gauge::InflightBodyBytes, Labels::none(), 0.0);
    set(Gauge::QueueDepth, Labels::none(), 0.0);
    set(Gauge::RunningRequests, Labels::none(), 0.0);
    shift(Gauge::PrefixDiskBytes, Labels::none(), 0.0);
    for kind in values(Label::Kind) {
        shift(Gauge::EngineMemoryBytes, Labels::none().with(Label::Kind, kind), 0.0);
    }
    // Only a model's name can make a metric overflow: every other label is closed or comes from the configuration.
    for (_, definition) in name::catalogue() {
        if definition.labels.iter().any(|label| label.is_model()) {
            add(Counter::SeriesDropped, Labels::none().with(Label::Metric, definition.name), 0);
        }
    }
}

/// Opens the series of a local model.
fn open_local_model(model: &str) {
    open_local_requests(model);
    open_local_inference(model);
    let labels = Labels::none().with_text(Label::Model, model);
    for histogram in [
        Histogram::Prefill,
        Histogram::Decode,
        Histogram::DecodeTokensPerSecond,
        Histogram::InterToken,
        Histogram::StepTokens,
        Histogram::SequencePromptTokens,
        Histogram::SequenceGeneratedTokens,
    ] {
        open(histogram, labels.clone());
    }
    for part in values(Label::Part) {
        open(Histogram::Step, labels.clone().with(Label::Part, part));
    }
    for reason in ["stop", "length", "abort", "error"] {
        add(Counter::EngineSequences, labels.clone().with(Label::Reason, reason), 0);
    }
    add(Counter::Preemptions, labels.clone(), 0);
    let prefix_cache = [
        Counter::PrefixCacheLookups,
        Counter::PrefixCacheHits,
        Counter::PrefixCacheQueriedTokens,
        Counter::PrefixCacheHitTokens,
        Counter::PrefixDiskWrites,
        Counter::PrefixDiskReads,
    ];
    for counter in prefix_cache {
        add(counter, labels.clone(), 0);
    }
    // Adding nothing leaves a model that is already loaded as it is.
    for gauge in [Gauge::ModelLoaded, Gauge::ModelLoading, Gauge::ModelMemoryBytes, Gauge::KvCacheBytes] {
        shift(gauge, labels.clone(), 0.0);
    }
}

fn open_local_requests(model: &str) {
    for &api in Api::ALL {
        open_requests(api, MLX, model, Outcome::ALL);
    }
    open_tokens(MLX, model);
}

fn open_local_inference(model: &str) {
    let labels = genai_labels(MLX, MLX, model);
    for histogram in [
        Histogram::GenAiServerRequestDuration,
        Histogram::GenAiServerTimeToFirstToken,
        Histogram::GenAiServerTimePerOutputToken,
    ] {
        open(histogram, labels.clone());
    }
}

/// What routes send to a target: the model as callers name it, and as the target is asked for it.
fn routed<'a>(routes: &'a [Route], provider: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    routes.iter().flat_map(move |route| {
        let named = route.named_model().unwrap_or(OTHER_MODEL);
        let targets = route.targets.iter().filter(move |target| target.provider == provider);
        targets.map(move |target| (named, route.known_model_at(target).unwrap_or(OTHER_MODEL)))
    })
}

fn open_cloud(known: &Known<'_>) {
    for provider in known.providers {
        let name = provider.name.as_str();
        for (model, asked) in routed(known.routes, name).chain([(OTHER_MODEL, OTHER_MODEL)]) {
            for &api in Api::ALL {
                // A provider of the other dialect refuses all.
                let outcomes: &[_] = if provider::dialect(provider.kind) == api.dialect() {
                    Outcome::ALL
                } else {
                    &[Outcome::InvalidRequest]
                };
                open_requests(api, name, model, outcomes);
            }
            open_tokens(name, model);
            open_usage(genai_labels(provider::system(provider.kind), name, asked));
            let labels = Labels::none().with_text(Label::Provider, name).with_text(Label::Model, model);
            add_fraction(Sum::CostUsd, labels, 0.0);
        }
        for reason in RETRY_REASONS {
            let labels = Labels::none().with_text(Label::Provider, name).with(Label::Reason, reason);
            add(Counter::Retries, labels, 0);
        }
        add(Counter::ObserverUnreadable, Labels::none().with_text(Label::Provider, name), 0);
        set(Gauge::BreakerState, Labels::none().with_text(Label::Provider, name), 0.0);
    }
}

fn open_routes(known: &Known<'_>) {
    let rules = known.routes.iter().map(|route| route.model.as_str());
    for rule in rules.chain([LOCAL, "none"]) {
        add(Counter::RouteDecisions, Labels::none().with_text(Label::Rule, rule), 0);
    }
    for pair in known.routes.iter().flat_map(|route| route.targets.windows(2)) {
        let [from, to] = pair else { continue };
        let labels = Labels::none()
            .with_text(Label::From, provider::label(&from.provider))
            .with_text(Label::To, provider::label(&to.provider));
        add(Counter::Fallbacks, labels, 0);
    }
}

fn open_telemetry(known: &Known<'_>) {
    for sink in &known.log.sinks {
        let labels = Labels::none().with_text(Label::Sink, &sink.name);
        for level in values(Label::Level) {
            add(Counter::LogRecordsWritten, labels.clone().with(Label::Level, level), 0);
            add(Counter::LogRecordsDropped, labels.clone().with(Label::Level, level), 0);
        }
        add(Counter::LogIoErrors, labels, 0);
    }
    for destination in known.otlp.iter().filter(|destination| destination.is_active()) {
        for signal in &destination.signals {
            let labels =
                Labels::none().with(Label::Signal, signal.as_str()).with_text(Label::Destination, &destination.name);
            add(Counter::TelemetryExported, labels.clone(), 0);
            add(Counter::TelemetryDropped, labels.clone(), 0);
            add(Counter::TelemetryFailed, labels, 0);
        }
        if destination.spool.is_some() {
            set(Gauge::SpoolBytes, Labels::none().with_text(Label::Destination, &destination.name), 0.0);
        }
    }
}

fn open_requests(api: Api, provider: &str, model: &str, outcomes: &[Outcome]) {
    for outcome in outcomes {
        for stream in ["false", "true"] {
            open_request(api, provider, model, stream, *outcome);
        }
    }
}

fn open_request(api: Api, provider: &str, model: &str, stream: &'static str, outcome: Outcome) {
    let labels = Labels::none()
        .with(Label::Api, api.as_str())
        .with_text(Label::Provider, provider)
        .with_text(Label::Model, model)
        .with(Label::Stream, stream)
        .with(Label::Outcome, outcome.as_str());
    add(Counter::Requests, labels, 0);
}

fn open_tokens(provider: &str, model: &str) {
    for kind in values(Label::Type) {
        let labels =
            Labels::none().with_text(Label::Provider, provider).with_text(Label::Model, model).with(Label::Type, kind);
        add(Counter::Tokens, labels, 0);
    }
}

fn genai_labels<'a>(system: &'static str, provider: &'a str, model: &'a str) -> Labels<'a> {
    Labels::none()
        .with(Label::GenAiOperation, Operation::Chat.as_str())
        .with(Label::GenAiProvider, system)
        .with_text(Label::ManagerProvider, provider)
        .with_text(Label::GenAiRequestModel, model)
}

/// The GenAI conventions' token counters of a cloud provider.
fn open_usage(labels: Labels<'_>) {
    for counter in [
        Counter::GenAiClientUsageInputTokens,
        Counter::GenAiClientUsageOutputTokens,
        Counter::GenAiClientUsageCacheReadInputTokens,
        Counter::GenAiClientUsageCacheWriteInputTokens,
        Counter::GenAiClientUsageReasoningOutputTokens,
    ] {
        for modality in values(Label::GenAiTokenModality) {
            add(counter, labels.clone().with(Label::GenAiTokenModality, modality), 0);
        }
    }
}

/// The values of a label that has a closed set of them.
fn values(label: Label) -> impl Iterator<Item = &'static str> {
    label.values().into_iter().flatten().copied()
}
