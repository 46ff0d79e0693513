//! The console sink: standard error behind a bounded, lossy writer, so that a terminal that stands still stops nobody.
//!
//! Knows nothing of files. Enter at [`ConsoleSink::push`].

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use mlx_manager_config::Color;
use parking_lot::{Condvar, Mutex};
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::{
    clock::Clock,
    counter::SinkCounters,
    format::{Rendered, Style},
    loss::Loss,
};

/// What standard error is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminal {
    /// A terminal.
    pub is_terminal: bool,
    /// NO_COLOR is set, or TERM is dumb.
    pub no_color: bool,
    /// systemd's journal.
    pub journald: bool,
}

/// The most records that wait for the terminal.
pub const QUEUE_RECORDS: usize = 8_192;
/// How many of them don't wait for the writer to rest.
const MANY_RECORDS: u64 = 1_024;
/// How long the writer rests when it has written all there was. A caller that finds it asleep has to wake it, which costs more
/// than to make a line; so whoever comes meanwhile only leaves theirs.
const REST: Duration = Duration::from_millis(10);

/// Whether text is coloured, and whether it speaks journald's priorities, on this standard error.
pub fn dress(color: Color, terminal: Terminal) -> (bool, bool) {
    let color = match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal.is_terminal && !terminal.no_color,
    };
    (color, terminal.journald)
}

/// Whether a stream is the journal that `JOURNAL_STREAM` names by device and inode. The variable alone says nothing: what
/// a service starts inherits it, also where its output goes to a terminal or a file.
pub fn is_journal(journal_stream: &str, stream: impl AsFd) -> bool {
    let stat = stream.as_fd().try_clone_to_owned().and_then(|stream| File::from(stream).metadata());
    stat.is_ok_and(|stat| journal_stream == format!("{}:{}", stat.dev(), stat.ino()))
}

/// The callers' end of the console.
pub struct ConsoleSink {
    state: Arc<Mutex<State>>,
    progress: Arc<Progress>,
    /// Ends the writer when the sink is dropped.
    _guard: Option<WorkerGuard>,
}

struct State {
    writer: NonBlocking,
    drops: ErrorCounter,
    line: Vec<u8>,
    /// How it writes about its own losses.
    style: Style,
    next_sequence: u64,
    /// Lines that the writer took.
    submitted: u64,
    loss: Loss,
    counters: Arc<SinkCounters>,
    clock: Clock,
}

/// How far the writer is; `NonBlocking` itself can't be asked.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    lock: Mutex<()>,
    advanced: Condvar,
    /// Ends the writer's rest.
    wanted: Condvar,
}

impl ConsoleSink {
    /// Starts the writer.
    pub fn new(output: impl Write + Send + 'static, style: Style, clock: Clock, counters: Arc<SinkCounters>) -> Self {
        let progress = Arc::new(Progress::default());
        let mut started = None;
        let state = Arc::new_cyclic(|state: &Weak<Mutex<State>>| {
            let (writer, guard) = NonBlockingBuilder::default()
                .lossy(true)
                .buffered_lines_limit(QUEUE_RECORDS)
                .thread_name("log-console")
                .finish(Counted { output, progress: Arc::clone(&progress), state: Weak::clone(state) });
            started = Some(guard);
            Mutex::new(State {
                drops: writer.error_counter(),
                writer,
                line: Vec::new(),
                style,
                next_sequence: 0,
                submitted: 0,
                loss: Loss::default(),
                counters,
                clock,
            })
        });
        Self { state, progress, _guard: started }
    }

