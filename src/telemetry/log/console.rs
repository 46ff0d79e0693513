//! The console sink: standard error behind a bounded, lossy writer, so that a terminal that stands still stops nobody.
//!
//! Knows nothing of files. Enter at [`ConsoleSink::push`].

use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::{
    clock::Clock,
    counter::SinkCounters,
    format::{Rendered, Style},
    loss::Loss,
};

/// The most records that wait for the terminal.
pub const QUEUE_RECORDS: usize = 8_192;

/// The callers' end of the console.
pub struct ConsoleSink {
    state: Mutex<State>,
    progress: Arc<Progress>,
    counters: Arc<SinkCounters>,
    clock: Clock,
    /// Ends the writer when the sink is dropped.
    _guard: WorkerGuard,
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
}

/// How far the writer is; `NonBlocking` itself can't be asked.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    lock: Mutex<()>,
    advanced: Condvar,
}

impl ConsoleSink {
    /// Starts the writer.
    pub fn new(output: impl Write + Send + 'static, style: Style, clock: Clock, counters: Arc<SinkCounters>) -> Self {
        let progress = Arc::new(Progress::default());
        let counted = Counted { output, progress: Arc::clone(&progress), counters: Arc::clone(&counters) };
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE_RECORDS)
            .thread_name("log-console")
            .finish(counted);
        let state = State {
            drops: writer.error_counter(),
            writer,
            line: Vec::new(),
            style,
            next_sequence: 0,
            submitted: 0,
            loss: Loss::default(),
        };
        Self { state: Mutex::new(state), progress, counters, clock, _guard: guard }
    }

    /// Hands a record to the writer, or counts it as lost. Never waits for the terminal.
    pub fn push(&self, rendered: &Rendered, level: Level, timestamp: Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.loss.is_empty()
            && let Some(report) = state.loss.render(&state.style, self.clock.now())
            && state.submit(&report)
        {
            state.loss = Loss::default();
            self.counters.count_written(Level::WARN);
        }
        if state.submit(rendered) {
            self.counters.count_written(level);
        } else {
            state.loss.add(timestamp);
            self.counters.count_dropped(level);
        }
    }

    /// Writes about its own losses like this from now on.
    pub fn restyle(&self, style: Style) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).style = style;
    }

    /// Waits until everything that was pushed before is written, or until the deadline.
    pub fn flush(&self, deadline: Instant) -> bool {
        let submitted = self.state.lock().unwrap_or_else(PoisonError::into_inner).submitted;
        let mut guard = self.progress.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.progress.written.load(Ordering::Acquire) < submitted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.progress.advanced.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl State {
    fn submit(&mut self, rendered: &Rendered) -> bool {
        self.line.clear();
        rendered.append_to(&mut self.line, self.next_sequence);
        self.next_sequence += 1;
        let before = self.drops.dropped_lines();
        // The writer says nothing about a line that it drops but in its counter. We are alone with it: the state is locked.
        let taken = self.writer.write_all(&self.line).is_ok() && self.drops.dropped_lines() == before;
        self.submitted += u64::from(taken);
        taken
    }
}

/// Counts lines and failures on the writer's thread.
struct Counted<W> {
    output: W,
    progress: Arc<Progress>,
    counters: Arc<SinkCounters>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A terminal that is gone is counted and no reason to stop: an error would make the writer skip its flush.
        if self.output.write_all(line).is_err() {
            self.counters.count_io_error();
        }
        self.progress.written.fetch_add(1, Ordering::Release);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.output.flush().is_err() {
            self.counters.count_io_error();
        }
        drop(self.progress.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.progress.advanced.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::Format;

    /// An output that waits for a permit before each line and keeps what it got.
    struct Gated {
        permits: mpsc::Receiver<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a sender the gate is open.
            self.permits.recv().ok();
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn terminal_that_stands_still_loses_records_and_says_so() {
        let (gate, permits) = mpsc::channel();
        let text = Arc::new(Mutex::new(Vec::new()));
        let style = Style { format: Format::Logfmt, color: false, journald: false, timezone: TimeZone::UTC };
        let counters = Arc::new(SinkCounters::default());
        let output = Gated { permits, text: Arc::clone(&text) };
        let sink = ConsoleSink::new(output, style, Clock::system(), Arc::clone(&counters));
        let line = Rendered { text: "line seq=\n".into(), sequence_at: Some(9) };
        let pushed = QUEUE_RECORDS as u64 + 100;
        for _ in 0..pushed {
            sink.push(&line, Level::INFO, Timestamp::now());
        }
        assert!(!sink.flush(Instant::now() + Duration::from_millis(10)));
        drop(gate);
        assert!(sink.flush(Instant::now() + Duration::from_secs(20)));
        for _ in 0..2 {
            sink.push(&line, Level::INFO, Timestamp::now());
        }
        assert!(sink.flush(Instant::now() + Duration::from_secs(20)));
        let dropped = counters.dropped(Level::INFO);
        assert!((99..=100).contains(&dropped), "{dropped}");
        assert_eq!(counters.written(Level::INFO), pushed + 2 - dropped);
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        // The writer may take its first line only after records were lost already; then that loss has a report of its own.
        let (reports, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains(" lost between "));
        let lost = reports.iter().map(|report| {
            let (count, _) = report.split_once(" record").unwrap();
            count.rsplit_once('"').unwrap().1.parse::<u64>().unwrap()
        });
        assert_eq!(lost.sum::<u64>(), dropped);
        assert_eq!(lines.len() as u64, pushed + 2 - dropped);
    }
}
