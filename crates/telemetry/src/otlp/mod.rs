//! Getting telemetry out of the house: destinations, batching, delivery and the disk spool, alike for all signals.
//!
//! [`Exporters::start`] makes one thread with one small runtime; everything that leaves goes through it. It must not know
//! what the telemetry says.

mod answer;
mod batch;
mod cause;
mod counters;
mod endpoint;
mod grpc;
mod report;
mod resource;
mod spool;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use counters::TelemetryCounters;

pub(crate) use batch::Queue;
pub(crate) use resource::{Resources, Service, scope};
pub(crate) use wire::{Any, Item, LogItem, log_record, span};

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mlx_manager_config::{OtlpConfig, OtlpKind, Protocol, Secret, Signal, TelemetryConfig};
use mlx_manager_llm::BoxFuture;
use opentelemetry_otlp::{
    Compression, ExporterBuildError, MetricExporter, RetryPolicy, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::{Resource, metrics::Temporality};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc::UnboundedSender, watch};
use tokio_util::task::TaskTracker;

use crate::build::Build;
use batch::{FlushRequest, Load};
use counters::Counter;
use endpoint::Endpoint;
use spool::{Batch, Spool};
use transport::{Client, Destination, Lane};
use wire::Heads;

/// Why exporters could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The export thread or its runtime could not be started.
    #[error("the telemetry export thread can't be started")]
    Runtime(#[source] std::io::Error),
    /// The HTTP client could not be made.
    #[error("otlp \"{destination}\": no HTTP client")]
    Client {
        /// The `[[otlp]]` name.
        destination: String,
        /// Why.
        source: reqwest::Error,
    },
    /// A header's name or value can't be sent.
    #[error("otlp \"{destination}\": header \"{header}\" can't be sent")]
    Header {
        /// The `[[otlp]]` name.
        destination: String,
        /// The header's name; its value may be a secret.
        header: String,
    },
    /// The spool folder can't be used.
    #[error("otlp \"{destination}\": spool {}", dir.display())]
    Spool {
        /// The `[[otlp]]` name.
        destination: String,
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The SDK refused to make an exporter.
    #[error("otlp \"{destination}\": no exporter")]
    Exporter {
        /// The `[[otlp]]` name.
        destination: String,
        /// Why.
        source: ExporterBuildError,
    },
}

/// A destination for metrics: give the exporter to a periodic reader.
#[derive(Debug)]
pub struct MetricDestination {
    /// The `[[otlp]]` name.
    #[cfg(test)]
    pub name: String,
    /// Sends through the shared transport, spool and counters. Delta temporality for Logfire.
    pub exporter: MetricExporter,
    /// The resource of mlx-manager. A meter provider has but one, and metrics name their component themselves.
    pub resource: Resource,
}

/// A destination with what is needed to make exporters for it.
#[derive(Debug)]
struct Configured {
    config: OtlpConfig,
    destination: Arc<Destination>,
}

/// All active destinations, and the thread that serves them. Dropping it ends the thread without a flush.
#[derive(Debug)]
pub struct Exporters {
    destinations: Vec<Configured>,
    resources: Resources,
    heads: Arc<Heads>,
    counters: TelemetryCounters,
    flushes: Mutex<Vec<UnboundedSender<FlushRequest>>>,
    loads: Mutex<Vec<Arc<Load>>>,
    closing: watch::Sender<bool>,
    drains: TaskTracker,
    stop: Arc<Notify>,
    runtime: Option<tokio::runtime::Handle>,
    thread: Mutex<Option<(thread::JoinHandle<()>, mpsc::Receiver<()>)>>,
}

impl Exporters {
    /// Starts the export thread, unless nothing is to be sent anywhere.
    ///
    /// # Errors
    /// When a destination can't be served as configured; the spool folder of an active destination is created here.
    pub fn start(telemetry: &TelemetryConfig, otlp: &[OtlpConfig], build: Build) -> Result<Self, TraceError> {
        let (closing, closed) = watch::channel(false);
        let resources = Resources::new(telemetry, build);
        let mut exporters = Self {
            destinations: Vec::new(),
            heads: Arc::new(Heads::of(&resources)),
            resources,
            counters: TelemetryCounters::default(),
            flushes: Mutex::default(),
            loads: Mutex::default(),
            closing,
            drains: TaskTracker::new(),
            stop: Arc::new(Notify::new()),
            runtime: None,
            thread: Mutex::default(),
        };
        for config in otlp.iter().filter(|config| config.is_active() && !config.signals.is_empty()) {
            let runtime = exporters.runtime()?;
            let destination = Arc::new(destination(config, runtime.clone(), closed.clone())?);
            let counters = config.signals.iter().map(|&signal| Arc::clone(&destination.lane(signal).counter));
            exporters.counters.counters.extend(counters);
            if let Some(spool) = &destination.spool {
                exporters.counters.spools.push((config.name.as_str().into(), spool.bytes()));
                for signal in Signal::ALL {
                    exporters.drains.spawn_on(Arc::clone(&destination).drain(signal), &runtime);
                }
            }
            exporters.destinations.push(Configured { config: config.clone(), destination });
        }
        let counters = exporters.counters();
        exporters.spawn(async move {
            loop {
                tokio::time::sleep(report::REPORT_INTERVAL).await;
                counters.report(false);
            }
        });
        Ok(exporters)
    }

    /// What became of everything sent so far.
    pub fn counters(&self) -> TelemetryCounters {
        self.counters.clone()
    }

    /// One exporter per destination that wants metrics.
    ///
    /// # Errors
    /// When the SDK refuses to make one.
    pub fn metrics(&self) -> Result<Vec<MetricDestination>, TraceError> {
        self.with_signal(Signal::Metrics)
            .map(|configured| {
                let temporality = match configured.config.kind {
                    OtlpKind::Logfire => Temporality::Delta,
                    OtlpKind::Otlp => Temporality::Cumulative,
                };
                let builder = MetricExporter::builder().with_http().with_temporality(temporality);
                let exporter = configured.prepare(builder, Signal::Metrics).build();
                Ok(MetricDestination {
                    #[cfg(test)]
                    name: configured.config.name.clone(),
                    exporter: configured.built(exporter)?,
                    resource: self.resources.get(Service::Manager).clone(),
                })
            })
            .collect()
    }

    /// One queue per destination that wants spans, with its kind.
    pub(crate) fn spans(&self) -> Vec<(OtlpKind, Queue<Item>)> {
        let kinds = self.with_signal(Signal::Traces).map(|configured| configured.config.kind);
        kinds.zip(self.queues(Signal::Traces)).collect()
    }

    /// Runs a task on the export runtime, if there is one.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + std::marker::Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// One queue per destination that wants log records.
    pub(crate) fn logs(&self) -> Vec<Queue<Item>> {
        self.queues(Signal::Logs)
    }

    /// Makes a batch task for each destination that wants a signal.
    fn queues(&self, signal: Signal) -> Vec<Queue<Item>> {
        let queue = |configured: &Configured| {
            let destination = &configured.destination;
            let (owner, heads) = (Arc::clone(destination), Arc::clone(&self.heads));
            let compressed = configured.config.kind == OtlpKind::Logfire;
            let export = move |items: Vec<Item>| -> BoxFuture<'static, ()> {
                let body = wire::request(&items, &heads).into();
                let batch = Batch { signal, gzip: false, items: items.len() as u64, body };
                // What was sent is many times what is to be sent, and needn't wait beside it.
                drop(items);
                Box::pin(Arc::clone(&owner).deliver_encoded(batch, compressed))
            };
            let counter = Arc::clone(&destination.lane(signal).counter);
            let (queue, load, flush) =
                batch::spawn(&destination.runtime, batch::QUEUE_ITEMS, counter, Item::weight, Box::new(export));
            self.flushes.lock().push(flush);
            self.loads.lock().push(load);
            queue
        };
        self.with_signal(signal).map(queue).collect()
    }

    /// Waits until everything queued before the call was delivered, put on disk, refused or given up. From a plain
    /// thread or a blocking task. `false`: the deadline came first.
    pub fn flush(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let (done, answers) = mpsc::channel();
        let asked = {
            let flushes = self.flushes.lock();
            flushes.iter().filter(|flush| flush.send(done.clone()).is_ok()).count()
        };
        drop(done);
        (0..asked).all(|_| answers.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok())
    }

    /// Flushes and ends the export thread. From a plain thread or a blocking task. `false`: something was lost, or the
    /// deadline came first. Half of the time is for the endpoints; after that, what has a spool goes there.
    pub fn shutdown(&self, deadline: Duration) -> bool {
        let start = Instant::now();
        let (half, until) = (start + deadline / 2, start + deadline);
        let mut flushed = self.flush(deadline / 2);
        self.closing.send_replace(true);
        if !flushed {
            flushed = self.flush(until.saturating_duration_since(Instant::now()));
        }
        self.await_answers(half);
        self.stop.notify_one();
        let complete = self.join(until) & self.abandon() & flushed;
        // Nobody is left to send these records.
        let _suppressed = opentelemetry::Context::enter_telemetry_suppressed_scope();
        self.counters.report(true);
        complete
    }

    /// Waits for the answers that are under way: what an endpoint took need not be sent again after a restart.
    fn await_answers(&self, until: Instant) {
        self.drains.close();
        let (done, answered) = mpsc::channel();
        let drains = self.drains.clone();
        self.spawn(async move {
            drains.wait().await;
            // The one who asked may have run out of patience, which is no failure.
            done.send(()).unwrap_or_default();
        });
        // Too late or not: what has no answer stays on disk.
        answered.recv_timeout(until.saturating_duration_since(Instant::now())).unwrap_or_default();
    }

    fn join(&self, until: Instant) -> bool {
        let Some((thread, ended)) = self.thread.lock().take() else {
            return true;
        };
        // The thread drops its end of the channel as its last act; a hanging one is left behind rather than waited for.
        match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().is_ok(),
        }
    }

    /// Counts what nobody is left to send. `true`: there is none.
    fn abandon(&self) -> bool {
        self.loads.lock().iter().fold(true, |none, load| none & (load.abandon() == 0))
    }

    /// The export runtime, for a test of what may not happen on its thread.
    #[cfg(test)]
    pub(crate) fn export_runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone().unwrap()
    }

    fn with_signal(&self, signal: Signal) -> impl Iterator<Item = &Configured> {
        self.destinations.iter().filter(move |configured| configured.config.signals.contains(&signal))
    }

    /// The export runtime, started when first needed.
    fn runtime(&mut self) -> Result<tokio::runtime::Handle, TraceError> {
        if let Some(runtime) = &self.runtime {
            return Ok(runtime.clone());
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TraceError::Runtime)?;
        let handle = runtime.handle().clone();
        let stop = Arc::clone(&self.stop);
        let (alive, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("telemetry-export".to_owned())
            .spawn(move || {
                let _alive: mpsc::Sender<()> = alive;
                // Whatever our own HTTP client does on this thread is neither traced nor logged by OTLP.
                let _suppressed = opentelemetry::Context::enter_telemetry_suppressed_scope();
                runtime.block_on(stop.notified());
                runtime.shutdown_background();
            })
            .map_err(TraceError::Runtime)?;
        self.thread = Mutex::new(Some((thread, ended)));
        self.runtime = Some(handle.clone());
        Ok(handle)
    }
}

