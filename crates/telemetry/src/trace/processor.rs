//! Sends each ended span on its way: to every destination that wants spans, under the service that its target belongs to.

use std::{sync::Arc, time::Duration};

use mlx_manager_config::TracesConfig;
use opentelemetry::{
    Context,
    trace::{Span as _, TraceContextExt},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use parking_lot::Mutex;

use super::{pending::Pending, tail::Tail};
use crate::otlp::{self, Item, Queue};

#[derive(Debug)]
pub(super) struct Router {
    queues: Vec<Queue<Item>>,
    /// Absent when every trace is sampled anyway.
    tail: Option<Mutex<Tail>>,
    /// Absent when nobody wants pending spans.
    pending: Option<Arc<Pending>>,
}

impl Router {
    pub(super) fn new(queues: Vec<Queue<Item>>, traces: &TracesConfig, pending: Option<Arc<Pending>>) -> Self {
        let tail = (traces.sample_ratio < 1.0).then(|| Mutex::new(Tail::new(traces.keep_slower_than)));
        Self { queues, tail, pending }
    }

    fn export(&self, span: &SpanData) {
        let item = otlp::span(span);
        self.queues.iter().for_each(|queue| queue.push(item.clone()));
    }
}

impl SpanProcessor for Router {
    /// Local roots are followed from here, where all that is known of them is set already.
    fn on_start(&self, span: &mut Span, parent: &Context) {
        let Some(pending) = &self.pending else { return };
        let parent = parent.span();
        let parent = parent.span_context();
        if span.span_context().is_sampled()
            && (!parent.is_valid() || parent.is_remote())
            && let Some(span) = span.exported_data()
        {
            pending.started(span);
        }
    }

    fn on_end(&self, span: SpanData) {
        if let Some(pending) = &self.pending {
            pending.ended(span.span_context.span_id());
        }
        let undecided = if span.span_context.is_sampled() { None } else { self.tail.as_ref() };
        let Some(tail) = undecided else { return self.export(&span) };
        let verdict = tail.lock().end(span);
        if verdict.dropped > 0 {
            self.queues.iter().for_each(|queue| queue.count_dropped(verdict.dropped));
        }
        verdict.keep.iter().for_each(|span| self.export(span));
    }

    // Flushing and ending are the business of the one who owns the exporters, who does it with a deadline.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
