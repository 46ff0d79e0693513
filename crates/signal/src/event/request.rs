//! What happens to an inference request.

use std::{error::Error, time::Duration};

use mlx_manager_llm::{Inference, Outcome, Record};
use strum::{IntoStaticStr, VariantNames};
use tracing::Level;

use super::milliseconds;
use crate::{
    hook,
    metric::{
        Labels, NO_PROVIDER, OTHER_MODEL, add, add_fraction,
        name::{Counter, Histogram, Label, Sum},
        observe,
    },
    provider,
    redact::ModelLabel,
    target,
};

/// A request was understood, as far as routing needs.
#[derive(Debug)]
pub struct RequestDecoded<'a> {
    /// The model asked for.
    pub model: &'a ModelLabel,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// The size of its body.
    pub bytes: usize,
}

impl RequestDecoded<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_API,
            model = self.model.as_str(), stream = self.stream, body_bytes = self.bytes, "request decoded"
        );
    }
}

/// The targets of a route are about to be tried.
#[derive(Debug)]
pub struct TargetsTried<'a> {
    /// The pattern that matched, or `local`.
    pub rule: &'a str,
}

impl TargetsTried<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(target: target::SERVER_DISPATCH, rule = self.rule, "trying targets");
    }
}

/// A target is about to be called.
#[derive(Debug)]
pub struct TargetCalled<'a> {
    /// The provider, as the route names it.
    pub provider: &'a str,
    /// The model's name there.
    pub model: &'a ModelLabel,
}

impl TargetCalled<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_DISPATCH,
            provider = self.provider, model = self.model.as_str(), "calling target"
        );
    }
}

/// A target did not answer; another may.
#[derive(Debug)]
pub struct TargetFailed<'a> {
    /// The provider, as the route names it.
    pub provider: &'a str,
    /// The kind of failure.
    pub kind: &'static str,
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl TargetFailed<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_DISPATCH,
            provider = self.provider, kind = self.kind, error = self.error, "target failed"
        );
    }
}

/// A request found its targets.
#[derive(Debug)]
pub struct RouteDecided<'a> {
    /// The pattern that matched, or `local` / `none`.
    pub rule: &'a str,
    /// The model asked for.
    pub model: &'a ModelLabel,
    /// The first target.
    pub target: Option<&'a str>,
}

impl RouteDecided<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_DISPATCH,
            rule = self.rule, model = self.model.as_str(), target_name = self.target, "routed"
        );
        add(Counter::RouteDecisions, Labels::none().with_text(Label::Rule, self.rule), 1);
    }
}

/// A part of a request's way through the daemon that is the daemon's own doing: no waiting for a caller, the engine or a
/// provider is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// From a body that is there to a head that is understood.
    Decode,
    /// From there to the first target.
    Route,
    /// Span attributes, log line, metrics and audit row of a finished request.
    Record,
}

impl Phase {
    /// The names of all phases.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The daemon's own share of a request was measured. Three in a request are too many for log lines.
#[derive(Debug)]
pub struct OverheadMeasured {
    /// Which part.
    pub phase: Phase,
    /// How long it took.
    pub duration: Duration,
}

impl OverheadMeasured {
    /// States the fact.
    pub fn emit(self) {
        let labels = Labels::none().with(Label::Phase, self.phase.as_str());
        observe(Histogram::Overhead, labels, self.duration.as_secs_f64());
    }
}

/// A target failed, and its request goes on to the next. Its part of the request is a GenAI operation like any other.
#[derive(Debug)]
pub struct InferenceFailedOver<'a> {
    /// The numbers so far; provider and inference are those of the target.
    pub record: &'a Record,
    /// The kind of failure.
    pub kind: &'static str,
}

impl InferenceFailedOver<'_> {
    /// States the fact. The log has a line for the failure and one for moving on already.
    pub fn emit(self) {
        if let Some(inference) = &self.record.inference {
            observe_duration(self.record, inference, Some(self.kind));
        }
    }
}

/// A request ended, well or not. The only place where its numbers become metrics and a log line.
#[derive(Debug)]
pub struct RequestFinished<'a> {
    /// The numbers.
    pub record: &'a Record,
    /// What went wrong, for the log alone.
    pub error: Option<&'a (dyn Error + 'static)>,
}

