//! Logs: one tracing layer that routes records to sinks, formats, rolling files and what becomes of them.
//!
//! In reading order: [`filter`] says who takes what, [`router`] is the layer, [`record`] what it hands on, [`format`] how
//! that is written, [`sink`] and [`console`] how it gets there without making anybody wait, [`rolling`], [`archive`] and
//! [`retention`] what happens to files; [`plan`] is all of this as it is in effect, [`reload`] replaces it, and [`story`]
//! holds what failed requests said below the level. Nothing here is installed globally; enter at [`build`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::{Timestamp, tz::TimeZone};
use mlx_manager_config::{LogConfig, Sink, SinkKind};
use mlx_manager_signal::{event::SinkTrouble, hook};
use parking_lot::Mutex;
use thiserror::Error;

mod archive;
mod clock;
mod console;
mod counter;
mod draft;
pub mod explain;
mod filter;
mod format;
mod library;
mod line;
mod loss;
mod panic;
mod plan;
mod record;
mod reload;
mod retention;
mod rolling;
mod router;
mod sequence;
mod sink;
mod story;
pub mod verify;

pub use console::{Terminal, is_journal};
pub use counter::{LEVELS, SinkCounters};
pub use router::{Router, TraceLayer};

pub(crate) use library::hear_libraries;
pub(crate) use panic::panic_hook;
pub(crate) use record::{LogRecord, Value};
pub(crate) use router::RecordObserver;

use archive::Shelf;
use clock::Clock;
use console::ConsoleSink;
use filter::Callsite;
use format::{Rendered, Style};
use plan::{FileOutput, InEffect, Output, Plan, Route};
use rolling::{RollingFile, RollingPlan};
use sink::{Bounds, Change, FileSink, Worker};
use story::Memory;

/// How long the sinks get to write what is left when the last handle and the layer are gone.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

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

#[cfg(test)]
impl LogError {
    /// The kind, one of a closed set.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "in_use",
            Self::Open { .. } => "open",
            Self::TooManySinks { .. } => "too_many_sinks",
            Self::Thread { .. } => "thread",
        }
    }
}

/// Opens the sinks and makes the layer that feeds them, `traces` and `observer`. Installs nothing: the layer goes
/// on a plain registry, and the handle stays with whoever ends the process.
///
/// # Errors
/// When a file can't be opened or belongs to a running daemon.
pub fn build(
    config: &LogConfig,
    terminal: Terminal,
    traces: Option<TraceLayer>,
    observer: Option<Arc<dyn RecordObserver>>,
) -> Result<(Router, LogHandle), LogError> {
    let traced = traces.as_ref().is_some_and(|traces| traces.recording);
    let core = Arc::new(Core::open(config, terminal, Clock::system(), observer, traced)?);
    Ok((Router::new(Arc::clone(&core), traces.map(|traces| traces.layer)), LogHandle { core }))
}

/// What the rest of the process may do with its logs.
#[derive(Clone)]
pub struct LogHandle {
    core: Arc<Core>,
}

impl LogHandle {
    /// Writes everything that was logged before, to the disk itself; false when it took longer than `deadline`.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.core.plan().flush(Instant::now() + deadline)
    }

    /// The same, and the end of all sinks: what is logged later is lost. False when something was lost.
    pub fn close(&self, deadline: Duration) -> bool {
        self.core.plan().close(Instant::now() + deadline)
    }

    /// Opens all files anew, for who renamed them and sends SIGHUP.
    pub fn reopen(&self) {
        self.core.plan().files().for_each(|file| file.sink.reopen());
    }

    /// What became of the records of every sink that there was, by its name.
    pub fn counters(&self) -> Vec<(String, Arc<SinkCounters>)> {
        self.core.counters.lock().clone()
    }

    /// Hands a record to its sinks without going through tracing, which is deaf while it handles another event.
    fn deliver_directly(&self, record: &LogRecord<'_>) {
        let plan = self.core.plan();
        let taken = plan.filter.taken(record.target, record.level, Callsite::Event);
        if !taken.story {
            plan.deliver(record, taken.mask, &mut Rendered::default());
        }
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.core.plan().routes.iter().map(|route| &route.name)).finish()
    }
}

/// The sinks and their threads; ends with the last of layer and handles.
struct Core {
    in_effect: ArcSwap<InEffect>,
    clock: Clock,
    terminal: Terminal,
    complaints: Complaints,
    observer: Option<Arc<dyn RecordObserver>>,
    /// Whether somebody exports spans. Where nobody does, only the outermost ones have ids.
    traced: bool,
    stories: Arc<Memory>,
    /// By name, of all sinks that there ever were: their metrics must not start again.
    counters: Mutex<Vec<(String, Arc<SinkCounters>)>>,
    /// The thread that looks after archives. Whoever holds the lock is the one that reloads.
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Core {
    fn open(
        config: &LogConfig,
        terminal: Terminal,
        clock: Clock,
        observer: Option<Arc<dyn RecordObserver>>,
        traced: bool,
    ) -> Result<Self, LogError> {
        let core = Self {
            in_effect: ArcSwap::from_pointee(InEffect::default()),
            clock,
            terminal,
            complaints: Complaints::default(),
            observer,
            traced,
            stories: Arc::default(),
            counters: Mutex::default(),
            keeper: Mutex::default(),
        };
        core.put_in_effect(config)?;
        Ok(core)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.in_effect.load().plan)
    }

    /// The counters of a sink, which go on where those of an earlier one of that name ended.
    fn counters_of(&self, name: &str) -> Arc<SinkCounters> {
        let mut all = self.counters.lock();
        if let Some((_, counters)) = all.iter().find(|(known, _)| known == name) {
            return Arc::clone(counters);
        }
        let counters = Arc::new(SinkCounters::default());
        all.push((name.to_owned(), Arc::clone(&counters)));
        counters
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.plan().close(Instant::now() + DROP_DEADLINE);
    }
}

