//! Every metric there is: its name, unit, help, labels and buckets.
//!
//! One enum per kind, so that a counter can't be set and a gauge can't be observed. A name that no event records
//! fails a test; so does one without a place on a dashboard.

mod counter;
mod gauge;
mod histogram;
mod label;

pub use counter::{Counter, Sum};
pub use gauge::Gauge;
pub use histogram::Histogram;
pub use label::Label;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Definition {
    /// The name on the Prometheus page.
    pub name: &'static str,
    /// The name in OTLP, where units and `_total` are no part of a name.
    pub otlp_name: &'static str,
    /// The unit by UCUM, as OpenTelemetry spells it.
    pub unit: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Labels that its series may have; a value that is unknown leaves its label out.
    pub labels: &'static [Label],
    /// Upper bounds of a histogram's buckets, without the infinite one; empty for the other kinds.
    pub buckets: &'static [f64],
}

/// What sort of metric it is, as Prometheus names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by size.
    Histogram,
}

/// Every metric with its kind.
pub fn catalogue() -> impl Iterator<Item = (Kind, &'static Definition)> {
    let counters = Counter::ALL.iter().map(|name| (Kind::Counter, name.definition()));
    let sums = Sum::ALL.iter().map(|name| (Kind::Counter, name.definition()));
    let gauges = Gauge::ALL.iter().map(|name| (Kind::Gauge, name.definition()));
    let histograms = Histogram::ALL.iter().map(|name| (Kind::Histogram, name.definition()));
    counters.chain(sums).chain(gauges).chain(histograms)
}