impl RequestFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        // Whoever made the mistake: what led to it is what one would otherwise raise the level and try again for.
        if !matches!(self.record.outcome, Outcome::Ok | Outcome::ClientAbort | Outcome::Shutdown) {
            hook::tell_story();
        }
        self.log();
        count(self.record);
        let Some(inference) = &self.record.inference else { return };
        observe_duration(self.record, inference, error_type(self.record));
        if is_local(self.record) {
            observe_local(self.record, inference);
        } else {
            observe_cloud(self.record, inference);
        }
    }

    fn log(&self) {
        let (record, error) = (self.record, self.error);
        // A macro, because the level of an event is part of its call site and the fields must not differ between three.
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: target::SERVER_DISPATCH, $level,
                    request_id = record.request_id,
                    api = record.api.as_str(),
                    provider = record.provider.as_deref(),
                    model = record.requested_model,
                    response_model = record.response_model.as_deref(),
                    stream = record.stream,
                    outcome = record.outcome.as_str(),
                    status = (record.status != 0).then_some(record.status),
                    input_tokens = record.usage.input,
                    output_tokens = record.usage.output,
                    cache_read_tokens = record.usage.cache_read,
                    cache_write_tokens = record.usage.cache_write,
                    reasoning_tokens = record.usage.reasoning,
                    usage_source = record.usage_source.map(|source| source.as_str()),
                    cost_usd = record.cost_usd,
                    queue_ms = record.queue.map(milliseconds),
                    ttft_ms = record.time_to_first_token.map(milliseconds),
                    duration_ms = milliseconds(record.duration),
                    retries = record.retries,
                    finish_reason = record.finish_reason.map(|reason| reason.as_str()),
                    error_kind = record.error_kind,
                    error,
                    "request finished"
                )
            };
        }
        match severity(record.outcome) {
            Level::ERROR => line!(Level::ERROR),
            Level::WARN => line!(Level::WARN),
            _ => line!(Level::INFO),
        }
    }
}

/// A caller's own doing is news, our limits and keys deserve a look, failures of models deserve one now.
fn severity(outcome: Outcome) -> Level {
    match outcome {
        Outcome::Ok | Outcome::ClientAbort | Outcome::InvalidRequest | Outcome::NotFound => Level::INFO,
        Outcome::Shutdown
        | Outcome::Unauthorized
        | Outcome::Forbidden
        | Outcome::RateLimited
        | Outcome::Shed
        | Outcome::Unavailable => Level::WARN,
        Outcome::TimeoutFirstToken
        | Outcome::TimeoutIdle
        | Outcome::TimeoutTotal
        | Outcome::UpstreamError
        | Outcome::EngineError => Level::ERROR,
    }
}

/// The counters. The request itself comes first: an answered one lets its model's name in as a label.
fn count(record: &Record) {
    let target = Labels::none()
        .with_text(Label::Provider, record.provider.as_deref().unwrap_or(NO_PROVIDER))
        .with_text(Label::Model, model(record));
    let labels = Labels::none()
        .with(Label::Api, record.api.as_str())
        .with_text(Label::Provider, record.provider.as_deref().unwrap_or(NO_PROVIDER))
        .with_text(Label::Model, model(record))
        .with(Label::Stream, if record.stream { "true" } else { "false" })
        .with(Label::Outcome, record.outcome.as_str());
    add(Counter::Requests, labels, 1);
    let usage = record.usage;
    for (kind, tokens) in [
        ("input", usage.input),
        ("output", usage.output),
        ("cache_read", usage.cache_read),
        ("cache_write", usage.cache_write),
        ("reasoning", usage.reasoning),
    ] {
        if let Some(tokens) = tokens {
            add(Counter::Tokens, target.clone().with(Label::Type, kind), tokens);
        }
    }
    if let Some(cost) = record.cost_usd {
        add_fraction(Sum::CostUsd, target, cost);
    }
}

/// How long the target had, as its span says it.
fn observe_duration(record: &Record, inference: &Inference, error_type: Option<&'static str>) {
    let labels = genai_labels(record, inference).with_optional(Label::ErrorType, error_type);
    let seconds = inference.duration.as_secs_f64();
    if is_local(record) {
        observe(Histogram::GenAiServerRequestDuration, labels, seconds);
    } else {
        observe(Histogram::GenAiClientOperationDuration, labels.clone(), seconds);
        observe(Histogram::GenAiClientInferenceDuration, labels, seconds);
    }
}

