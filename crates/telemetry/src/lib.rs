//! Where logs, spans and metrics go: sinks, exporters, the registry and the Prometheus page.
//!
//! Only the daemon's process knows this crate. It starts it all with [`Telemetry::start`] and ends it with
//! [`Telemetry::stop`]; what is told in between, others tell by `mlx-manager-signal`.

#![cfg_attr(test, expect(clippy::disallowed_macros, reason = "tests of the logs speak as anybody might"))]

mod build;
mod gather;
pub mod log;
pub mod metric;
mod otlp;
mod trace;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use mlx_manager_config::Config;
use mlx_manager_signal::price;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tracing_subscriber::{Registry, layer::SubscriberExt};

pub use build::Build;

use self::{
    log::{LogError, LogHandle, RecordObserver, Terminal, TraceLayer},
    metric::{Known, Metrics, Settings},
    otlp::TraceError,
    trace::TraceHandle,
};

/// How often metrics go out by OTLP.
const METRICS_INTERVAL: Duration = Duration::from_secs(60);

/// Logs, traces and metrics of this process.
pub struct Telemetry {
    log: LogHandle,
    traces: TraceHandle,
    metrics: Arc<Metrics>,
    meter_provider: Option<SdkMeterProvider>,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A log sink is not to be had.
    #[error("the logs can't start")]
    Log(#[from] LogError),
    /// A destination can't be served as configured.
    #[error("telemetry can't be exported as configured")]
    Trace(#[from] TraceError),
    /// The metrics can't be set up.
    #[error("the metrics can't start")]
    Metrics(#[from] metric::Error),
    /// Somebody else's subscriber is installed.
    #[error("the logs are already set up")]
    AlreadyInstalled(#[from] tracing::subscriber::SetGlobalDefaultError),
    /// Somebody else's logger is installed.
    #[error("the libraries' logs are already set up")]
    LibrariesHeard(#[from] ::log::SetLoggerError),
}

impl Telemetry {
    /// Opens sinks and exporters and makes them the process's own: subscriber, metrics recorder and panic hook.
    ///
    /// # Errors
    /// When a log file or an exporter can't be had as configured, or when it was called before.
    pub fn start(config: &Config, terminal: Terminal, build: Build) -> Result<Self, TelemetryError> {
        let traces = trace::build(&config.traces, &config.telemetry, &config.otlp, build)?;
        let observer = traces.logs.map(|logs| Arc::new(gather::Exported(logs)) as Arc<dyn RecordObserver>);
        let layer = TraceLayer { layer: traces.layer, recording: traces.recording };
        let (router, log) = log::build(&config.log, terminal, Some(layer), observer)?;
        let meter_provider = meter_provider(&traces.handle)?;
        let metrics = metric::install(Settings {
            build,
            known: Known {
                local: &config.local,
                providers: &config.providers,
                routes: &config.cloud.routes,
                log: &config.log,
                otlp: &config.otlp,
            },
            meter_provider: meter_provider.clone(),
        })?;
        metrics.add_poller(gather::sinks(&log));
        metrics.add_poller(gather::exporters(traces.handle.counters()));
        tracing::subscriber::set_global_default(Registry::default().with(router))?;
        log::hear_libraries()?;
        std::panic::set_hook(Box::new(log::panic_hook(log.clone())));
        // The prices are decoded once, and not while the first caller waits.
        thread::spawn(price::prepare);
        Ok(Self { log, traces: traces.handle, metrics: Arc::new(metrics), meter_provider })
    }

    /// The metrics, to render and to tidy up.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// What the logs can be told while the daemon runs.
    pub fn logs(&self) -> &LogHandle {
        &self.log
    }

    /// Delivers what there is and ends the exporters; not on an async thread. `false`: something was lost, or the deadline
    /// came first.
    pub fn stop(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let left = || end.saturating_duration_since(Instant::now());
        let metrics = self.stop_metrics(left() / 2);
        let traces = self.traces.shutdown(left());
        // Last, since the others may have had something to say.
        self.log.close(left().max(Duration::from_secs(1))) && traces && metrics
    }
}

impl Telemetry {
    /// The SDK's own flush waits for as long as the transport tries, so it runs on a thread that can be left behind.
    fn stop_metrics(&self, deadline: Duration) -> bool {
        let Some(provider) = self.meter_provider.clone() else { return true };
        let metrics = Arc::clone(&self.metrics);
        let (sent, done) = mpsc::channel();
        thread::spawn(move || {
            let flushed = metrics.flush().is_ok();
            let stopped = provider.shutdown_with_timeout(deadline).is_ok();
            // Nobody listens after the deadline.
            sent.send(flushed && stopped).unwrap_or_default();
        });
        done.recv_timeout(deadline).unwrap_or(false)
    }
}

/// One provider with a reader for each destination that wants metrics.
fn meter_provider(traces: &TraceHandle) -> Result<Option<SdkMeterProvider>, TraceError> {
    let destinations = traces.metrics()?;
    let Some(resource) = destinations.first().map(|destination| destination.resource.clone()) else { return Ok(None) };
    let exporters = destinations.into_iter().map(|destination| destination.exporter);
    Ok(Some(metric::meter_provider(resource, exporters, METRICS_INTERVAL)))
}
