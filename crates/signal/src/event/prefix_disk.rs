//! What becomes of the prefix cache on disk.

use std::{error::Error, path::Path, time::Duration};

use super::milliseconds;
use crate::{
    metric::{
        Labels, add,
        name::{Counter, Gauge, Label},
        set,
    },
    target,
};

/// The file can't be made, written or read: there is no prefix cache on disk any more.
#[derive(Debug)]
pub struct PrefixDiskFailed<'a> {
    /// Where the file was to be.
    pub folder: &'a Path,
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl PrefixDiskFailed<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_ENGINE_DISK,
            folder = %self.folder.display(), error = self.error, "the prefix cache goes on without a disk"
        );
    }
}

/// What is on disk.
#[derive(Debug)]
pub struct PrefixDiskHeld(
    /// Bytes.
    pub u64,
);

impl PrefixDiskHeld {
    /// States the fact.
    pub fn emit(self) {
        set(Gauge::PrefixDiskBytes, Labels::none(), self.0 as f64);
    }
}

/// The keys and values of some tokens were written.
#[derive(Debug)]
pub struct PrefixWritten<'a> {
    /// The model.
    pub model: &'a str,
    /// How much.
    pub bytes: u64,
    /// How long that took.
    pub duration: Duration,
}

impl PrefixWritten<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_ENGINE_DISK,
            model = self.model, bytes = self.bytes, duration_ms = milliseconds(self.duration), "prefix written to disk"
        );
        add(Counter::PrefixDiskWrites, Labels::none().with_text(Label::Model, self.model), 1);
    }
}

/// The keys and values of some tokens are dropped, because the disk has not written those before them yet.
#[derive(Debug)]
pub struct PrefixNotWritten<'a> {
    /// The model.
    pub model: &'a str,
    /// How much.
    pub bytes: u64,
}

impl PrefixNotWritten<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_ENGINE_DISK,
            model = self.model, bytes = self.bytes, "prefix dropped: the disk is behind"
        );
    }
}

/// The keys and values of some tokens were read.
#[derive(Debug)]
pub struct PrefixRead<'a> {
    /// The model.
    pub model: &'a str,
    /// How much.
    pub bytes: u64,
    /// How long that took.
    pub duration: Duration,
}

impl PrefixRead<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::SERVER_ENGINE_DISK,
            model = self.model, bytes = self.bytes, duration_ms = milliseconds(self.duration), "prefix read from disk"
        );
        add(Counter::PrefixDiskReads, Labels::none().with_text(Label::Model, self.model), 1);
    }
}

/// The disk is so slow that a prompt is computed instead.
#[derive(Debug)]
pub struct PrefixDiskLate<'a> {
    /// The model.
    pub model: &'a str,
    /// How long was waited.
    pub waited: Duration,
}

impl PrefixDiskLate<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::SERVER_ENGINE_DISK,
            model = self.model, waited_ms = milliseconds(self.waited), "the disk is slow: a prompt is computed instead"
        );
    }
}
