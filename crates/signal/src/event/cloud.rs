//! What happens between us and the providers.

use std::{error::Error, time::Duration};

use strum::IntoStaticStr;

use super::milliseconds;
use crate::{
    metric::{
        Labels, add,
        name::{Counter, Gauge, Histogram, Label},
        observe, set,
    },
    provider,
    redact::ModelLabel,
    target,
};

/// One physical call to a provider ended: its answer began, or it failed before.
#[derive(Debug)]
pub struct AttemptFinished<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// `server.address`
    pub address: &'a str,
    /// `server.port`
    pub port: u16,
    /// The status, if an answer came.
    pub status: Option<u16>,
    /// The failure's kind: a status of 400 and more, or `connect`, `timeout`, `body`, `decode`.
    pub error_type: Option<&'a str>,
    /// From the request to the first content of a stream, the whole of another answer, or the failure.
    pub duration: Duration,
}

impl AttemptFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_CLOUD,
            provider = self.provider, status = self.status, error_type = self.error_type,
            duration_ms = milliseconds(self.duration), "provider called"
        );
        let Self { address, port, status, error_type, duration, .. } = self;
        // Every call to a provider is a POST.
        observe_call("POST", HttpCall { address, port, status, error_type, duration });
    }
}

/// A physical HTTP call, as its metric has it.
#[derive(Debug, Clone, Copy)]
pub struct HttpCall<'a> {
    /// `server.address`
    pub address: &'a str,
    /// `server.port`
    pub port: u16,
    /// The status, if an answer came.
    pub status: Option<u16>,
    /// The failure's kind.
    pub error_type: Option<&'a str>,
    /// From the request to the headers, or to the failure.
    pub duration: Duration,
}

pub(super) fn observe_call(method: &'static str, call: HttpCall<'_>) {
    let (mut port, mut status) = (itoa::Buffer::new(), itoa::Buffer::new());
    let labels = Labels::none()
        .with(Label::Method, method)
        .with_text(Label::ServerAddress, call.address)
        .with_text(Label::ServerPort, port.format(call.port))
        .with_optional(Label::StatusCode, call.status.map(|code| status.format(code)))
        .with_optional(Label::ErrorType, call.error_type);
    observe(Histogram::HttpClientRequestDuration, labels, call.duration.as_secs_f64());
}

/// One HTTP call to a provider failed, and another is about to be made.
#[derive(Debug)]
pub struct AttemptFailed<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl AttemptFailed<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_CLOUD,
            provider = self.provider, error = self.error, "attempt failed"
        );
    }
}

/// A call will be tried again.
#[derive(Debug)]
pub struct AttemptRetried<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// `connect`, `timeout`, `rate_limited`, `server_error` or `conflict`.
    pub reason: &'static str,
    /// Which retry, from 1.
    pub attempt: u32,
    /// How long we wait first.
    pub delay: Duration,
}

impl AttemptRetried<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_CLOUD,
            provider = self.provider, reason = self.reason, attempt = self.attempt,
            delay_ms = milliseconds(self.delay), "retrying"
        );
        let labels = Labels::none().with_text(Label::Provider, self.provider).with(Label::Reason, self.reason);
        add(Counter::Retries, labels, 1);
    }
}

/// A request moved on to the next target of its route.
#[derive(Debug)]
pub struct TargetFailedOver<'a> {
    /// The provider that failed.
    pub from: &'a str,
    /// The provider tried next.
    pub to: &'a str,
    /// Why.
    pub reason: &'static str,
}

impl TargetFailedOver<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_DISPATCH,
            from = self.from, to = self.to, reason = self.reason, "failing over"
        );
        let labels = Labels::none()
            .with_text(Label::From, provider::label(self.from))
            .with_text(Label::To, provider::label(self.to));
        add(Counter::Fallbacks, labels, 1);
    }
}

