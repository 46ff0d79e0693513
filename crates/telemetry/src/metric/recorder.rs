//! The recorder that the daemon installs: limits first, then Prometheus and, if there is one, the OTLP bridge.
//!
//! A series' handles are made once and kept; finding them again costs one hash look-up. What a caller may choose freely
//! (a model's name) is checked here and nowhere else, so that no event can forget it.

use std::{
    collections::{HashMap, HashSet},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::HashTable;
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::PrometheusRecorder;
use mlx_manager_llm::Outcome;
use mlx_manager_signal::{
    event::SeriesCapReached,
    metric::{
        METADATA, OTHER_MODEL,
        name::{self, Label},
    },
};
use parking_lot::{Mutex, RwLock};

use super::{
    bridge::Bridge,
    limit::{Limits, ModelNames},
};

pub(super) struct Recorder {
    prometheus: PrometheusRecorder,
    bridge: Option<Bridge>,
    models: ModelNames,
    series_per_metric: usize,
    /// Whether series are being opened that configuration and catalogue name. These bound them, so they take no room from
    /// what requests bring.
    opening: AtomicBool,
    /// Metrics that reached the cap, each of which is said once.
    full: Mutex<HashSet<String>>,
    counters: RwLock<Family<Counter>>,
    gauges: RwLock<Family<Gauge>>,
    histograms: RwLock<Family<Histogram>>,
}

/// The series of one kind of metric.
struct Family<H> {
    series: HashTable<(Key, H)>,
    /// How many series of each metric count towards the cap.
    charged: HashMap<String, usize>,
}

impl<H> Default for Family<H> {
    fn default() -> Self {
        Self { series: HashTable::new(), charged: HashMap::new() }
    }
}

impl<H: Clone> Family<H> {
    fn find(&self, key: &Key) -> Option<H> {
        self.series.find(key.get_hash(), |(known, _)| is_same(known, key)).map(|(_, handle)| handle.clone())
    }

    fn insert(&mut self, key: Key, handle: H) {
        self.series.insert_unique(key.get_hash(), (key, handle), |(key, _)| key.get_hash());
    }
}

/// Whether both keys are of one series. They compare labels in any order; ours come in one order, so looking at them as they
/// come nearly always says it.
fn is_same(one: &Key, other: &Key) -> bool {
    let (labels, others) = (one.labels().as_slice(), other.labels().as_slice());
    is_same_text(one.name(), other.name()) && (ptr::eq(labels, others) || are_same(labels, others) || one == other)
}

fn are_same(labels: &[metrics::Label], others: &[metrics::Label]) -> bool {
    labels.len() == others.len()
        && labels
            .iter()
            .zip(others)
            .all(|(one, other)| is_same_text(one.key(), other.key()) && is_same_text(one.value(), other.value()))
}

/// Whether texts are the same. Names and the values of closed sets are mostly found at one place, and not read.
fn is_same_text(one: &str, other: &str) -> bool {
    ptr::eq(one, other) || one == other
}

impl Recorder {
    pub fn new(prometheus: PrometheusRecorder, bridge: Option<Bridge>, limits: Limits) -> Self {
        Self {
            prometheus,
            bridge,
            models: ModelNames::new(limits),
            series_per_metric: limits.series_per_metric,
            opening: AtomicBool::new(false),
            full: Mutex::default(),
            counters: RwLock::default(),
            gauges: RwLock::default(),
            histograms: RwLock::default(),
        }
    }

    /// The model names that may be labels.
    pub fn models(&self) -> &ModelNames {
        &self.models
    }

    /// Runs `open`, whose series don't count towards the cap. A series that a request brings meanwhile doesn't either.
    pub fn open(&self, open: impl FnOnce()) {
        self.opening.store(true, Ordering::Relaxed);
        metrics::with_local_recorder(self, open);
        self.opening.store(false, Ordering::Relaxed);
    }

    /// The handle of a series, made if there is none and room for one. The answer is `None` beyond the cap.
    fn handle<H: Clone>(&self, family: &RwLock<Family<H>>, key: &Key, make: impl FnOnce(&Key) -> H) -> Option<H> {
        // The names in a series that exists are admitted, so there is nothing to learn from another of its measurements.
        if let Some(handle) = family.read().find(key) {
            return Some(handle);
        }
        self.learn_model(key);
        let key = self.with_admitted_models(key);
        if let Some(handle) = family.read().find(&key) {
            return Some(handle);
        }
        let mut family = family.write();
        if let Some(handle) = family.find(&key) {
            return Some(handle);
        }
        if !self.opening.load(Ordering::Relaxed) {
            let charged = family.charged.entry(key.name().to_owned()).or_default();
            if *charged >= self.series_per_metric {
                return None;
            }
            *charged += 1;
        }
        let handle = make(&key);
        family.insert(key, handle.clone());
        Some(handle)
    }

    /// A loaded model is in the catalogue, and a request that ended well names a model that exists.
    fn learn_model(&self, key: &Key) {
        let value_of =
            |label: Label| key.labels().find(|entry| entry.key() == label.as_str()).map(metrics::Label::value);
        if key.name() == name::Counter::Requests.definition().name {
            if let (Some(model), Some(outcome)) = (value_of(Label::Model), value_of(Label::Outcome))
                && outcome == Outcome::Ok.as_str()
                && model != OTHER_MODEL
            {
                self.models.learn(model);
            }
        } else if key.name() == name::Gauge::ModelLoaded.definition().name
            && let Some(model) = value_of(Label::Model)
        {
            self.models.add(model);
        }
    }

    fn with_admitted_models(&self, key: &Key) -> Key {
        let is_stranger = |entry: &metrics::Label| {
            Label::ALL.iter().any(|label| label.is_model() && label.as_str() == entry.key())
                && !self.models.is_known(entry.value())
        };
        if !key.labels().any(is_stranger) {
            return key.clone();
        }
        let labels: Vec<_> = key
            .labels()
            .map(|entry| {
                let mut entry = entry.clone();
                if is_stranger(&entry) {
                    let (label, _) = entry.into_parts();
                    entry = metrics::Label::new(label, OTHER_MODEL);
                }
                entry
            })
            .collect();
        Key::from_parts(key.name_shared(), labels)
    }

    fn count_overflow(&self, key: &Key) {
        let overflow = name::Counter::SeriesDropped.definition().name;
        if key.name() != overflow {
            let labels = vec![metrics::Label::new(Label::Metric.as_str(), key.name().to_owned())];
            metrics::Recorder::register_counter(self, &Key::from_parts(overflow, labels), &METADATA).increment(1);
        }
        if self.full.lock().insert(key.name().to_owned()) {
            SeriesCapReached { metric: key.name(), series: self.series_per_metric }.emit();
        }
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let handle = self.handle(&self.counters, key, |key| {
            let prometheus = self.prometheus.register_counter(key, metadata);
            match self.bridge.as_ref().and_then(|bridge| bridge.counter(key)) {
                Some(otlp) => Counter::from_arc(Arc::new(Both { prometheus, otlp })),
                None => prometheus,
            }
        });
        handle.unwrap_or_else(|| {
            self.count_overflow(key);
            Counter::noop()
        })
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let handle = self.handle(&self.gauges, key, |key| {
            let prometheus = self.prometheus.register_gauge(key, metadata);
            match self.bridge.as_ref().and_then(|bridge| bridge.gauge(key)) {
                Some(otlp) => Gauge::from_arc(Arc::new(Both { prometheus, otlp })),
                None => prometheus,
            }
        });
        handle.unwrap_or_else(|| {
            self.count_overflow(key);
            Gauge::noop()
        })
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let handle = self.handle(&self.histograms, key, |key| {
            let prometheus = self.prometheus.register_histogram(key, metadata);
            match self.bridge.as_ref().and_then(|bridge| bridge.histogram(key)) {
                Some(otlp) => Histogram::from_arc(Arc::new(Both { prometheus, otlp })),
                None => prometheus,
            }
        });
        handle.unwrap_or_else(|| {
            self.count_overflow(key);
            Histogram::noop()
        })
    }
}

/// One measurement, two places.
struct Both<H> {
    prometheus: H,
    otlp: H,
}

impl CounterFn for Both<Counter> {
    fn increment(&self, value: u64) {
        self.prometheus.increment(value);
        self.otlp.increment(value);
    }

    fn absolute(&self, value: u64) {
        self.prometheus.absolute(value);
        self.otlp.absolute(value);
    }
}

impl GaugeFn for Both<Gauge> {
    fn increment(&self, value: f64) {
        self.prometheus.increment(value);
        self.otlp.increment(value);
    }

    fn decrement(&self, value: f64) {
        self.prometheus.decrement(value);
        self.otlp.decrement(value);
    }

    fn set(&self, value: f64) {
        self.prometheus.set(value);
        self.otlp.set(value);
    }
}

impl HistogramFn for Both<Histogram> {
    fn record(&self, value: f64) {
        self.prometheus.record(value);
        self.otlp.record(value);
    }
}
