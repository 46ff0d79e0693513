//! Installs the recorder and renders the Prometheus page.

use std::sync::Arc;

use metrics::Recorder as _;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use mlx_manager_signal::metric::{
    Labels,
    name::{self, Kind, Label},
    set,
};
use opentelemetry_sdk::{error::OTelSdkError, metrics::SdkMeterProvider};
use parking_lot::Mutex;

use super::{
    bridge::Bridge,
    known::{self, Known},
    limit::Limits,
    process,
    recorder::Recorder,
};
use crate::build::Build;

/// What metrics are made from.
#[derive(Debug)]
pub struct Settings<'a> {
    /// Which build this is.
    pub build: Build,
    /// What the configuration names, for series that exist from the start.
    pub known: Known<'a>,
    /// Where the same numbers go by OTLP.
    pub meter_provider: Option<SdkMeterProvider>,
}

/// Why metrics could not be set up or sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A histogram's buckets are refused.
    #[error("the metrics recorder could not be built")]
    Build(#[from] BuildError),
    /// There is one recorder per process.
    #[error("a metrics recorder is already installed")]
    AlreadyInstalled,
    /// The numbers did not reach their destinations.
    #[error("metrics could not be exported")]
    Flush(#[source] OTelSdkError),
}

/// The numbers of this process.
pub struct Metrics {
    recorder: Arc<Recorder>,
    page: PrometheusHandle,
    pollers: Mutex<Vec<Poller>>,
    meter_provider: Option<SdkMeterProvider>,
}

type Poller = Box<dyn Fn() + Send + Sync>;

/// Sets up metrics and makes them the process' own: what events record from here on ends up in the result.
///
/// # Errors
/// When a recorder is already installed.
pub fn install(settings: Settings<'_>) -> Result<Metrics, Error> {
    let metrics = Metrics::new(settings, Limits::default())?;
    match metrics::set_global_recorder(Arc::clone(&metrics.recorder)) {
        Ok(()) => Ok(metrics),
        Err(_) => Err(Error::AlreadyInstalled),
    }
}

impl Metrics {
    pub(super) fn new(settings: Settings<'_>, limits: Limits) -> Result<Self, Error> {
        let mut builder = PrometheusBuilder::new();
        for histogram in name::Histogram::ALL {
            let definition = histogram.definition();
            builder = builder.set_buckets_for_metric(Matcher::Full(definition.name.to_owned()), definition.buckets)?;
        }
        let prometheus = builder.build_recorder();
        let page = prometheus.handle();
        let bridge = settings.meter_provider.as_ref().map(Bridge::new);
        let recorder = Arc::new(Recorder::new(prometheus, bridge, limits));
        describe(&recorder);
        for model in settings.known.models() {
            recorder.models().add(model);
        }
        let metrics = Self { recorder, page, pollers: Mutex::default(), meter_provider: settings.meter_provider };
        metrics.recorder.open(|| {
            build_info(settings.build);
            known::open_series(&settings.known);
        });
        metrics.add_poller(process::poll);
        Ok(metrics)
    }

    /// Adds a function that brings numbers counted elsewhere up to date. It states events, and runs before each page and
    /// at each upkeep, so it must be quick and must not wait.
    pub fn add_poller(&self, poller: impl Fn() + Send + Sync + 'static) {
        self.pollers.lock().push(Box::new(poller));
    }

    /// Lets the name of a local model in the catalogue be a label. Its series come with its first request: a cache of
    /// downloads may hold hundreds of models that nobody asks for.
    pub fn add_local_model(&self, model: &str) {
        self.recorder.models().add(model);
    }

    /// The page in Prometheus' text format.
    pub fn render(&self) -> String {
        self.poll();
        let mut page = self.page.render();
        // The recorder counts in whole numbers only; counters of fractions are gauges to it, and their type is put
        // right here. A line break can't be part of a label's value, so nothing but a type line matches.
        for sum in name::Sum::ALL {
            let name = sum.definition().name;
            page = page.replacen(&format!("# TYPE {name} gauge\n"), &format!("# TYPE {name} counter\n"), 1);
        }
        page
    }

    /// Moves recorded values into their buckets; to be called every few seconds, or memory grows without a scraper.
    pub fn run_upkeep(&self) {
        self.poll();
        self.page.run_upkeep();
    }

    /// Sends what there is to the OTLP destinations and waits for their answers: not on an async thread.
    ///
    /// # Errors
    /// When a destination did not take it.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.poll();
        self.meter_provider.as_ref().map_or(Ok(()), SdkMeterProvider::force_flush).map_err(Error::Flush)
    }

    /// Runs `record` with this recorder, whichever is installed.
    pub(super) fn within<T>(&self, record: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, record)
    }

    fn poll(&self) {
        let pollers = self.pollers.lock();
        self.within(|| pollers.iter().for_each(|poller| poller()));
    }
}

fn describe(recorder: &Recorder) {
    for (kind, definition) in name::catalogue() {
        let (key, help) = (definition.name.into(), definition.help.into());
        match kind {
            Kind::Counter if name::Sum::ALL.iter().any(|sum| sum.definition() == definition) => {
                recorder.describe_gauge(key, None, help);
            }
            Kind::Counter => recorder.describe_counter(key, None, help),
            Kind::Gauge => recorder.describe_gauge(key, None, help),
            Kind::Histogram => recorder.describe_histogram(key, None, help),
        }
    }
}

fn build_info(build: Build) {
    let labels = Labels::none()
        .with_text(Label::Version, build.version)
        .with_text(Label::Commit, build.commit)
        .with(Label::Engine, build.engine);
    set(name::Gauge::BuildInfo, labels, 1.0);
}
