//! The tail rule: a trace that was not sampled is kept whole if anything in it failed or if it was slow.
//!
//! Its spans wait here until its local root ends. Those that end after a root that was let go wait for another root of
//! the same trace, but not for long. Pure state, whose clock are the spans.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use opentelemetry::{
    SpanId, TraceId,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::trace::SpanData;

/// Spans waiting at most, over all traces.
const SPANS: usize = 16_384;
/// What waits for longer than this has no root to come: no request takes as long.
const STALE: Duration = Duration::from_hours(1);
/// Kept traces remembered for spans that end after their root.
const REMEMBERED: usize = 1_024;

#[derive(Debug)]
pub(super) struct Tail {
    keep_slower_than: Duration,
    waiting: HashMap<TraceId, Vec<SpanData>>,
    /// Arrival order of the traces in `waiting`; ids of traces that left are skipped.
    order: VecDeque<TraceId>,
    spans: usize,
    kept: VecDeque<TraceId>,
}

/// What is to be done when a span ended.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Spans to export.
    pub keep: Vec<SpanData>,
    /// Spans that were let go undecided because too many wait.
    pub dropped: u64,
}

impl Tail {
    pub(super) fn new(keep_slower_than: Duration) -> Self {
        Self { keep_slower_than, waiting: HashMap::new(), order: VecDeque::new(), spans: 0, kept: VecDeque::new() }
    }

    /// Takes a span that was recorded but not sampled.
    pub(super) fn end(&mut self, span: SpanData) -> Verdict {
        let trace = span.span_context.trace_id();
        let links_to_kept = span.links.iter().any(|link| self.kept.contains(&link.span_context.trace_id()));
        if self.kept.contains(&trace) || links_to_kept {
            return Verdict { keep: vec![span], dropped: 0 };
        }
        // The statement that writes a finished request's row has only the id of its parent, as if that were remote. It
        // shares the fate of its trace, and if that was let go, there is nothing to wait for.
        let is_afterthought = span.parent_span_is_remote && span.span_kind != SpanKind::Server;
        if is_afterthought && !self.waiting.contains_key(&trace) {
            return Verdict::default();
        }
        let is_root = span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote && !is_afterthought;
        if !is_root {
            let dropped = self.wait(trace, span);
            return Verdict { keep: Vec::new(), dropped };
        }
        let mut spans = self.waiting.remove(&trace).unwrap_or_default();
        self.spans -= spans.len();
        let slow = span.end_time.duration_since(span.start_time).unwrap_or_default() >= self.keep_slower_than;
        spans.push(span);
        let failed = spans.iter().any(|span| matches!(span.status, Status::Error { .. }));
        if !(slow || failed) {
            return Verdict::default();
        }
        if self.kept.len() == REMEMBERED {
            self.kept.pop_front();
        }
        self.kept.push_back(trace);
        Verdict { keep: spans, dropped: 0 }
    }

    fn wait(&mut self, trace: TraceId, span: SpanData) -> u64 {
        self.forget_stale(span.end_time);
        let mut dropped = 0;
        while self.spans >= SPANS {
            let Some(oldest) = self.order.pop_front() else { break };
            let spans = self.waiting.remove(&oldest).map_or(0, |spans| spans.len());
            self.spans -= spans;
            dropped += spans as u64;
        }
        let spans = self.waiting.entry(trace).or_default();
        if spans.is_empty() {
            self.order.push_back(trace);
        }
        spans.push(span);
        self.spans += 1;
        // Most traces leave by their root; their ids would pile up in the order.
        if self.order.len() > 2 * self.waiting.len() + 64 {
            self.order.retain(|trace| self.waiting.contains_key(trace));
        }
        dropped
    }

