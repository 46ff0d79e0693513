//! What telemetry itself lost or kept. Sinks and exporters count for themselves, on paths that must not log; these events
//! carry their totals since the start of the process, are stated by pollers of [`crate::telemetry::metric::Metrics`], and
//! therefore write no log line. The recorder's cap is one that deserves a line.

use crate::{
    config::{Level, Signal},
    telemetry::metric::{
        Labels, advance,
        name::{Counter, Gauge, Label},
        set, signal_label,
    },
};

/// Totals of a log sink.
#[derive(Debug)]
pub struct LogSinkTotals<'a> {
    /// The `[[log.sinks]]` name.
    pub sink: &'a str,
    /// Records written, by level.
    pub written: &'a [(Level, u64)],
    /// Records lost, by level.
    pub dropped: &'a [(Level, u64)],
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
                if let Some(level) = level_label(*level) {
                    advance(counter, sink.clone().with(Label::Level, level), *total);
                }
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
        let labels = Labels::none()
            .with(Label::Signal, signal_label(self.signal))
            .with_text(Label::Destination, self.destination);
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
            target: "mlx_manager::telemetry",
            metric = self.metric, series = self.series,
            "a metric keeps no new series; mlx_manager_metric_series_dropped_total counts what it misses"
        );
    }
}

/// No record has the level `off`.
fn level_label(level: Level) -> Option<&'static str> {
    match level {
        Level::Off => None,
        Level::Error => Some("error"),
        Level::Warn => Some("warn"),
        Level::Info => Some("info"),
        Level::Debug => Some("debug"),
        Level::Trace => Some("trace"),
    }
}
