//! What became of telemetry on its way out, per signal and destination. Polled by the metrics, never pushed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use mlx_manager_config::Signal;

use super::{cause::Cause, report::Report};

/// Counts the items (spans, log records, metric batches) of one signal for one destination.
#[derive(Debug)]
pub struct Counter {
    destination: Arc<str>,
    signal: Signal,
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    pub(super) report: Report,
}

impl Counter {
    pub(super) fn new(destination: Arc<str>, signal: Signal) -> Self {
        let zero = || AtomicU64::new(0);
        let report = Report::new(Arc::clone(&destination), signal);
        Self { destination, signal, exported: zero(), dropped: zero(), failed: zero(), report }
    }

    pub(super) fn count_exported(&self, items: u64) {
        self.exported.fetch_add(items, Ordering::Relaxed);
    }

    /// Counts items that will never arrive, and sees to it that the log mentions them.
    pub(super) fn lose(&self, cause: Cause, items: u64, reason: &str) {
        if items > 0 {
            let lost = if cause.is_failure() { &self.failed } else { &self.dropped };
            lost.fetch_add(items, Ordering::Relaxed);
            self.report.trouble(cause, items, reason);
        }
    }

    /// The counts so far. `exported` counts only what the remote end took.
    pub fn read(&self) -> CounterReading {
        CounterReading {
            destination: Arc::clone(&self.destination),
            signal: self.signal,
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// One reading of a [`Counter`]; every number only grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterReading {
    /// The `[[otlp]]` name.
    pub destination: Arc<str>,
    /// What was sent.
    pub signal: Signal,
    /// Items the remote end took.
    pub exported: u64,
    /// Items lost on our side.
    pub dropped: u64,
    /// Items the remote end refused, or for which we gave up.
    pub failed: u64,
}

/// Bytes waiting on disk for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolReading {
    /// The `[[otlp]]` name.
    pub destination: Arc<str>,
    /// Bytes in its spool.
    pub bytes: u64,
}

/// All counters, cheap to clone and to read. Every series exists from the start.
#[derive(Debug, Clone, Default)]
pub struct TelemetryCounters {
    pub(super) counters: Vec<Arc<Counter>>,
    pub(super) spools: Vec<(Arc<str>, Arc<AtomicU64>)>,
}

impl TelemetryCounters {
    /// What became of each signal at each destination.
    pub fn read(&self) -> impl Iterator<Item = CounterReading> {
        self.counters.iter().map(|counter| counter.read())
    }

    /// Says in the log what was lost lately; with `all` what it would rather say later, too.
    pub(super) fn report(&self, all: bool) {
        self.counters.iter().for_each(|counter| counter.report.say(Instant::now(), all));
    }

    /// How much waits on disk.
    pub fn spools(&self) -> impl Iterator<Item = SpoolReading> {
        self.spools.iter().map(|(destination, bytes)| SpoolReading {
            destination: Arc::clone(destination),
            bytes: bytes.load(Ordering::Relaxed),
        })
    }
}
