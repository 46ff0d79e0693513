//! Metrics: the enum of names, the recorder behind them, and where they go (a Prometheus page, OTLP).
//!
//! Only [`crate::telemetry::event`] records, through the small functions here; a caller states a fact and knows nothing
//! of names. Whether a recorder is installed at all is not known here either: without one, recording does nothing.
//! Enter at [`install`] for the wiring and at [`name`] for what exists.

mod bridge;
#[cfg(test)]
mod dashboard;
mod known;
mod limit;
pub mod name;
mod process;
mod prometheus;
mod recorder;
#[cfg(test)]
mod tests;

pub use bridge::meter_provider;
pub use known::Known;
pub(in crate::telemetry) use known::{provider_label, signal_label};
pub use prometheus::{Build, Error, Metrics, Settings, install};

use metrics::{Key, Level, Metadata, SharedString};

use name::{Counter, Gauge, Histogram, Label, Sum};

/// The `provider` label of local models.
pub(in crate::telemetry) const LOCAL_PROVIDER: &str = "mlx";

/// The `provider` label of a request that reached no target.
pub(in crate::telemetry) const NO_PROVIDER: &str = "_none";

/// The model label of every name that is neither configured, nor in the catalogue, nor ever answered.
pub(in crate::telemetry) const OTHER_MODEL: &str = "_other";

static METADATA: Metadata<'static> = Metadata::new("mlx_manager", Level::INFO, None);

/// The labels of one measurement.
#[derive(Debug, Clone, Default)]
pub(in crate::telemetry) struct Labels(Vec<metrics::Label>);

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
pub(in crate::telemetry) fn add(counter: Counter, labels: Labels, by: u64) {
    let key = labels.key(counter.definition().name);
    metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA).increment(by));
}

/// Brings a counter up to a total that is counted elsewhere; a smaller total changes nothing.
pub(in crate::telemetry) fn advance(counter: Counter, labels: Labels, total: u64) {
    let key = labels.key(counter.definition().name);
    metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA).absolute(total));
}

/// Adds to a counter of fractions.
pub(in crate::telemetry) fn add_fraction(sum: Sum, labels: Labels, by: f64) {
    let key = labels.key(sum.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).increment(by));
}

/// Brings a counter of fractions to a total that is counted elsewhere.
pub(in crate::telemetry) fn advance_fraction(sum: Sum, labels: Labels, total: f64) {
    let key = labels.key(sum.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).set(total));
}

/// Sets a gauge.
pub(in crate::telemetry) fn set(gauge: Gauge, labels: Labels, value: f64) {
    let key = labels.key(gauge.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).set(value));
}

/// Moves a gauge up or down.
pub(in crate::telemetry) fn shift(gauge: Gauge, labels: Labels, by: f64) {
    let key = labels.key(gauge.definition().name);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).increment(by));
}

/// Makes a histogram's series exist.
fn open(histogram: Histogram, labels: Labels) {
    let key = labels.key(histogram.definition().name);
    // The recorder keeps the handle.
    metrics::with_recorder(|recorder| drop(recorder.register_histogram(&key, &METADATA)));
}

/// Puts a value into a histogram.
pub(in crate::telemetry) fn observe(histogram: Histogram, labels: Labels, value: f64) {
    let key = labels.key(histogram.definition().name);
    metrics::with_recorder(|recorder| recorder.register_histogram(&key, &METADATA).record(value));
}
