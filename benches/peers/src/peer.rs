//! The loggers that are compared, each with the two sinks of the default configuration: what speaks for `mlx-server` in one
//! file, everything else in the other, as text in the logger's own default shape, rotated at 10 MB where it can do that.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use flexi_logger::{
    Cleanup, Criterion, DeferredNow, FileSpec, LogSpecification, LoggerHandle, Naming, WriteMode,
    writers::{FileLogWriter, LogWriter},
};
use log4rs::append::rolling_file::{
    RollingFileAppender,
    policy::compound::{CompoundPolicy, roll::fixed_window::FixedWindowRoller, trigger::size::SizeTrigger},
};
use mlx_manager_config::{Environment, LoadOptions, load_text};
use mlx_manager_telemetry::log::{LEVELS, LogHandle, Terminal, build};
use spdlog::{
    ThreadPool,
    sink::{AsyncPoolSink, FileSink, OverflowPolicy, RotatingFileSink, RotationPolicy, Sink},
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{Layer as _, Registry, filter, fmt, layer::SubscriberExt as _};

/// The names of the two files without `.log`.
pub const FILES: [&str; 2] = ["mlx-server", "mlx-manager"];
/// The target that goes into the first file.
const SERVER: &str = "mlx_manager::server::dispatch";
/// One that goes into the second.
const MANAGER: &str = "mlx_manager::store::writer";
const ROTATE_AT: u64 = 10_000_000;
/// How long a logger may take to write what it has.
const PATIENCE: Duration = Duration::from_secs(60);

/// A logger that is set up.
pub trait Peer: Sized {
    /// Sets it up to write into a folder; without rotation where the files are pipes.
    fn start(folder: &Path, rotate: bool) -> Result<Self>;
    /// Logs one event: a message, a text, two numbers and a truth value.
    fn log(&self, index: u64);
    /// Meets one event at TRACE, which is switched off.
    fn log_disabled(&self, index: u64);
    /// Meets one at DEBUG; only the daemon's own log does more than to pass over it.
    fn log_debug(&self, _index: u64) {}
    /// Waits until everything is written, as at an orderly end of the process, and says how many events were lost.
    fn finish(self, logged: u64) -> Result<u64>;
}

/// The event, for whoever speaks `tracing`.
macro_rules! traced {
    ($level:ident, $target:expr, $index:expr) => {
        tracing::$level!(
            target: $target,
            model = "gpt-4o-mini",
            input_tokens = $index,
            duration_ms = 312.237,
            stream = true,
            "request finished"
        )
    };
}

/// The event, for whoever speaks sentences.
macro_rules! spoken {
    ($log:path, ($($head:tt)*), $index:expr) => {
        $log!(
            $($head)*
            "request finished model={} input_tokens={} duration_ms={} stream={}",
            "gpt-4o-mini", $index, 312.237, true
        )
    };
}

/// Every second event goes into the first file.
fn is_for_server(index: u64) -> bool {
    index.is_multiple_of(2)
}

fn path(folder: &Path, file: &str) -> std::path::PathBuf {
    folder.join(format!("{file}.log"))
}

/// Waits until as many events are accounted for.
fn wait_for(logged: u64, accounted: impl Fn() -> u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while accounted() < logged {
        ensure!(Instant::now() < end, "{} of {logged} events were accounted for in time", accounted());
        sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// The daemon's own log; with the story of failed requests, as it is by default, or without.
pub struct Ours<const STORY: bool> {
    handle: LogHandle,
}

impl<const STORY: bool> Ours<STORY> {
    fn count(&self, read: impl Fn(&mlx_manager_telemetry::log::SinkCounters, tracing::Level) -> u64) -> u64 {
        let counters = self.handle.counters();
        // A sink reports its losses at WARN, so that the events' own level holds nothing else.
        let levels = LEVELS.into_iter().filter(|level| *level != tracing::Level::WARN);
        levels.map(|level| counters.iter().map(|(_, counters)| read(counters, level)).sum::<u64>()).sum()
    }
}

impl<const STORY: bool> Peer for Ours<STORY> {
    fn start(folder: &Path, rotate: bool) -> Result<Self> {
        let rotation = if rotate { "{ size = '10 MB' }" } else { "'never'" };
        let config = format!(
            "[log]
            dir = '{}'
            failure_story = {STORY}
            [[log.sinks]]
            name = 'mlx-server'
            kind = 'file'
            file = 'mlx-server.log'
            include = ['mlx_manager::server']
            rotation = {rotation}
            [[log.sinks]]
            name = 'mlx-manager'
            kind = 'file'
            file = 'mlx-manager.log'
            exclude = ['mlx_manager::server']
            rotation = {rotation}
            ",
            folder.display()
        );
        let options = LoadOptions { environment: Environment::new(folder), ..LoadOptions::default() };
        let loaded = load_text(&config, None, &options).map_err(|problems| anyhow!("{}", problems.render(false)))?;
        let (router, handle) = build(&loaded.config.log, Terminal::default(), None, None)?;
        tracing::subscriber::set_global_default(Registry::default().with(router))?;
        Ok(Self { handle })
    }

    fn log(&self, index: u64) {
        if is_for_server(index) {
            traced!(info, SERVER, index);
        } else {
            traced!(info, MANAGER, index);
        }
    }

    fn log_debug(&self, index: u64) {
        traced!(debug, SERVER, index);
    }

    fn log_disabled(&self, index: u64) {
        traced!(trace, SERVER, index);
    }

    fn finish(self, logged: u64) -> Result<u64> {
        // A flush would wait for the disk itself too, which the others don't do.
        wait_for(logged, || self.count(|counters, level| counters.written(level) + counters.dropped(level)))?;
        Ok(self.count(|counters, level| counters.dropped(level)))
    }
}

/// tracing's fmt layers over `NonBlocking`. It rotates by time only, so its files grow.
pub struct Tracing<const LOSSY: bool> {
    written: Arc<AtomicU64>,
    lost: [ErrorCounter; 2],
    _guards: [WorkerGuard; 2],
}

/// Counts lines: `NonBlocking` can't be asked how far it is, and its guard gives up after a second.
struct Counting {
    file: File,
    lines: Arc<AtomicU64>,
}

impl Write for Counting {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.file.write_all(line)?;
        self.lines.fetch_add(1, Ordering::Release);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<const LOSSY: bool> Peer for Tracing<LOSSY> {
    fn start(folder: &Path, _rotate: bool) -> Result<Self> {
        let written = Arc::new(AtomicU64::new(0));
        let open = |file| -> Result<(NonBlocking, WorkerGuard)> {
            let file = OpenOptions::new().create(true).append(true).open(path(folder, file))?;
            let counting = Counting { file, lines: Arc::clone(&written) };
            Ok(NonBlockingBuilder::default().lossy(LOSSY).finish(counting))
        };
        let ((server, server_guard), (manager, manager_guard)) = (open(FILES[0])?, open(FILES[1])?);
        let lost = [server.error_counter(), manager.error_counter()];
        let is_server = |target: &str| target.starts_with("mlx_manager::server");
        let info = tracing::Level::INFO;
        let subscriber = Registry::default()
            .with(fmt::layer().with_ansi(false).with_writer(server).with_filter(filter::filter_fn(move |metadata| {
                *metadata.level() <= info && is_server(metadata.target())
            })))
            .with(fmt::layer().with_ansi(false).with_writer(manager).with_filter(filter::filter_fn(move |metadata| {
                *metadata.level() <= info && !is_server(metadata.target())
            })));
        tracing::subscriber::set_global_default(subscriber)?;
        Ok(Self { written, lost, _guards: [server_guard, manager_guard] })
    }

    fn log(&self, index: u64) {
        if is_for_server(index) {
            traced!(info, SERVER, index);
        } else {
            traced!(info, MANAGER, index);
        }
    }

    fn log_disabled(&self, index: u64) {
        traced!(trace, SERVER, index);
    }

    fn finish(self, logged: u64) -> Result<u64> {
        let lost = || self.lost.iter().map(|counter| counter.dropped_lines() as u64).sum::<u64>();
        wait_for(logged, || self.written.load(Ordering::Acquire) + lost())?;
        Ok(lost())
    }
}

/// spdlog-rs: by default the caller writes, into a buffer; else a pool of one thread does, and callers wait for room.
pub struct Spdlog<const ASYNC: bool> {
    loggers: [Arc<spdlog::Logger>; 2],
    pool: Option<Arc<ThreadPool>>,
}

impl<const ASYNC: bool> Peer for Spdlog<ASYNC> {
    fn start(folder: &Path, rotate: bool) -> Result<Self> {
        let pool = if ASYNC { Some(ThreadPool::builder().build_arc()?) } else { None };
        let open = |file: &str| -> Result<Arc<spdlog::Logger>> {
            let path = path(folder, file);
            let file: Arc<dyn Sink> = if rotate {
                let policy = RotationPolicy::FileSize(ROTATE_AT);
                RotatingFileSink::builder().base_path(path).rotation_policy(policy).max_files(100).build_arc()?
            } else {
                FileSink::builder().path(path).build_arc()?
            };
            let sink: Arc<dyn Sink> = match &pool {
                Some(pool) => AsyncPoolSink::builder()
                    .sink(file)
                    .thread_pool(Arc::clone(pool))
                    .overflow_policy(OverflowPolicy::Block)
                    .build_arc()?,
                None => file,
            };
            Ok(spdlog::Logger::builder().sink(sink).build_arc()?)
        };
        Ok(Self { loggers: [open(FILES[0])?, open(FILES[1])?], pool })
    }

    fn log(&self, index: u64) {
        let logger = &self.loggers[usize::from(!is_for_server(index))];
        spoken!(spdlog::info, (logger: logger,), index);
    }

    fn log_disabled(&self, index: u64) {
        spoken!(spdlog::trace, (logger: self.loggers[0],), index);
    }

    fn finish(self, _logged: u64) -> Result<u64> {
        self.loggers.iter().for_each(|logger| logger.flush());
        let Self { loggers, pool } = self;
        drop(loggers);
        // The last handle waits for the thread.
        drop(pool);
        Ok(0)
    }
}

/// flexi_logger in its asynchronous mode.
pub struct Flexi {
    handle: LoggerHandle,
}

/// Splits by target, which flexi_logger leaves to its user.
struct Split {
    server: FileLogWriter,
    manager: FileLogWriter,
}

impl LogWriter for Split {
    fn write(&self, now: &mut DeferredNow, record: &log::Record<'_>) -> io::Result<()> {
        let is_server = record.target().starts_with("mlx_manager::server");
        if is_server { &self.server } else { &self.manager }.write(now, record)
    }

    fn flush(&self) -> io::Result<()> {
        self.server.flush()?;
        self.manager.flush()
    }

    fn shutdown(&self) {
        self.server.shutdown();
        self.manager.shutdown();
    }
}

impl Peer for Flexi {
    fn start(folder: &Path, rotate: bool) -> Result<Self> {
        let open = |file: &str| {
            let spec = FileSpec::default().directory(folder).basename(file).suppress_timestamp();
            let mut builder = FileLogWriter::builder(spec)
                .format(flexi_logger::detailed_format)
                .write_mode(WriteMode::Async)
                .append();
            if rotate {
                builder = builder.rotate(Criterion::Size(ROTATE_AT), Naming::Numbers, Cleanup::Never);
            }
            builder.try_build()
        };
        let split = Split { server: open(FILES[0])?, manager: open(FILES[1])? };
        let handle = flexi_logger::Logger::with(LogSpecification::info()).log_to_writer(Box::new(split)).start()?;
        Ok(Self { handle })
    }

    fn log(&self, index: u64) {
        log_by_facade(index);
    }

    fn log_disabled(&self, index: u64) {
        spoken!(log::trace, (target: SERVER,), index);
    }

    fn finish(self, _logged: u64) -> Result<u64> {
        self.handle.shutdown();
        Ok(0)
    }
}

/// log4rs, whose callers write.
pub struct Log4rs;

impl Peer for Log4rs {
    fn start(folder: &Path, rotate: bool) -> Result<Self> {
        use log4rs::config::{Appender, Config, Logger, Root};
        let open = |file: &str| -> Result<Appender> {
            let archives = folder.join(format!("{file}.{{}}.log"));
            let roller =
                FixedWindowRoller::builder().build(archives.to_str().context("the folder's name isn't UTF-8")?, 100)?;
            let limit = if rotate { ROTATE_AT } else { u64::MAX };
            let policy = CompoundPolicy::new(Box::new(SizeTrigger::new(limit)), Box::new(roller));
            let appender = RollingFileAppender::builder().build(path(folder, file), Box::new(policy))?;
            Ok(Appender::builder().build(file, Box::new(appender)))
        };
        let config = Config::builder()
            .appender(open(FILES[0])?)
            .appender(open(FILES[1])?)
            .logger(
                Logger::builder()
                    .appender(FILES[0])
                    .additive(false)
                    .build("mlx_manager::server", log::LevelFilter::Info),
            )
            .build(Root::builder().appender(FILES[1]).build(log::LevelFilter::Info))?;
        log4rs::init_config(config)?;
        Ok(Self)
    }

    fn log(&self, index: u64) {
        log_by_facade(index);
    }

    fn log_disabled(&self, index: u64) {
        spoken!(log::trace, (target: SERVER,), index);
    }

    fn finish(self, _logged: u64) -> Result<u64> {
        log::logger().flush();
        Ok(0)
    }
}

fn log_by_facade(index: u64) {
    if is_for_server(index) {
        spoken!(log::info, (target: SERVER,), index);
    } else {
        spoken!(log::info, (target: MANAGER,), index);
    }
}
