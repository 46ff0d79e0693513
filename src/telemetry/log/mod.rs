//! Logs: one tracing layer that routes records to sinks, formats, rolling files and what becomes of them.
//!
//! In reading order: [`filter`] says who takes what, [`router`] is the layer, [`record`] what it hands on, [`format`] how
//! that is written, [`sink`] and [`console`] how it gets there without making anybody wait, [`rolling`], [`archive`] and
//! [`retention`] what happens to files. Nothing here is installed globally; enter at [`build`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use thiserror::Error;

use crate::config::{Color, LogConfig, Sink, SinkKind, Timezone};

mod archive;
mod clock;
mod console;
mod counter;
mod draft;
mod filter;
mod format;
mod loss;
mod panic;
mod record;
mod retention;
mod rolling;
mod router;
mod sequence;
mod sink;

pub use counter::{LEVELS, SinkCounters};
pub use panic::panic_hook;
pub use record::{Fields, LogRecord, TraceIds, Value};
pub use router::{BoxedLayer, RecordObserver, Router};

use archive::Shelf;
use clock::Clock;
use console::ConsoleSink;
use filter::{Callsite, Filter, Mask};
use format::{Rendered, Style};
use retention::Keeper;
use rolling::{RollingFile, RollingPlan};
use sink::{Bounds, FileSink, Worker};

/// How long the sinks get to write what is left when the last handle and the layer are gone.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// What standard error is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminal {
    /// A terminal.
    pub is_terminal: bool,
    /// NO_COLOR is set.
    pub no_color: bool,
    /// systemd's journal.
    pub journald: bool,
}

/// Why logging could not start.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file belongs to a daemon that is running.
    #[error(
        "log file {path} of sink \"{sink}\" is in use by another running daemon: stop it, or set log.dir (LOG_DIR)"
    )]
    InUse {
        /// The sink's name.
        sink: String,
        /// The file.
        path: PathBuf,
    },
    /// The file can't be opened.
    #[error("cannot open log file {path} of sink \"{sink}\"")]
    Open {
        /// The sink's name.
        sink: String,
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// There are too many.
    #[error("{count} log sinks are more than {}", filter::MAX_SINKS)]
    TooManySinks {
        /// How many.
        count: usize,
    },
    /// No thread could be started.
    #[error("cannot start a log thread")]
    Thread {
        /// What the system says.
        source: io::Error,
    },
}

impl LogError {
    /// The kind, one of a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "in_use",
            Self::Open { .. } => "open",
            Self::TooManySinks { .. } => "too_many_sinks",
            Self::Thread { .. } => "thread",
        }
    }
}

/// Opens the sinks and makes the layer that feeds them, `trace_layer` and `observer`. Installs nothing: the layer goes
/// on a plain registry, and the handle stays with whoever ends the process.
///
/// # Errors
/// When a file can't be opened or belongs to a running daemon.
pub fn build(
    config: &LogConfig,
    terminal: Terminal,
    trace_layer: Option<BoxedLayer>,
    observer: Option<Arc<dyn RecordObserver>>,
) -> Result<(Router, LogHandle), LogError> {
    let core = Arc::new(Core::open(config, terminal, Clock::system())?);
    Ok(assemble(config, core, trace_layer, observer))
}

fn assemble(
    config: &LogConfig,
    core: Arc<Core>,
    trace_layer: Option<BoxedLayer>,
    observer: Option<Arc<dyn RecordObserver>>,
) -> (Router, LogHandle) {
    let filter = Filter::new(config, observer.is_some());
    let handle = LogHandle { core: Arc::clone(&core), filter: filter.clone() };
    (Router::new(core, filter, trace_layer, observer), handle)
}

/// The names of the sinks that take an event of this target and level.
pub fn takers<'a>(config: &'a LogConfig, target: &str, level: tracing::Level) -> Vec<&'a str> {
    let mask = Filter::new(config, false).enabled(target, level, Callsite::Event);
    let taking = config.sinks.iter().enumerate().filter(|(index, _)| mask & (1 << index) != 0);
    taking.map(|(_, sink)| sink.name.as_str()).collect()
}

/// What the rest of the process may do with its logs.
#[derive(Clone)]
pub struct LogHandle {
    core: Arc<Core>,
    filter: Filter,
}