    /// Hands a record to the writer, or counts it as lost. Never waits for the terminal.
    pub fn push(&self, rendered: &Rendered, level: Level, timestamp: Timestamp) {
        let mut state = self.state.lock();
        if let Some(report) = state.report()
            && state.submit(&report)
        {
            state.told();
        }
        if state.submit(rendered) {
            state.counters.count_written(level);
        } else {
            let sequence = state.next_sequence;
            state.loss.add(sequence, level, timestamp);
            state.counters.count_dropped(level);
        }
        if level == Level::ERROR || state.submitted >= self.progress.written.load(Ordering::Relaxed) + MANY_RECORDS {
            self.progress.wanted.notify_one();
        }
        // Lost or not, the record had the number. A report that was lost had none: it is written later.
        state.next_sequence += 1;
    }

    /// Writes about its own losses like this from now on.
    pub fn restyle(&self, style: Style) {
        self.state.lock().style = style;
    }

    /// Waits until everything that was pushed before is written, the record about losses too, or until the deadline.
    pub fn flush(&self, deadline: Instant) -> bool {
        let state = self.state.lock();
        let wanted = state.submitted + u64::from(!state.loss.is_empty());
        drop(state);
        let mut guard = self.progress.lock.lock();
        self.progress.wanted.notify_one();
        while self.progress.written.load(Ordering::Acquire) < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.progress.advanced.wait_for(&mut guard, left);
        }
        true
    }
}

impl State {
    fn submit(&mut self, rendered: &Rendered) -> bool {
        self.line.clear();
        rendered.append_to(&mut self.line, self.next_sequence);
        let before = self.drops.dropped_lines();
        // The writer says nothing about a line that it drops but in its counter. We are alone with it: the state is locked.
        let taken = self.writer.write_all(&self.line).is_ok() && self.drops.dropped_lines() == before;
        self.submitted += u64::from(taken);
        taken
    }

    /// The record about what was lost, if anything was.
    fn report(&self) -> Option<Rendered> {
        self.loss.render(&self.style, self.clock.now())
    }

    /// The record about losses has its number and is on its way.
    fn told(&mut self) {
        self.next_sequence += 1;
        self.loss = Loss::default();
        self.counters.count_written(Level::WARN);
    }
}

/// Counts lines and failures on the writer's thread.
struct Counted<W> {
    output: W,
    progress: Arc<Progress>,
    state: Weak<Mutex<State>>,
}

impl<W: Write> Counted<W> {
    /// Tells of losses when the queue is empty, since nothing else may come for a long time.
    fn tell_losses(&mut self) {
        let Some(shared) = self.state.upgrade() else { return };
        let mut state = shared.lock();
        // What came in meanwhile has a lower number than the report would get, and brings us here again.
        if self.progress.written.load(Ordering::Acquire) != state.submitted {
            return;
        }
        let Some(report) = state.report() else { return };
        let mut line = Vec::new();
        report.append_to(&mut line, state.next_sequence);
        state.submitted += 1;
        state.told();
        // A terminal that stands still must not stop those who push. What they push comes after this all the same.
        drop(state);
        self.put(&line);
    }

    fn put(&mut self, line: &[u8]) {
        // A terminal that is gone is counted and no reason to stop: an error would make the writer skip its flush.
        if self.output.write_all(line).is_err() {
            self.count_io_error();
        }
        self.progress.written.fetch_add(1, Ordering::Release);
    }

