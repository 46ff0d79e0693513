//! What telemetry itself lost or kept. Sinks and exporters count for themselves, on paths that must not log; these events
//! carry their totals since the start of the process, are stated by pollers of the registry, and
//! therefore write no log line. The recorder's cap is one that deserves a line.

use mlx_manager_config::{Level, Signal};

use crate::{
    metric::{
        Labels, advance,
        name::{Counter, Gauge, Label},
        set,
    },
    target,
};

/// Totals of a log sink.
#[derive(Debug)]
pub struct LogSinkTotals<'a> {
    /// The `[[log.sinks]]` name.
    pub sink: &'a str,
    /// Records written, by level.
    pub written: &'a [(tracing::Level, u64)],
    /// Records lost, by level.
    pub dropped: &'a [(tracing::Level, u64)],
    /// Failed writes.
    pub io_errors: u64,
}

impl LogSinkTotals<'_> {
    /// States the fact.
    pub fn emit(self) {
        let sink = Labels::none().with_text(Label::Sink, self.sink);
        for (counter, totals) in
            [(Counter::LogRecordsWritten, self.written), (Counter::LogRecordsDropped, self.dropped)]
        {
            for (level, total) in totals {
                advance(counter, sink.clone().with(Label::Level, Level::from(*level).as_str()), *total);
            }
        }
        advance(Counter::LogIoErrors, sink, self.io_errors);
    }
}

/// Totals of one signal's way to one OTLP destination.
#[derive(Debug)]
pub struct ExportTotals<'a> {
    /// The `[[otlp]]` name.
    pub destination: &'a str,
    /// What is sent.
    pub signal: Signal,
    /// Items that the destination took.
    pub exported: u64,
    /// Items lost on our side.
    pub dropped: u64,
    /// Items that it refused, or for which it was tried in vain.
    pub failed: u64,
}

impl ExportTotals<'_> {
    /// States the fact.
    pub fn emit(self) {
        let labels =
            Labels::none().with(Label::Signal, self.signal.as_str()).with_text(Label::Destination, self.destination);
        advance(Counter::TelemetryExported, labels.clone(), self.exported);
        advance(Counter::TelemetryDropped, labels.clone(), self.dropped);
        advance(Counter::TelemetryFailed, labels, self.failed);
    }
}

/// What a destination's spool takes on disk.
#[derive(Debug)]
pub struct SpoolSize<'a> {
    /// The `[[otlp]]` name.
    pub destination: &'a str,
    /// Bytes of batches that wait.
    pub bytes: u64,
}

impl SpoolSize<'_> {
    /// States the fact.
    pub fn emit(self) {
        let labels = Labels::none().with_text(Label::Destination, self.destination);
        set(Gauge::SpoolBytes, labels, self.bytes as f64);
    }
}

/// A metric has as many series as it may, and keeps no new ones. What is not kept is counted by the recorder.
#[derive(Debug)]
pub struct SeriesCapReached<'a> {
    /// The metric.
    pub metric: &'a str,
    /// How many series that is, beside those that the configuration opens.
    pub series: usize,
}

impl SeriesCapReached<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::TELEMETRY,
            metric = self.metric, series = self.series,
            "a metric keeps no new series; mlx_manager_metric_series_dropped_total counts what it misses"
        );
    }
}

/// Batches of a signal did not reach their destination and never will, or can't be put on disk.
#[derive(Debug)]
pub struct TelemetryLost<'a> {
    /// The `[[otlp]]` name.
    pub destination: &'a str,
    /// What was to be sent.
    pub signal: Signal,
    /// Why, in words of a closed set.
    pub cause: &'static str,
    /// How many items are lost since this was last said; 0 when they only can't be kept on disk.
    pub items: u64,
    /// What the destination or the disk said.
    pub reason: Option<&'a str>,
}

impl TelemetryLost<'_> {
    /// States the fact.
    pub fn emit(self) {
        let Self { destination, cause, items, reason, .. } = self;
        let signal = self.signal.as_str();
        if items == 0 {
            tracing::warn!(
                target: target::TELEMETRY, destination, signal, cause, reason, "telemetry can't be kept on disk"
            );
        } else {
            tracing::warn!(target: target::TELEMETRY, destination, signal, cause, items, reason, "telemetry was lost");
        }
    }
}

/// A destination went away or came back.
#[derive(Debug)]
pub struct EndpointChanged<'a> {
    /// The `[[otlp]]` name.
    pub destination: &'a str,
    /// What is sent there.
    pub signal: Signal,
    /// Why it is away; `None` when it is back.
    pub away: Option<&'a str>,
}

impl EndpointChanged<'_> {
    /// States the fact.
    pub fn emit(self) {
        let (destination, signal) = (self.destination, self.signal.as_str());
        match self.away {
            Some(reason) => {
                tracing::warn!(target: target::TELEMETRY, destination, signal, reason, "telemetry endpoint is away");
            }
            None => tracing::info!(target: target::TELEMETRY, destination, signal, "telemetry endpoint is back"),
        }
    }
}

/// A log sink is in trouble.
#[derive(Debug)]
pub struct SinkTrouble<'a>(pub &'a str);

impl SinkTrouble<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::error!(target: target::LOG, "{}", self.0);
    }
}

/// A thread panicked.
#[derive(Debug)]
pub struct Panicked<'a> {
    /// The thread's name.
    pub thread: &'a str,
    /// File, line and column.
    pub location: &'a str,
    /// The frames, or why they were left out.
    pub backtrace: &'a str,
    /// What the panic said.
    pub reason: &'a str,
}

impl Panicked<'_> {
    /// States the fact.
    pub fn emit(self) {
        let Self { thread, location, backtrace, reason } = self;
        tracing::error!(target: target::PANIC, thread, location, backtrace, "panicked: {reason}");
    }
}