impl LogHandle {
    /// Writes everything that was logged before, to the disk itself; false when it took longer than `deadline`.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.core.flush(Instant::now() + deadline)
    }

    /// Opens all files anew, for who renamed them and sends SIGHUP.
    pub fn reopen(&self) {
        for route in &self.core.routes {
            if let Output::File(sink) = &route.output {
                sink.reopen();
            }
        }
    }

    /// What became of the records, by sink name.
    pub fn counters(&self) -> Vec<(String, Arc<SinkCounters>)> {
        self.core.routes.iter().map(|route| (route.name.clone(), Arc::clone(&route.counters))).collect()
    }

    /// Hands a record to its sinks without going through tracing, which is deaf while it handles another event.
    fn deliver_directly(&self, record: &LogRecord<'_>) {
        let mask = self.filter.enabled(record.target, record.level, Callsite::Event);
        self.core.deliver(record, mask, &mut Rendered::default());
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.core.routes.iter().map(|route| &route.name)).finish()
    }
}

/// The sinks and their threads; ends with the last of layer and handles.
struct Core {
    routes: Vec<Route>,
    clock: Clock,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

struct Route {
    name: String,
    style: Style,
    counters: Arc<SinkCounters>,
    output: Output,
}

enum Output {
    Console(Box<ConsoleSink>),
    File(Arc<FileSink>),
}

impl Core {
    fn open(config: &LogConfig, terminal: Terminal, clock: Clock) -> Result<Self, LogError> {
        let count = config.sinks.len();
        if count > filter::MAX_SINKS {
            return Err(LogError::TooManySinks { count });
        }
        let timezone = match config.timezone {
            Timezone::Utc => TimeZone::UTC,
            Timezone::Local => TimeZone::system(),
        };
        let (rotated, rotations) = mpsc::channel();
        let mut opening =
            Opening { terminal, timezone, clock: clock.clone(), rotated, shelves: Vec::new(), workers: Vec::new() };
        // All files first: a sink that can't be opened leaves no threads behind.
        let routes = config.sinks.iter().map(|sink| opening.route(sink)).collect::<Result<Vec<_>, _>>()?;
        let Opening { shelves, workers, rotated, .. } = opening;
        drop(rotated);
        let mut threads = Vec::new();
        let core = Self { routes, clock: clock.clone(), workers: Mutex::default() };
        for worker in workers {
            threads.push(spawn("log-file", move || worker.run())?);
        }
        if !shelves.is_empty() {
            // Not joined: it ends when the workers do, and may be compressing for a while.
            drop(spawn("log-keeper", move || Keeper { shelves, clock, rotations }.run())?);
        }
        *core.workers.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(core)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Hands a record to the sinks of a mask; `rendered` is room for its text.
    fn deliver(&self, record: &LogRecord<'_>, mask: Mask, rendered: &mut Rendered) {
        let mut style = None;
        for (index, route) in self.routes.iter().enumerate() {
            if mask & (1 << index) == 0 {
                continue;
            }
            // Most sinks write alike.
            if style != Some(&route.style) {
                rendered.render(&route.style, record);
                style = Some(&route.style);
            }
            match &route.output {
                Output::Console(sink) => sink.push(rendered, record.level, record.timestamp),
                Output::File(sink) => sink.push(rendered, record.level, record.timestamp),
            }
        }
    }

    fn flush(&self, deadline: Instant) -> bool {
        // All start at once: a sink that is late takes no time from the next.
        let asked: Vec<_> = self
            .routes
            .iter()
            .map(|route| match &route.output {
                Output::Console(_) => 0,
                Output::File(sink) => sink.ask_flush(),
            })
            .collect();
        self.routes.iter().zip(asked).fold(true, |flushed, (route, asked)| {
            flushed
                & match &route.output {
                    Output::Console(sink) => sink.flush(deadline),
                    Output::File(sink) => sink.await_flush(asked, deadline),
                }
        })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let flushed = self.flush(Instant::now() + DROP_DEADLINE);
        for route in &self.routes {
            if let Output::File(sink) = &route.output {
                sink.stop();
            }
        }
        // A worker that could not write in time may never end.
        if flushed {
            for worker in self.workers.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                drop(worker.join());
            }
        }
    }
}

/// What is gathered while the sinks are opened.
struct Opening {
    terminal: Terminal,
    timezone: TimeZone,
    clock: Clock,
    rotated: mpsc::Sender<()>,
    shelves: Vec<(Shelf, Arc<SinkCounters>)>,
    workers: Vec<Worker>,
}

impl Opening {
    fn route(&mut self, sink: &Sink) -> Result<Route, LogError> {
        let counters = Arc::new(SinkCounters::default());
        let (style, output) = match &sink.kind {
            SinkKind::Console { color } => {
                let color = match color {
                    Color::Always => true,
                    Color::Never => false,
                    Color::Auto => self.terminal.is_terminal && !self.terminal.no_color,
                };
                let journald = self.terminal.journald;
                let style = Style { format: sink.format, color, journald, timezone: self.timezone.clone() };
                let output = ConsoleSink::new(io::stderr(), style.clone(), self.clock.clone(), Arc::clone(&counters));
                (style, Output::Console(Box::new(output)))
            }
            SinkKind::File { path, rotation, retention, compression } => {
                // Files are read by machines and on other machines: their times are UTC.
                let style = Style { format: sink.format, color: false, journald: false, timezone: TimeZone::UTC };
                let shelf = Shelf::new(path, retention.clone(), *compression);
                let plan = RollingPlan {
                    path: path.clone(),
                    rotation: rotation.clone(),
                    timezone: self.timezone.clone(),
                    clock: self.clock.clone(),
                };
                self.shelves.push((shelf.clone(), Arc::clone(&counters)));
                let file = self.file(sink, plan, shelf, &counters)?;
                let first = first_sequence(sink, path, &self.shelves)?;
                let queue = Arc::new(FileSink::new(Bounds::default(), first, Arc::clone(&counters)));
                self.workers.push(Worker {
                    sink: Arc::clone(&queue),
                    file,
                    style: style.clone(),
                    clock: self.clock.clone(),
                    complain: Box::new(complain),
                });
                (style, Output::File(queue))
            }
        };
        Ok(Route { name: sink.name.clone(), style, counters, output })
    }

