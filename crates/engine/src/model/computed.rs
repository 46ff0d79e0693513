//! What was computed of a sequence: spans that several sequences may have in common, and the rest.

use std::{ops::Range, rc::Rc};

use mlx_rs::error::Exception;

use super::key_value::{KeyValueCache, KeyValueRun};

/// The keys and values of a span of positions, layer by layer. They never change.
pub(crate) type Span = Rc<[KeyValueRun]>;

/// Spans of a sequence in memory that it may share with others.
#[derive(Debug, Default, Clone)]
pub(crate) struct Shared {
    /// In order.
    spans: Vec<Span>,
    /// Where each stands in the sequence.
    starts: Vec<usize>,
}

/// Keys and values of the positions of a sequence seen so far.
#[derive(Debug, Default)]
pub(crate) struct Computed {
    pub(super) shared: Shared,
    /// Those between the shared ones and after them, in order, layer by layer.
    pub(super) own: Vec<KeyValueCache>,
}

impl Shared {
    /// Adds a span, which comes after those that there are.
    pub(crate) fn push(&mut self, start: usize, span: Span) {
        self.starts.push(start);
        self.spans.push(span);
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// How many positions there are.
    pub(crate) fn positions(&self) -> usize {
        self.spans.iter().map(|span| positions(span)).sum()
    }

    /// Whether both are the same memory.
    pub(super) fn is(&self, other: &Self) -> bool {
        let mut pairs = self.spans.iter().zip(&other.spans);
        self.spans.len() == other.spans.len() && pairs.all(|(one, other)| Rc::ptr_eq(one, other))
    }
}

impl Computed {
    pub(crate) fn new(shared: Shared, own: Vec<KeyValueCache>) -> Self {
        Self { shared, own }
    }

    /// How many positions there are.
    pub(crate) fn positions(&self) -> usize {
        let own = self.own.first().map_or(0, KeyValueCache::offset);
        self.shared.positions() + usize::try_from(own).unwrap_or_default()
    }

    /// Some of them, layer by layer, in memory that nobody shares. Nothing is computed yet.
    pub(crate) fn copy(&self, wanted: Range<usize>) -> Result<Vec<KeyValueRun>, Exception> {
        // What of each span is wanted, and of each gap before one or after the last.
        let within = |range: Range<usize>| {
            let common = wanted.start.max(range.start)..wanted.end.min(range.end);
            (!common.is_empty()).then(|| common.start - range.start..common.end - range.start)
        };
        let mut pieces: Vec<(Option<&Span>, Range<usize>)> = Vec::new();
        let (mut at, mut own_at) = (0, 0);
        let spans = self.shared.starts.iter().zip(&self.shared.spans).map(|(start, span)| (*start, Some(span)));
        for (start, span) in spans.chain([(self.positions(), None)]) {
            let gap = within(at..start).map(|part| (None, own_at + part.start..own_at + part.end));
            own_at += start - at;
            at = start + span.map_or(0, |span| positions(span));
            pieces.extend(gap.into_iter().chain(within(start..at).map(|part| (span, part))));
        }
        let layer = |(index, own): (usize, &KeyValueCache)| {
            let part = |(span, part): &(Option<&Span>, Range<usize>)| match span.and_then(|span| span.get(index)) {
                Some(run) => run.part(part.clone()),
                None => own.run(part.clone()),
            };
            KeyValueRun::joined(pieces.iter().map(part).collect::<Result<_, _>>()?)
        };
        self.own.iter().enumerate().map(layer).collect()
    }
}

/// How many positions a span has.
pub(crate) fn positions(span: &[KeyValueRun]) -> usize {
    span.first().map_or(0, KeyValueRun::positions)
}

/// Bytes of a span.
pub(crate) fn bytes(span: &[KeyValueRun]) -> u64 {
    span.iter().map(KeyValueRun::bytes).sum()
}