    fn count_io_error(&self) {
        if let Some(state) = self.state.upgrade() {
            state.lock().counters.count_io_error();
        }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tell_losses();
        if self.output.flush().is_err() {
            self.count_io_error();
        }
        let mut guard = self.progress.lock.lock();
        self.progress.advanced.notify_all();
        self.progress.wanted.wait_for(&mut guard, REST);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use jiff::tz::TimeZone;
    use mlx_manager_config::Format;

    use super::*;
    use crate::log::verify::{Gap, verify};

    /// An output that waits for a permit before each line and keeps what it got.
    struct Gated {
        permits: mpsc::Receiver<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a sender the gate is open.
            self.permits.recv().ok();
            self.text.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn colours_only_on_a_terminal_that_wants_them() {
        let on = |is_terminal, no_color| Terminal { is_terminal, no_color, journald: false };
        for (color, terminal, expected) in [
            (Color::Auto, on(true, false), true),
            (Color::Auto, on(true, true), false),
            (Color::Auto, on(false, false), false),
            (Color::Always, on(false, true), true),
            (Color::Never, on(true, false), false),
        ] {
            assert_eq!(dress(color, terminal), (expected, false), "{color:?} {terminal:?}");
        }
    }

    #[test]
    fn journal_is_known_by_its_stream() {
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let name = |file: &File| format!("{}:{}", file.metadata().unwrap().dev(), file.metadata().unwrap().ino());
        assert!(is_journal(&name(&file), &file));
        for wrong in [name(&other), String::new(), "1".into(), format!("{} ", name(&file))] {
            assert!(!is_journal(&wrong, &file), "{wrong}");
        }
    }

    /// An output that counts how often all there was had been written.
    struct Counting(Arc<AtomicU64>);

    impl Write for Counting {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn what_comes_while_the_writer_rests_wakes_nobody() {
        let style = Style { format: Format::Logfmt, color: false, journald: false, timezone: TimeZone::UTC };
        let emptied = Arc::new(AtomicU64::new(0));
        let sink =
            ConsoleSink::new(Counting(Arc::clone(&emptied)), style, Clock::system(), Arc::new(SinkCounters::default()));
        let line = Rendered { text: "message=line\n".into(), sequence_at: None };
        let started = Instant::now();
        while started.elapsed() < 5 * REST {
            sink.push(&line, Level::INFO, Timestamp::now());
            std::thread::sleep(Duration::from_micros(100));
        }
        let rests = started.elapsed().as_millis().div_ceil(REST.as_millis()) as u64;
        assert!(emptied.load(Ordering::Relaxed) <= rests + 1, "{emptied:?} in {rests}");
        assert!(sink.flush(Instant::now() + Duration::from_secs(20)));
    }

    #[test]
    fn terminal_that_stands_still_loses_records_and_says_so() {
        let (gate, permits) = mpsc::channel();
        let text = Arc::new(Mutex::new(Vec::new()));
        let style = Style { format: Format::Logfmt, color: false, journald: false, timezone: TimeZone::UTC };
        let counters = Arc::new(SinkCounters::default());
        let output = Gated { permits, text: Arc::clone(&text) };
        let sink = ConsoleSink::new(output, style, Clock::system(), Arc::clone(&counters));
        let line = Rendered { text: "message=line seq=\n".into(), sequence_at: Some(17) };
        let pushed = QUEUE_RECORDS as u64 + 100;
        for _ in 0..pushed {
            sink.push(&line, Level::INFO, Timestamp::now());
        }
        assert!(!sink.flush(Instant::now() + Duration::from_millis(10)));
        drop(gate);
        assert!(sink.flush(Instant::now() + Duration::from_secs(20)));
        // Nobody needs to say anything for that.
        let so_far = String::from_utf8(text.lock().clone()).unwrap();
        assert!(so_far.lines().next_back().unwrap().contains(" lost between "));
        for _ in 0..2 {
            sink.push(&line, Level::INFO, Timestamp::now());
        }
        assert!(sink.flush(Instant::now() + Duration::from_secs(20)));
        let dropped = counters.dropped(Level::INFO);
        assert!((99..=pushed).contains(&dropped), "{dropped}");
        assert_eq!(counters.written(Level::INFO), pushed + 2 - dropped);
        let text = String::from_utf8(text.lock().clone()).unwrap();
        // The writer may take a line, and so a report its place, while others are still being lost.
        let reports: Vec<&str> = text.lines().filter(|line| line.contains(" lost between ")).collect();
        assert_eq!(text.lines().count() as u64, pushed + 2 - dropped + reports.len() as u64);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let family = verify(&[file.path().to_owned()]).remove(0);
        assert!(family.is_whole(), "{family:?}");
        assert_eq!(family.gaps.iter().map(Gap::count).sum::<u64>(), dropped);
    }
}