fn observe_cloud(record: &Record, inference: &Inference) {
    let labels = genai_labels(record, inference);
    if let Some(first) = inference.time_to_first_token {
        observe(Histogram::GenAiClientTimeToFirstChunk, labels.clone(), first.as_secs_f64());
        if record.stream {
            observe(Histogram::GenAiClientInferenceTimeToFirstChunk, labels.clone(), first.as_secs_f64());
        }
    }
    // One chunk has no time between chunks, and an answer that is not streamed has none at all.
    if record.stream
        && let Some(seconds) = mean_interval(record.generation, record.chunks)
    {
        observe(Histogram::GenAiClientTimePerOutputChunk, labels.clone(), seconds);
        observe(Histogram::GenAiClientInferenceTimePerOutputChunk, labels.clone(), seconds);
    }
    observe_usage(record, &labels);
}

/// Token counts by the conventions' two generations of names: one histogram with a label for the type, then a counter and
/// a histogram for each type.
fn observe_usage(record: &Record, labels: &Labels<'_>) {
    let usage = record.usage;
    for (kind, tokens, inference) in [
        ("input", usage.input, Histogram::GenAiClientInferenceInputTokens),
        ("output", usage.output, Histogram::GenAiClientInferenceOutputTokens),
    ] {
        if let Some(tokens) = tokens {
            let typed = labels.clone().with(Label::GenAiTokenType, kind);
            observe(Histogram::GenAiClientTokenUsage, typed, tokens as f64);
            observe(inference, labels.clone(), tokens as f64);
        }
    }
    for (counter, tokens) in [
        (Counter::GenAiClientUsageInputTokens, usage.input),
        (Counter::GenAiClientUsageOutputTokens, usage.output),
        (Counter::GenAiClientUsageCacheReadInputTokens, usage.cache_read),
        (Counter::GenAiClientUsageCacheWriteInputTokens, usage.cache_write),
        (Counter::GenAiClientUsageReasoningOutputTokens, usage.reasoning),
    ] {
        if let Some(tokens) = tokens {
            // Providers don't say how much of a prompt was text and how much a picture.
            add(counter, labels.clone().with(Label::GenAiTokenModality, "unknown"), tokens);
        }
    }
}

fn observe_local(record: &Record, inference: &Inference) {
    let labels = genai_labels(record, inference);
    if let Some(first) = inference.time_to_first_token {
        observe(Histogram::GenAiServerTimeToFirstToken, labels.clone(), first.as_secs_f64());
    }
    if let Some(seconds) = mean_interval(record.generation, record.usage.output.unwrap_or(record.chunks)) {
        observe(Histogram::GenAiServerTimePerOutputToken, labels, seconds);
    }
}

/// The attributes of the inference span that are labels too.
fn genai_labels<'a>(record: &'a Record, inference: &'a Inference) -> Labels<'a> {
    Labels::none()
        .with(Label::GenAiOperation, record.api.operation().as_str())
        .with(Label::GenAiProvider, inference.system)
        .with_optional(Label::ManagerProvider, record.provider.as_deref())
        .with_text(Label::GenAiRequestModel, inference.model.as_str())
}

fn is_local(record: &Record) -> bool {
    record.provider.as_deref() == Some(provider::MLX)
}

/// The conventions' `error.type`. A client that went away is not an error.
fn error_type(record: &Record) -> Option<&'static str> {
    match record.outcome {
        Outcome::Ok | Outcome::ClientAbort => None,
        outcome => Some(record.error_kind.unwrap_or(outcome.as_str())),
    }
}

/// A body that could not be read far enough names no model.
fn model(record: &Record) -> &str {
    if record.requested_model.is_empty() { OTHER_MODEL } else { &record.requested_model }
}

/// The time between two of `pieces` that came within `span`, in seconds.
fn mean_interval(span: Option<Duration>, pieces: u64) -> Option<f64> {
    let span = span.filter(|_| pieces > 1)?;
    Some(span.as_secs_f64() / (pieces - 1) as f64)
}
