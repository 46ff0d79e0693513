//! What happens on the listeners.

use std::time::Duration;

use super::milliseconds;
use crate::{
    hook,
    metric::{
        Labels,
        name::{Gauge, Histogram, Label},
        observe, set, shift,
    },
    route::Kind,
    target,
};

/// Request bodies that are held, in bytes.
#[derive(Debug)]
pub struct BodiesHeld(pub u64);

impl BodiesHeld {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(target: target::SERVER_HTTP, bytes = self.0, "bodies held");
        set(Gauge::InflightBodyBytes, Labels::none(), self.0 as f64);
    }
}

/// A request arrived. Balanced by exactly one [`HttpRequestFinished`].
#[derive(Debug)]
pub struct HttpRequestStarted {
    /// The method, `_OTHER` if it is none of the known ones.
    pub method: &'static str,
    /// The matched route.
    pub route: &'static str,
    /// What its requests are to telemetry.
    pub kind: Kind,
}

impl HttpRequestStarted {
    /// States the fact.
    pub fn emit(self) {
        let (method, route) = (self.method, self.route);
        if self.kind == Kind::Inference {
            tracing::trace!(target: target::SERVER_HTTP, method, route, "request arrived");
        } else {
            tracing::trace!(target: target::HTTP, method, route, "request arrived");
        }
        shift(Gauge::HttpServerActiveRequests, endpoint(method, route), 1.0);
    }
}

/// A request's last byte was handed over, or its client left.
#[derive(Debug)]
pub struct HttpRequestFinished {
    /// The method, `_OTHER` if it is none of the known ones.
    pub method: &'static str,
    /// The matched route.
    pub route: &'static str,
    /// What its requests are to telemetry.
    pub kind: Kind,
    /// The status; `None` when the client left before there was one.
    pub status: Option<u16>,
    /// The kind of failure, from 500 on.
    pub error_type: Option<&'static str>,
    /// From the first byte in to the last byte out.
    pub duration: Duration,
}

impl HttpRequestFinished {
    /// States the fact.
    pub fn emit(self) {
        // Most failures were known before. A panic outside of the handler, or an answer that broke off, shows only here.
        if self.error_type.is_some() {
            hook::tell_story();
        }
        self.log();
        shift(Gauge::HttpServerActiveRequests, endpoint(self.method, self.route), -1.0);
        let mut digits = itoa::Buffer::new();
        let labels = endpoint(self.method, self.route)
            .with_optional(Label::StatusCode, self.status.map(|status| digits.format(status)))
            .with_optional(Label::ErrorType, self.error_type);
        observe(Histogram::HttpServerRequestDuration, labels, self.duration.as_secs_f64());
    }

    /// A failed inference has its own line, with the cause; of the rest this is the only one. Not being ready
    /// is an answer, and a probe asks for it every few seconds.
    fn log(&self) {
        let (method, route, status, error_type) = (self.method, self.route, self.status, self.error_type);
        let duration_ms = milliseconds(self.duration);
        let is_not_yet = self.kind == Kind::Probe && status == Some(503);
        if self.kind == Kind::Inference {
            tracing::debug!(
                target: target::SERVER_HTTP,
                method, route, status, error_type, duration_ms, "request answered"
            );
        } else if error_type.is_some() && !is_not_yet {
            tracing::warn!(target: target::HTTP, method, route, status, error_type, duration_ms, "request failed");
        } else {
            tracing::debug!(target: target::HTTP, method, route, status, duration_ms, "request answered");
        }
    }
}

fn endpoint(method: &'static str, route: &'static str) -> Labels<'static> {
    Labels::none().with(Label::Method, method).with(Label::Route, route)
}