/// What is gathered while the sinks are opened.
struct Opening<'a> {
    core: &'a Core,
    /// The plan whose sinks may stay.
    before: &'a Plan,
    timezone: TimeZone,
    rotated: mpsc::Sender<()>,
    shelves: Vec<(Shelf, Arc<SinkCounters>)>,
    workers: Vec<(Arc<FileOutput>, Worker)>,
    /// What sinks that stay are to be told once all others are open.
    changes: Vec<Box<dyn FnOnce()>>,
}

impl<'a> Opening<'a> {
    fn new(core: &'a Core, before: &'a Plan, timezone: TimeZone, rotated: mpsc::Sender<()>) -> Self {
        Self { core, before, timezone, rotated, shelves: Vec::new(), workers: Vec::new(), changes: Vec::new() }
    }

    fn route(&mut self, sink: &Sink) -> Result<Route, LogError> {
        let counters = self.core.counters_of(&sink.name);
        let clock = self.core.clock.clone();
        let (style, output) = match &sink.kind {
            SinkKind::Console { color } => {
                let (color, journald) = console::dress(*color, self.core.terminal);
                let timezone = self.timezone.clone();
                let style = Style { format: sink.format, color, journald, timezone };
                let output = match self.before.console(&sink.name) {
                    Some(console) => {
                        let (console, style) = (Arc::clone(console), style.clone());
                        let changed = Arc::clone(&console);
                        self.changes.push(Box::new(move || changed.restyle(style)));
                        console
                    }
                    None => Arc::new(ConsoleSink::new(io::stderr(), style.clone(), clock, counters)),
                };
                (style, Output::Console(output))
            }
            SinkKind::File { path, rotation, retention, compression } => {
                // Files are read by machines and on other machines: their times are UTC.
                let style = Style { format: sink.format, color: false, journald: false, timezone: TimeZone::UTC };
                let shelf = Shelf::new(path, retention.clone(), *compression);
                let plan = RollingPlan {
                    path: path.clone(),
                    rotation: rotation.clone(),
                    timezone: self.timezone.clone(),
                    clock: clock.clone(),
                };
                self.shelves.push((shelf.clone(), Arc::clone(&counters)));
                let after_rotation = self.after_rotation(path, &counters);
                let output = match self.before.files().find(|file| file.path == *path) {
                    Some(file) => {
                        let (file, style) = (Arc::clone(file), style.clone());
                        let sink = Arc::clone(&file.sink);
                        let change = Change { plan, shelf, rotated: Box::new(after_rotation), style };
                        self.changes.push(Box::new(move || sink.change(change, counters)));
                        file
                    }
                    None => {
                        let kept = shelf.clone();
                        let file = RollingFile::open(plan, shelf, after_rotation);
                        let file = file.map_err(|error| open_error(sink, path, error))?;
                        let complaints = self.core.complaints.clone();
                        let first = sequence::next(path, &kept, |message| complaints.utter(message))
                            .and_then(|next| Ok(next.max(file.noted_sequence()?.unwrap_or_default())))
                            .map_err(|error| open_error(sink, path, error))?;
                        // Now, so that on a full disk there is room for it.
                        file.note_sequence(first).unwrap_or_else(|_| counters.count_io_error());
                        let queue = Arc::new(FileSink::new(Bounds::default(), first, counters));
                        let (sink, style) = (Arc::clone(&queue), style.clone());
                        let output = FileOutput { path: path.clone(), sink: queue, thread: Mutex::default() };
                        let output = Arc::new(output);
                        let complain = Box::new(move |message: &str| complaints.utter(message));
                        let worker = Worker { sink, file, style, clock, complain };
                        self.workers.push((Arc::clone(&output), worker));
                        output
                    }
                };
                (style, Output::File(output))
            }
        };
        Ok(Route { name: sink.name.clone(), style, output })
    }

    fn after_rotation(
        &self,
        path: &Path,
        counters: &Arc<SinkCounters>,
    ) -> impl Fn(Result<(), &io::Error>) + Send + use<> {
        let rotated = self.rotated.clone();
        let counters = Arc::clone(counters);
        let complaints = self.core.complaints.clone();
        let shown = path.display().to_string();
        let failed_before = Mutex::new(false);
        move |result: Result<(), &io::Error>| {
            let mut failed_before = failed_before.lock();
            match result {
                // The keeper may be gone at the very end; the next start tidies up.
                Ok(()) => drop(rotated.send(())),
                Err(error) => {
                    counters.count_io_error();
                    if !*failed_before {
                        complaints.utter(&format!("cannot rotate log file {shown}: {error}; writing on"));
                    }
                }
            }
            *failed_before = result.is_err();
        }
    }
}

fn open_error(sink: &Sink, path: &Path, error: io::Error) -> LogError {
    let (sink, path) = (sink.name.clone(), path.to_owned());
    match error.kind() {
        io::ErrorKind::WouldBlock => LogError::InUse { sink, path },
        _ => LogError::Open { sink, path, source: error },
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| LogError::Thread { source })
}

/// Says what is wrong with a sink where an operator sees it.
#[derive(Debug, Clone, Default)]
struct Complaints {
    /// Whether a sink writes to standard error, in a format of its own.
    console: Arc<AtomicBool>,
}

impl Complaints {
    #[expect(clippy::print_stderr, reason = "the log itself is what failed")]
    fn utter(&self, message: &str) {
        SinkTrouble(message).emit();
        if hook::is_deaf() || !self.console.load(Ordering::Relaxed) {
            eprintln!("mlx-manager: {message}");
        }
    }
}

#[cfg(test)]
mod tests;