    fn file(
        &self,
        sink: &Sink,
        plan: RollingPlan,
        shelf: Shelf,
        counters: &Arc<SinkCounters>,
    ) -> Result<RollingFile, LogError> {
        let path = plan.path.clone();
        let rotated = self.rotated.clone();
        let counters = Arc::clone(counters);
        let shown = path.display().to_string();
        let failed_before = Mutex::new(false);
        let after_rotation = move |result: Result<(), &io::Error>| {
            let mut failed_before = failed_before.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                // The keeper may be gone at the very end; the next start tidies up.
                Ok(()) => drop(rotated.send(())),
                Err(error) => {
                    counters.count_io_error();
                    if !*failed_before {
                        complain(&format!("cannot rotate log file {shown}: {error}; writing on"));
                    }
                }
            }
            *failed_before = result.is_err();
        };
        RollingFile::open(plan, shelf, after_rotation).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::InUse { sink: sink.name.clone(), path },
            _ => LogError::Open { sink: sink.name.clone(), path, source: error },
        })
    }
}

/// Sequence numbers go on where the active file, or else the newest readable archive, left off.
fn first_sequence(sink: &Sink, path: &Path, shelves: &[(Shelf, Arc<SinkCounters>)]) -> Result<u64, LogError> {
    let open_error = |source| LogError::Open { sink: sink.name.clone(), path: path.to_owned(), source };
    let archives = match shelves.last() {
        Some((shelf, _)) => shelf.list().map_err(open_error)?,
        None => Vec::new(),
    };
    let readable = archives.iter().rev().filter(|archive| !archive.compressed).map(|archive| archive.path.as_path());
    sequence::next([path].into_iter().chain(readable.take(1)), sink.format).map_err(open_error)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| LogError::Thread { source })
}

/// Says something on standard error when a sink can't.
#[expect(clippy::print_stderr, reason = "the log itself is what failed")]
fn complain(message: &str) {
    eprintln!("mlx-manager: {message}");
}

#[cfg(test)]
mod tests;