/// States of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum BreakerState {
    /// Calls pass (0).
    Closed,
    /// One probe passes (1).
    HalfOpen,
    /// No call passes (2).
    Open,
}

impl BreakerState {
    /// The name in log lines.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The value of the gauge.
    fn as_number(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// The circuit breaker of a model at a provider changed.
#[derive(Debug)]
pub struct BreakerChanged<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// The model's name there.
    pub model: &'a ModelLabel,
    /// Its new state.
    pub state: BreakerState,
    /// The worst state among the provider's models.
    pub worst: BreakerState,
}

impl BreakerChanged<'_> {
    /// States the fact.
    pub fn emit(self) {
        let (provider, model, state) = (self.provider, self.model.as_str(), self.state.as_str());
        match self.state {
            BreakerState::Open => {
                tracing::warn!(target: target::SERVER_DISPATCH, provider, model, state, "circuit breaker");
            }
            BreakerState::Closed | BreakerState::HalfOpen => {
                tracing::info!(target: target::SERVER_DISPATCH, provider, model, state, "circuit breaker");
            }
        }
        set(Gauge::BreakerState, Labels::none().with_text(Label::Provider, provider), self.worst.as_number());
    }
}

/// A provider asked to be left alone with a model for a while.
#[derive(Debug)]
pub struct ModelPaused<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// The model's name there.
    pub model: &'a ModelLabel,
    /// For how long.
    pub wait: Duration,
}

impl ModelPaused<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_DISPATCH,
            provider = self.provider, model = self.model.as_str(), wait_ms = milliseconds(self.wait),
            "left alone, as it asked"
        );
    }
}

/// A failed call of a route is not tried again, because too many were.
#[derive(Debug)]
pub struct RetryBudgetSpent<'a> {
    /// The rule.
    pub rule: &'a str,
}

impl RetryBudgetSpent<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_DISPATCH, rule = self.rule, "not retrying: the route's retry_budget is spent"
        );
    }
}

/// A provider refused that its stream was asked for usage; the call is made again without.
#[derive(Debug)]
pub struct UsageRefused<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
}

impl UsageRefused<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_CLOUD, provider = self.provider,
            "retrying without stream_options: where they were what it refused, the usage of its streams is an estimate"
        );
        let labels = Labels::none().with_text(Label::Provider, self.provider).with(Label::Reason, "usage_refused");
        add(Counter::Retries, labels, 1);
    }
}

/// A frame of a provider's stream was forwarded without being understood.
#[derive(Debug)]
pub struct FrameUnreadable<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// Whether it is the first of its stream, of which one line is enough.
    pub is_first: bool,
}

impl FrameUnreadable<'_> {
    /// States the fact.
    pub fn emit(self) {
        if self.is_first {
            tracing::warn!(
                target: target::SERVER_CLOUD, provider = self.provider, "forwarding a frame that can't be read"
            );
        }
        add(Counter::ObserverUnreadable, Labels::none().with_text(Label::Provider, self.provider), 1);
    }
}

/// A provider told how much of its rate limit is left.
#[derive(Debug)]
pub struct RateLimitSeen<'a> {
    /// The `[[providers]]` name.
    pub provider: &'a str,
    /// `requests` or `tokens`.
    pub resource: &'static str,
    /// What is left.
    pub remaining: f64,
}

impl RateLimitSeen<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(
            target: target::SERVER_CLOUD,
            provider = self.provider, resource = self.resource, remaining = self.remaining, "rate limit"
        );
        let labels = Labels::none().with_text(Label::Provider, self.provider).with(Label::Resource, self.resource);
        set(Gauge::RatelimitRemaining, labels, self.remaining);
    }
}

/// The body of a provider's error came too slowly; what arrived in time says enough.
#[derive(Debug)]
pub struct ErrorBodyTimedOut;

impl ErrorBodyTimedOut {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(target: target::SERVER_CLOUD_ATTEMPT, "a provider's error body did not end in time");
    }
}
