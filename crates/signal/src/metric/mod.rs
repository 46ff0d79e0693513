//! Metrics as events record them: the enum of names, and the small functions that take a measurement.
//!
//! Only [`crate::event`] records what happens, and only the registry opens series before anything did; everyone else
//! states a fact and knows nothing of names. Whether a recorder is installed at all is not known here either: without one,
//! recording does nothing. Enter at [`name`] for what exists.

#[cfg(test)]
mod dashboard;
mod keys;
pub mod name;

use metrics::{Key, Level, Metadata, SharedString};

use keys::with_recorder;
use name::{Counter, Definition, Gauge, Histogram, Label, Sum};

/// The `provider` label of a request that reached no target.
pub const NO_PROVIDER: &str = "_none";

/// The model label of every name that is neither configured, nor in the catalogue, nor ever answered.
pub const OTHER_MODEL: &str = "_other";

/// What the recorder is told of where a measurement comes from.
pub static METADATA: Metadata<'static> = Metadata::new("mlx_manager", Level::INFO, None);

/// The most labels that a metric has.
const MOST_LABELS: usize = 6;

/// The labels of one measurement. They only borrow: what was measured before costs no memory to measure again.
#[derive(Debug, Clone, Default)]
pub struct Labels<'a>([Option<(Label, Value<'a>)>; MOST_LABELS]);

/// A label's value.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Closed(&'static str),
    Text(&'a str),
}

impl<'a> Labels<'a> {
    /// No labels.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a label whose value is one of a closed set.
    pub fn with(self, label: Label, value: &'static str) -> Self {
        self.with_value(label, Value::Closed(value))
    }

    /// Adds a label whose value comes from the configuration, the catalogue or a request.
    pub fn with_text(self, label: Label, value: &'a str) -> Self {
        self.with_value(label, Value::Text(value))
    }

    /// Adds a label if it has a value; Prometheus holds an absent label and an empty one to be the same.
    pub fn with_optional(self, label: Label, value: Option<&'a str>) -> Self {
        match value {
            Some(value) => self.with_text(label, value),
            None => self,
        }
    }

    /// There is room for the labels of every metric; no metric gets others.
    fn with_value(mut self, label: Label, value: Value<'a>) -> Self {
        let free = self.0.iter_mut().find(|entry| entry.is_none());
        debug_assert!(free.is_some(), "no room for {label:?}");
        free.into_iter().for_each(|entry| *entry = Some((label, value)));
        self
    }

    fn iter(&self) -> impl Iterator<Item = (Label, Value<'a>)> {
        self.0.iter().map_while(|entry| *entry)
    }

    fn key(&self, metric: &'static Definition) -> Key {
        let labels: Vec<_> = self
            .iter()
            .map(|(label, value)| match value {
                Value::Closed(value) => metrics::Label::from_static_parts(label.as_str(), value),
                Value::Text(value) => metrics::Label::new(label.as_str(), SharedString::from(value.to_owned())),
            })
            .collect();
        Key::from_parts(metric.name, labels)
    }
}

impl<'a> Value<'a> {
    fn as_str(self) -> &'a str {
        match self {
            Self::Closed(value) => value,
            Self::Text(value) => value,
        }
    }
}

/// Adds to a counter. Adding 0 makes its series exist.
pub fn add(counter: Counter, labels: Labels<'_>, by: u64) {
    with_recorder(counter.definition(), labels, |recorder, key| {
        recorder.register_counter(key, &METADATA).increment(by)
    });
}

/// Brings a counter up to a total that is counted elsewhere; a smaller total changes nothing.
pub fn advance(counter: Counter, labels: Labels<'_>, total: u64) {
    with_recorder(counter.definition(), labels, |recorder, key| {
        recorder.register_counter(key, &METADATA).absolute(total)
    });
}

/// Adds to a counter of fractions.
pub fn add_fraction(sum: Sum, labels: Labels<'_>, by: f64) {
    with_recorder(sum.definition(), labels, |recorder, key| recorder.register_gauge(key, &METADATA).increment(by));
}

/// Brings a counter of fractions to a total that is counted elsewhere.
pub fn advance_fraction(sum: Sum, labels: Labels<'_>, total: f64) {
    with_recorder(sum.definition(), labels, |recorder, key| recorder.register_gauge(key, &METADATA).set(total));
}

/// Sets a gauge.
pub fn set(gauge: Gauge, labels: Labels<'_>, value: f64) {
    with_recorder(gauge.definition(), labels, |recorder, key| recorder.register_gauge(key, &METADATA).set(value));
}

/// Moves a gauge up or down.
pub fn shift(gauge: Gauge, labels: Labels<'_>, by: f64) {
    with_recorder(gauge.definition(), labels, |recorder, key| recorder.register_gauge(key, &METADATA).increment(by));
}

/// Makes a histogram's series exist.
pub fn open(histogram: Histogram, labels: Labels<'_>) {
    // The recorder keeps the handle.
    with_recorder(histogram.definition(), labels, |recorder, key| drop(recorder.register_histogram(key, &METADATA)));
}

/// Puts a value into a histogram.
pub fn observe(histogram: Histogram, labels: Labels<'_>, value: f64) {
    with_recorder(histogram.definition(), labels, |recorder, key| {
        recorder.register_histogram(key, &METADATA).record(value)
    });
}
