//! The same numbers by OTLP.
//!
//! Counters and gauges are atomics that observable instruments read when an export is due: so nothing is measured twice,
//! a gauge that did not change is still sent, and each reader gets the temporality its exporter asks for (Logfire wants
//! deltas). Histograms need every value, so theirs are recorded as they come, without looking for the series again.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key};
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, BoundHistogram, Histogram as OtlpHistogram, Meter, MeterProvider},
};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider, exporter::PushMetricExporter},
};
use parking_lot::Mutex;

use mlx_manager_signal::metric::name::{self, Definition, Label};

/// A provider that exports to every destination each `interval`, on a thread per destination. An exporter says itself
/// whether it wants deltas.
pub fn meter_provider<E: PushMetricExporter>(
    resource: Resource,
    exporters: impl IntoIterator<Item = E>,
    interval: Duration,
) -> SdkMeterProvider {
    let mut builder = SdkMeterProvider::builder().with_resource(resource);
    for exporter in exporters {
        builder = builder.with_reader(PeriodicReader::builder(exporter).with_interval(interval).build());
    }
    builder.build()
}

pub(super) struct Bridge {
    counters: HashMap<&'static str, Cells>,
    gauges: HashMap<&'static str, Cells>,
    histograms: HashMap<&'static str, OtlpHistogram<f64>>,
}

/// The series of one observable instrument.
#[derive(Clone, Default)]
struct Cells(Arc<Mutex<Vec<Cell>>>);

/// A count, or the bits of a floating-point number.
struct Cell {
    value: Arc<AtomicU64>,
    attributes: Vec<KeyValue>,
}

impl Cells {
    fn add(&self, key: &Key) -> Arc<AtomicU64> {
        let value = Arc::new(AtomicU64::new(0));
        let cell = Cell { value: Arc::clone(&value), attributes: attributes(key) };
        self.0.lock().push(cell);
        value
    }

    fn observe<T>(&self, observer: &dyn AsyncInstrument<T>, read: impl Fn(u64) -> T) {
        for cell in self.0.lock().iter() {
            observer.observe(read(cell.value.load(Ordering::Acquire)), &cell.attributes);
        }
    }
}

impl Bridge {
    pub fn new(provider: &SdkMeterProvider) -> Self {
        let meter = provider.meter("mlx-manager");
        let counters = name::Counter::ALL.iter().map(|name| {
            let definition = name.definition();
            (definition.name, counter(&meter, definition))
        });
        // Sums are gauges to the recorder, which has no counters of fractions; here they are counters again.
        let sums = name::Sum::ALL.iter().map(|name| {
            let definition = name.definition();
            (definition.name, sum(&meter, definition))
        });
        let gauges = name::Gauge::ALL.iter().map(|name| {
            let definition = name.definition();
            (definition.name, gauge(&meter, definition))
        });
        let histograms = name::Histogram::ALL.iter().map(|name| {
            let definition = name.definition();
            (definition.name, histogram(&meter, definition))
        });
        Self { counters: counters.collect(), gauges: sums.chain(gauges).collect(), histograms: histograms.collect() }
    }

    /// A new series; `None` for a name that the enum does not have.
    pub fn counter(&self, key: &Key) -> Option<Counter> {
        self.counters.get(key.name()).map(|cells| Counter::from_arc(cells.add(key)))
    }

    /// A new series; `None` for a name that the enum does not have.
    pub fn gauge(&self, key: &Key) -> Option<Gauge> {
        self.gauges.get(key.name()).map(|cells| Gauge::from_arc(cells.add(key)))
    }

    /// A new series; `None` for a name that the enum does not have.
    pub fn histogram(&self, key: &Key) -> Option<Histogram> {
        self.histograms.get(key.name()).map(|instrument| {
            Histogram::from_arc(Arc::new(Series {
                instrument: instrument.clone(),
                attributes: attributes(key),
                bound: OnceLock::new(),
            }))
        })
    }
}

fn counter(meter: &Meter, definition: &'static Definition) -> Cells {
    let cells = Cells::default();
    let observed = cells.clone();
    let _registered_for_good = meter
        .u64_observable_counter(definition.otlp_name)
        .with_unit(definition.unit)
        .with_description(definition.help)
        .with_callback(move |observer| observed.observe(observer, |count| count))
        .build();
    cells
}

fn sum(meter: &Meter, definition: &'static Definition) -> Cells {
    let cells = Cells::default();
    let observed = cells.clone();
    let _registered_for_good = meter
        .f64_observable_counter(definition.otlp_name)
        .with_unit(definition.unit)
        .with_description(definition.help)
        .with_callback(move |observer| observed.observe(observer, f64::from_bits))
        .build();
    cells
}

fn gauge(meter: &Meter, definition: &'static Definition) -> Cells {
    let cells = Cells::default();
    let observed = cells.clone();
    let _registered_for_good = meter
        .f64_observable_gauge(definition.otlp_name)
        .with_unit(definition.unit)
        .with_description(definition.help)
        .with_callback(move |observer| observed.observe(observer, f64::from_bits))
        .build();
    cells
}

fn histogram(meter: &Meter, definition: &'static Definition) -> OtlpHistogram<f64> {
    meter
        .f64_histogram(definition.otlp_name)
        .with_unit(definition.unit)
        .with_description(definition.help)
        .with_boundaries(definition.buckets.to_vec())
        .build()
}

struct Series {
    instrument: OtlpHistogram<f64>,
    attributes: Vec<KeyValue>,
    /// The instrument as it is for these attributes, which it else would look for at each value. It is there from the first
    /// value on: a histogram of none is not sent.
    bound: OnceLock<BoundHistogram<f64>>,
}

impl HistogramFn for Series {
    fn record(&self, value: f64) {
        self.bound.get_or_init(|| self.instrument.bind(&self.attributes)).record(value);
    }
}

fn attributes(key: &Key) -> Vec<KeyValue> {
    key.labels()
        .map(|entry| match Label::ALL.iter().find(|label| label.as_str() == entry.key()) {
            Some(label) => match entry.value().parse::<i64>() {
                Ok(number) if label.is_integer() => KeyValue::new(label.otlp_name(), number),
                _ => KeyValue::new(label.otlp_name(), entry.value().to_owned()),
            },
            None => KeyValue::new(entry.key().to_owned(), entry.value().to_owned()),
        })
        .collect()
}
