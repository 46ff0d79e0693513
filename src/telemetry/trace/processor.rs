//! Sends each ended span on its way: to every destination that wants spans, under the service that its target belongs to.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{Context, Value};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};

use super::tail::Tail;
use crate::{
    config::TracesConfig,
    telemetry::otlp::{Service, SpanQueue},
};

#[derive(Debug)]
pub(super) struct Router {
    queues: Vec<SpanQueue>,
    /// Absent when every trace is sampled anyway.
    tail: Option<Mutex<Tail>>,
}

impl Router {
    pub(super) fn new(queues: Vec<SpanQueue>, traces: &TracesConfig) -> Self {
        let tail = (traces.sample_ratio < 1.0).then(|| Mutex::new(Tail::new(traces.keep_slower_than)));
        Self { queues, tail }
    }

    fn export(&self, span: SpanData) {
        let target = span.attributes.iter().find(|attribute| attribute.key.as_str() == "target");
        let service = match target.map(|target| &target.value) {
            Some(Value::String(target)) => Service::of(target.as_str()),
            _ => Service::Manager,
        };
        let Some((last, others)) = self.queues.split_last() else { return };
        for queue in others {
            queue.push((span.clone(), service));
        }
        last.push((span, service));
    }
}

impl SpanProcessor for Router {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let undecided = if span.span_context.is_sampled() { None } else { self.tail.as_ref() };
        let Some(tail) = undecided else { return self.export(span) };
        let verdict = tail.lock().unwrap_or_else(PoisonError::into_inner).end(span);
        if verdict.dropped > 0 {
            self.queues.iter().for_each(|queue| queue.count_dropped(verdict.dropped));
        }
        verdict.keep.into_iter().for_each(|span| self.export(span));
    }

    // Flushing and ending are the business of the one who owns the exporters, who does it with a deadline.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
