//! Pending spans: what Logfire shows of a request before it is over.
//!
//! A span goes out when it ends, so a long request would be invisible while it runs. Logfire knows a `pending_span` for
//! this: a span without duration, child of the span it announces, with what was known of that one at its start. Its own
//! SDK sends one for each span at once, which doubles what is sent. Here only what still runs after [`AFTER`] is
//! announced, and only a request's own span and its inference: the others are over soon or say no more. Nothing is
//! announced of a trace that the tail rule may yet drop.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use mlx_manager_signal::{
    hook::{Follow, Follower, StartedInference},
    target,
};
use opentelemetry::{
    KeyValue, SpanId,
    trace::{SpanContext, Status, TraceContextExt},
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::otlp::{self, Item, Queue};

/// How long a span runs before it is announced.
pub(super) const AFTER: Duration = Duration::from_secs(1);
/// Spans followed at most; those beyond are never announced, and go out when they end like all others.
const FOLLOWED: usize = 16_384;

/// The open spans of the last second, and where to announce those that outlast it.
#[derive(Debug)]
pub(super) struct Pending {
    queues: Vec<Queue<Item>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<SpanId, Box<SpanData>>,
    /// In the order of their starts; spans that ended are skipped.
    due: VecDeque<(Instant, SpanId)>,
}

/// The hook by which span constructors tell of new inference spans.
pub(super) fn follower(pending: Option<Arc<Pending>>) -> Follower {
    Follower(pending.map(|pending| -> Box<Follow> { Box::new(move |started| pending.inference_started(started)) }))
}

impl Pending {
    pub(super) fn new(queues: Vec<Queue<Item>>) -> Self {
        Self { queues, state: Mutex::default() }
    }

    /// Follows a span that started just now. The tail rule decides about the others, and later.
    pub(super) fn started(&self, span: SpanData) {
        let mut state = self.lock();
        if span.span_context.is_sampled() && state.due.len() < FOLLOWED {
            state.due.push_back((Instant::now() + AFTER, span.span_context.span_id()));
            state.open.insert(span.span_context.span_id(), Box::new(span));
        }
    }

    /// Follows an inference span.
    fn inference_started(&self, started: StartedInference<'_>) {
        let StartedInference { span, parent, name, kind, mut attributes } = started;
        attributes.push(KeyValue::new("target", target::SERVER_DISPATCH));
        let now = SystemTime::now();
        self.started(SpanData {
            span_context: span.context().span().span_context().clone(),
            parent_span_id: parent.context().span().span_context().span_id(),
            parent_span_is_remote: false,
            span_kind: kind,
            name: name.into(),
            start_time: now,
            end_time: now,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: otlp::scope(),
        });
    }

    /// Forgets a span, which from here on speaks for itself.
    pub(super) fn ended(&self, span: SpanId) {
        self.lock().open.remove(&span);
    }

    /// Announces what is due whenever something is. Ends with the one who follows.
    pub(super) async fn run(this: Weak<Self>) {
        // Whatever starts meanwhile is due no earlier.
        let mut next = Instant::now() + AFTER;
        loop {
            tokio::time::sleep_until(next).await;
            let Some(this) = this.upgrade() else { return };
            next = this.announce(Instant::now());
        }
    }

    /// Announces what is due and says when something will be again.
    fn announce(&self, now: Instant) -> Instant {
        // Queued under the lock: a span that ends now comes after its announcement.
        let mut state = self.lock();
        while let Some((due, id)) = state.due.front().copied() {
            if due > now {
                return due;
            }
            state.due.pop_front();
            if let Some(span) = state.open.remove(&id) {
                let item = otlp::span(&pending(*span));
                self.queues.iter().for_each(|queue| queue.push(item.clone()));
            }
        }
        now + AFTER
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// What announces a span, as Logfire's own SDK makes it.
fn pending(mut span: SpanData) -> SpanData {
    let announced = span.span_context;
    let parent = std::mem::replace(&mut span.parent_span_id, announced.span_id());
    span.parent_span_is_remote = false;
    span.span_context = SpanContext::new(
        announced.trace_id(),
        RandomIdGenerator::default().new_span_id(),
        announced.trace_flags(),
        false,
        announced.trace_state().clone(),
    );
    span.end_time = span.start_time;
    span.attributes.retain(|attribute| attribute.key.as_str() != "logfire.span_type");
    span.attributes.push(KeyValue::new("logfire.span_type", "pending_span"));
    span.attributes.push(KeyValue::new("logfire.pending_parent_id", parent.to_string()));
    span
}

#[cfg(test)]
mod tests {
    use opentelemetry::{
        InstrumentationScope, TraceFlags, TraceId,
        trace::{SpanKind, TraceState},
    };

    use super::*;

    fn span(id: u64, flags: TraceFlags) -> SpanData {
        let ids = SpanContext::new(TraceId::from(1), SpanId::from(id), flags, false, TraceState::default());
        let now = SystemTime::now();
        SpanData {
            span_context: ids,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Server,
            name: "span".into(),
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    #[test]
    fn what_ended_in_time_is_forgotten_and_what_is_followed_is_bounded() {
        let pending = Pending::new(Vec::new());
        let before = Instant::now();
        pending.started(span(1, TraceFlags::SAMPLED));
        pending.started(span(2, TraceFlags::SAMPLED));
        pending.started(span(3, TraceFlags::default()));
        pending.ended(SpanId::from(1));
        assert_eq!(pending.lock().open.keys().collect::<Vec<_>>(), [&SpanId::from(2)]);
        let next = pending.announce(before);
        assert!(next >= before + AFTER);
        assert_eq!(pending.lock().open.len(), 1, "not yet");
        pending.announce(Instant::now() + AFTER);
        assert!(pending.lock().open.is_empty() && pending.lock().due.is_empty());

        (0..FOLLOWED as u64 + 10).for_each(|id| pending.started(span(100 + id, TraceFlags::SAMPLED)));
        assert_eq!(pending.lock().open.len(), FOLLOWED);
    }
}