    fn forget_stale(&mut self, now: SystemTime) {
        while let Some(oldest) = self.order.front() {
            let newest = self.waiting.get(oldest).and_then(|spans| spans.last()).map(|span| span.end_time);
            if newest.is_some_and(|newest| now.duration_since(newest).unwrap_or_default() <= STALE) {
                break;
            }
            self.spans -= self.waiting.remove(oldest).map_or(0, |spans| spans.len());
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::{
        InstrumentationScope, TraceFlags,
        trace::{SpanContext, SpanKind, TraceState},
    };

    use super::*;

    fn span(trace: u128, id: u64, parent: u64, seconds: u64, status: Status) -> SpanData {
        let now = SystemTime::UNIX_EPOCH;
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(trace),
                SpanId::from(id),
                TraceFlags::default(),
                false,
                TraceState::default(),
            ),
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "span".into(),
            start_time: now,
            end_time: now + Duration::from_secs(seconds),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    fn kept(verdict: Verdict) -> usize {
        assert_eq!(verdict.dropped, 0);
        verdict.keep.len()
    }

    #[test]
    fn errors_and_slow_traces_are_kept_whole_and_the_rest_goes() {
        let mut tail = Tail::new(Duration::from_secs(10));
        assert_eq!(kept(tail.end(span(1, 2, 1, 1, Status::Unset))), 0);
        assert_eq!(kept(tail.end(span(1, 1, 0, 1, Status::Unset))), 0, "quick and well");

        assert_eq!(kept(tail.end(span(2, 3, 2, 1, Status::error("broken")))), 0);
        assert_eq!(kept(tail.end(span(2, 2, 1, 1, Status::Unset))), 0);
        assert_eq!(kept(tail.end(span(2, 1, 0, 1, Status::Unset))), 3, "a child failed");
        assert_eq!(kept(tail.end(span(2, 4, 1, 1, Status::Unset))), 1, "a late span of a kept trace");

        assert_eq!(kept(tail.end(span(3, 2, 1, 1, Status::Unset))), 0);
        assert_eq!(kept(tail.end(span(3, 1, 0, 10, Status::Unset))), 2, "slow");

        let mut remote = span(4, 1, 9, 10, Status::Unset);
        remote.parent_span_is_remote = true;
        let mut afterthought = remote.clone();
        remote.span_kind = SpanKind::Server;
        assert_eq!(kept(tail.end(remote)), 1, "a local root with a remote parent");
        assert_eq!(kept(tail.end(afterthought.clone())), 1, "what was said later of a kept trace");
        afterthought.span_context = span(1, 5, 1, 1, Status::Unset).span_context;
        assert_eq!(kept(tail.end(afterthought)), 0, "and of one that was let go");
        assert_eq!(tail.spans, 0);
        assert!(tail.waiting.is_empty());
    }

    #[test]
    fn spans_that_end_after_a_root_that_went_are_kept_with_the_next_root_or_forgotten() {
        let mut tail = Tail::new(Duration::from_secs(10));
        assert_eq!(kept(tail.end(span(1, 1, 0, 1, Status::Unset))), 0);
        assert_eq!(kept(tail.end(span(1, 2, 1, 2, Status::Unset))), 0, "late");
        assert_eq!(
            kept(tail.end(span(1, 3, 0, 3, Status::error("broken")))),
            2,
            "another root of the same trace failed"
        );

        assert_eq!(kept(tail.end(span(2, 1, 0, 1, Status::Unset))), 0);
        for trace in 2..100 {
            assert_eq!(kept(tail.end(span(trace, 2, 1, 2, Status::Unset))), 0);
        }
        assert_eq!(tail.spans, 98);
        let later = STALE.as_secs() + 3;
        assert_eq!(kept(tail.end(span(200, 2, 1, later, Status::Unset))), 0, "nor is it counted as a loss");
        assert_eq!((tail.spans, tail.waiting.len(), tail.order.len()), (1, 1, 1));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut tail = Tail::new(Duration::from_secs(10));
        let mut dropped = 0;
        for number in 0..SPANS + 100 {
            dropped += tail.end(span(1 + number as u128, 2, 1, 0, Status::Unset)).dropped;
        }
        assert_eq!((dropped, tail.spans), (100, SPANS));
        for number in 0..100_000 {
            tail.end(span(1_000_000 + number, 2, 1, 0, Status::Unset));
            tail.end(span(1_000_000 + number, 1, 0, 0, Status::Unset));
        }
        assert!(tail.order.len() <= 3 * SPANS, "{}", tail.order.len());
    }
}
