//! What happens to an inference request.

use std::{error::Error, time::Duration};

use tracing::Level;

use super::milliseconds;
use crate::{
    llm::{Outcome, Record},
    telemetry::{
        log::tell_story,
        metric::{
            LOCAL_PROVIDER, Labels, NO_PROVIDER, OTHER_MODEL, add, add_fraction,
            name::{Counter, Histogram, Label, Sum},
            observe,
        },
    },
};

/// A request was understood, as far as routing needs.
#[derive(Debug)]
pub struct RequestDecoded<'a> {
    /// The model asked for.
    pub model: &'a str,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// The size of its body.
    pub bytes: usize,
}

impl RequestDecoded<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: "mlx_manager::server::api",
            model = self.model, stream = self.stream, body_bytes = self.bytes, "request decoded"
        );
    }
}

/// A target is about to be called.
#[derive(Debug)]
pub struct TargetCalled<'a> {
    /// The provider, as the route names it.
    pub provider: &'a str,
    /// The model's name there.
    pub model: &'a str,
}

impl TargetCalled<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: "mlx_manager::server::dispatch",
            provider = self.provider, model = self.model, "calling target"
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
            target: "mlx_manager::server::dispatch",
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
    pub model: &'a str,
    /// The first target.
    pub target: Option<&'a str>,
}

impl RouteDecided<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: "mlx_manager::server::dispatch",
            rule = self.rule, model = self.model, target_name = self.target, "routed"
        );
        add(Counter::RouteDecisions, Labels::none().with_text(Label::Rule, self.rule), 1);
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
        if !matches!(self.record.outcome, Outcome::Ok | Outcome::ClientAbort) {
            tell_story();
        }
        self.log();
        count(self.record);
        match self.record.provider.as_deref() {
            Some(LOCAL_PROVIDER) => observe_local(self.record),
            Some(provider) => observe_cloud(self.record, provider),
            None => {}
        }
    }

    fn log(&self) {
        let (record, error) = (self.record, self.error);
        // A macro, because the level of an event is part of its call site and the fields must not differ between three.
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: "mlx_manager::server::dispatch", $level,
                    request_id = record.request_id,
                    api = record.api.as_str(),
                    provider = record.provider.as_deref(),
                    model = record.requested_model,
                    response_model = record.response_model.as_deref(),
                    stream = record.stream,
                    outcome = record.outcome.as_str(),
                    status = record.status,
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
        Outcome::Unauthorized | Outcome::RateLimited | Outcome::Shed | Outcome::Unavailable => Level::WARN,
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

fn observe_cloud(record: &Record, provider: &str) {
    let labels = genai_labels(record, provider);
    let ended = labels.clone().with_optional(Label::ErrorType, error_type(record));
    observe(Histogram::GenAiClientOperationDuration, ended, record.duration.as_secs_f64());
    if let Some(first) = record.time_to_first_token {
        observe(Histogram::GenAiClientTimeToFirstChunk, labels.clone(), first.as_secs_f64());
    }
    // One chunk has no time between chunks, and an answer that is not streamed has none at all.
    if record.stream
        && let Some(seconds) = mean_interval(record.generation, record.chunks)
    {
        observe(Histogram::GenAiClientTimePerOutputChunk, labels.clone(), seconds);
    }
    for (kind, tokens) in [("input", record.usage.input), ("output", record.usage.output)] {
        if let Some(tokens) = tokens {
            let labels = labels.clone().with(Label::GenAiTokenType, kind);
            observe(Histogram::GenAiClientTokenUsage, labels, tokens as f64);
        }
    }
}

fn observe_local(record: &Record) {
    let labels = genai_labels(record, LOCAL_PROVIDER);
    let ended = labels.clone().with_optional(Label::ErrorType, error_type(record));
    observe(Histogram::GenAiServerRequestDuration, ended, record.duration.as_secs_f64());
    if let Some(first) = record.time_to_first_token {
        observe(Histogram::GenAiServerTimeToFirstToken, labels.clone(), first.as_secs_f64());
    }
    if let Some(seconds) = mean_interval(record.generation, record.usage.output.unwrap_or(record.chunks)) {
        observe(Histogram::GenAiServerTimePerOutputToken, labels, seconds);
    }
}

fn genai_labels(record: &Record, provider: &str) -> Labels {
    Labels::none()
        .with(Label::GenAiOperation, record.api.operation().as_str())
        .with_text(Label::GenAiProvider, provider)
        .with_text(Label::GenAiRequestModel, model(record))
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
