//! What became of the records of one sink: numbers that the metrics read.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;

/// The levels in the order of their counters.
pub const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// Counters of one sink, all since the start.
#[derive(Debug, Default)]
pub struct SinkCounters {
    written: [AtomicU64; 5],
    dropped: [AtomicU64; 5],
    io_errors: AtomicU64,
}

impl SinkCounters {
    /// Records of a level that the file took, or that were handed to the console's writer.
    pub fn written(&self, level: Level) -> u64 {
        self.written[index(level)].load(Ordering::Relaxed)
    }

    /// Records of a level that were lost.
    pub fn dropped(&self, level: Level) -> u64 {
        self.dropped[index(level)].load(Ordering::Relaxed)
    }

    /// Failed writes, rotations and clean-ups; a write that is tried again counts again.
    pub fn io_errors(&self) -> u64 {
        self.io_errors.load(Ordering::Relaxed)
    }

    pub(super) fn count_written(&self, level: Level) {
        self.written[index(level)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_dropped(&self, level: Level) {
        self.dropped[index(level)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_io_error(&self) {
        self.io_errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where a level's counter is in [`LEVELS`].
pub(super) fn index(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}
