//! Brings together what the three signals count and say for each other: sinks and exporters count for themselves and are
//! polled here into metrics; log records go out by OTLP.

use std::time::SystemTime;

use mlx_manager_signal::{
    event::{ExportTotals, LogSinkTotals, SpoolSize},
    redact,
};
use tracing::Level;

use super::{
    log::{LEVELS, LogHandle, LogRecord, RecordObserver, Value},
    otlp::{Any, LogItem, TelemetryCounters},
    trace::OtlpLogs,
};

/// States the totals of every log sink.
pub(super) fn sinks(log: &LogHandle) -> impl Fn() + Send + Sync + 'static {
    let log = log.clone();
    move || {
        // Asked every time, because a reload may bring new ones.
        for (sink, counters) in &log.counters() {
            let totals = |read: &dyn Fn(Level) -> u64| LEVELS.map(|level| (level, read(level)));
            LogSinkTotals {
                sink,
                written: &totals(&|level| counters.written(level)),
                dropped: &totals(&|level| counters.dropped(level)),
                io_errors: counters.io_errors(),
            }
            .emit();
        }
    }
}

/// States the totals of every exporter, and what their spools take.
pub(super) fn exporters(counters: TelemetryCounters) -> impl Fn() + Send + Sync + 'static {
    move || {
        for reading in counters.read() {
            ExportTotals {
                destination: &reading.destination,
                signal: reading.signal,
                exported: reading.exported,
                dropped: reading.dropped,
                failed: reading.failed,
            }
            .emit();
        }
        for spool in counters.spools() {
            SpoolSize { destination: &spool.destination, bytes: spool.bytes }.emit();
        }
    }
}

/// Sends log records by OTLP, redacted.
pub(super) struct Exported(pub(super) OtlpLogs);

impl RecordObserver for Exported {
    fn observe(&self, record: &LogRecord<'_>) {
        let own = record.fields.iter();
        let context = record.context.iter();
        let request_id = record.request_id.map(|id| ("request_id", Any::Text(id.into())));
        let attributes = own.chain(context).map(|(key, value)| (key, exported(value))).chain(request_id);
        let item = LogItem {
            timestamp: SystemTime::from(record.timestamp),
            level: record.level,
            target: record.target,
            body: &redact::text(record.message),
            trace: record.trace.map(|ids| (ids.trace_id, ids.span_id)),
        };
        self.0.emit(&item, attributes);
    }
}

fn exported(value: Value<'_>) -> Any<'_> {
    match value {
        Value::Text(text) => Any::Text(redact::text(text)),
        Value::Signed(number) => Any::Int(number),
        // OTLP has no unsigned numbers; one beyond its range stays readable as text.
        Value::Unsigned(number) => {
            i64::try_from(number).map_or_else(|_| Any::Text(number.to_string().into()), Any::Int)
        }
        Value::Float(number) => Any::Float(number),
        Value::Bool(truth) => Any::Bool(truth),
        Value::Error(chain) => Any::Text(redact::text(&chain.join(": ")).into_owned().into()),
    }
}