impl Drop for Exporters {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

impl Configured {
    fn prepare<B: WithHttpConfig + WithExportConfig>(&self, builder: B, signal: Signal) -> B {
        let builder = builder
            .with_http_client(Client { destination: Arc::clone(&self.destination), signal })
            // The client has the real address; naming one here keeps OTEL_* variables from supplying another.
            .with_endpoint(format!("{}/v1/{}", self.destination.endpoint.url, signal.as_str()))
            .with_timeout(self.destination.endpoint.timeout)
            .with_retry_policy(RetryPolicy::disabled());
        match self.config.kind {
            OtlpKind::Logfire => builder.with_compression(Compression::Gzip),
            // A collector is next door as a rule, where compressing costs more than it saves.
            OtlpKind::Otlp => builder,
        }
    }

    fn built<E>(&self, exporter: Result<E, ExporterBuildError>) -> Result<E, TraceError> {
        exporter.map_err(|source| TraceError::Exporter { destination: self.config.name.clone(), source })
    }
}

fn destination(
    config: &OtlpConfig,
    runtime: tokio::runtime::Handle,
    closing: watch::Receiver<bool>,
) -> Result<Destination, TraceError> {
    let name: Arc<str> = config.name.as_str().into();
    let spool = match &config.spool {
        Some(spool) => {
            let dir = spool.dir.join(spool_folder(&config.name));
            Some(Spool::open(&dir, spool.size).map_err(|source| TraceError::Spool {
                destination: config.name.clone(),
                dir,
                source,
            })?)
        }
        None => None,
    };
    Ok(Destination {
        endpoint: endpoint(config)?,
        spool,
        lanes: Signal::ALL.map(|signal| Lane::new(Counter::new(Arc::clone(&name), signal))),
        runtime,
        closing,
    })
}

fn endpoint(config: &OtlpConfig) -> Result<Endpoint, TraceError> {
    // Without a process-wide provider reqwest panics; if the daemon has installed one already, that one is as good.
    rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("mlx-manager/", env!("CARGO_PKG_VERSION")));
    let client = match config.protocol {
        Protocol::HttpProtobuf => client,
        Protocol::Grpc => grpc::prepare(client, config),
    };
    let client = client.build().map_err(|source| TraceError::Client { destination: config.name.clone(), source })?;
    Ok(Endpoint {
        url: config.endpoint.trim_end_matches('/').to_owned(),
        protocol: config.protocol,
        headers: headers(config)?,
        client,
        timeout: config.timeout,
    })
}

/// The folder of a destination's own below a spool folder, which destinations may share. No two names have the same one,
/// even where the file system ignores case.
fn spool_folder(name: &str) -> String {
    let mut folder = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => folder.push(char::from(byte)),
            _ => folder.push_str(&format!("%{byte:02x}")),
        }
    }
    folder
}

fn headers(config: &OtlpConfig) -> Result<HeaderMap, TraceError> {
    let mut headers = HeaderMap::new();
    let mut insert = |name: &str, value: &Secret| {
        let refused = || TraceError::Header { destination: config.name.clone(), header: name.to_owned() };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| refused())?;
        value.set_sensitive(true);
        headers.insert(header, value);
        Ok(())
    };
    if config.kind == OtlpKind::Logfire && !config.token.is_empty() {
        // Logfire takes the bare token.
        insert(header::AUTHORIZATION.as_str(), &config.token)?;
    }
    config.headers.iter().try_for_each(|(name, value)| insert(name, value))?;
    Ok(headers)
}
