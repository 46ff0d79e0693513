//! Metrics as events record them: the enum of names, and the small functions that take a measurement.
//!
//! Only [`crate::event`] records what happens, and only the registry opens series before anything did; everyone else
//! states a fact and knows nothing of names. Whether a recorder is installed at all is not known here either: without one,
//! recording does nothing. Enter at [`name`] for what exists.

#[cfg(test)]
mod dashboard;
pub mod name;

use metrics::{Key, Level, Metadata, SharedString};

use name::{Counter, Gauge, Histogram, Label, Sum};

/// The `provider` label of a request that reached no target.
pub const NO_PROVIDER: &str = "_none";

/// The model label of every name that is neither configured, nor in the catalogue, nor ever answered.
pub const OTHER_MODEL: &str = "_other";

/// What the recorder is told of where a measurement comes from.
pub static METADATA: Metadata<'static> = Metadata::new("mlx_manager", Level::INFO, None);

/// The labels of one measurement.
#[derive(Debug, Clone, Default)]
pub struct Labels(Vec<metrics::Label>);

impl Labels {
    /// No labels.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a label whose value is one of a closed set.
    pub fn with(mut self, label: Label, value: &'static str) -> Self {
        self.0.push(metrics::Label::from_static_parts(label.as_str(), value));
        self
    }

    /// Adds a label whose value comes from the configuration, the catalogue or a request.
    pub fn with_text(mut self, label: Label, value: impl Into<String>) -> Self {
        self.0.push(metrics::Label::new(label.as_str(), SharedString::from(value.into())));
        self
    }

    /// Adds a label if it has a value; Prometheus holds an absent label and an empty one to be the same.
    pub fn with_optional(self, label: Label, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.with_text(label, value),
            None => self,
        }
    }

    fn key(self, name: &'static str) -> Key {
        Key::from_parts(name, self.0)
    }
}

/// Adds to a counter. Adding 0 makes its series exist.
pub fn add(counter: Counter, labels: Labels, by: u64) {
    let key = labels.key(counter.definition().name);
    metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA).increment(by));
}

/// Brings a counter up to a total that is counted elsewhere; a smaller total changes nothing.
pub fn advance(counter: Counter, labels: Labels, total: u64) {
    let key = labels.key(counter.definition().name);
    metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA).absolute(total));
}

/// Adds to a counter of fractions.
pub fn add_fraction(sum: Sum, labels: Labels, by: f64) {
    let key = labels.key(sum.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).increment(by));
}

/// Brings a counter of fractions to a total that is counted elsewhere.
pub fn advance_fraction(sum: Sum, labels: Labels, total: f64) {
    let key = labels.key(sum.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).set(total));
}

/// Sets a gauge.
pub fn set(gauge: Gauge, labels: Labels, value: f64) {
    let key = labels.key(gauge.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).set(value));
}

/// Moves a gauge up or down.
pub fn shift(gauge: Gauge, labels: Labels, by: f64) {
    let key = labels.key(gauge.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).increment(by));
}

/// Makes a histogram's series exist.
pub fn open(histogram: Histogram, labels: Labels) {
    let key = labels.key(histogram.definition().name);
    // The recorder keeps the handle.
    metrics::with_recorder(|recorder| drop(recorder.register_histogram(&key, &METADATA)));
}

/// Puts a value into a histogram.
pub fn observe(histogram: Histogram, labels: Labels, value: f64) {
    let key = labels.key(histogram.definition().name);
    metrics::with_recorder(|recorder| recorder.register_histogram(&key, &METADATA).record(value));
}
