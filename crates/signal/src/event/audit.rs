//! What happens to audit rows.

use std::{error::Error, time::Duration};

use super::milliseconds;
use crate::{
    metric::{
        Labels, add,
        name::{Counter, Gauge, Histogram, Label},
        observe, set,
    },
    target,
};

/// A batch of rows was written.
#[derive(Debug)]
pub struct AuditRowsWritten {
    /// How many.
    pub rows: u64,
    /// Time of the statement.
    pub duration: Duration,
}

impl AuditRowsWritten {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(
            target: target::STORE,
            rows = self.rows, duration_ms = milliseconds(self.duration), "audit rows written"
        );
        add(Counter::AuditRowsWritten, Labels::none(), self.rows);
    }
}

/// A statement ended, well or not.
#[derive(Debug)]
pub struct StatementFinished {
    /// `db.system.name`
    pub system: &'static str,
    /// The statement's first word.
    pub operation: &'static str,
    /// The table.
    pub table: &'static str,
    /// Whether the database refused it or could not be reached.
    pub failed: bool,
    /// How long it took.
    pub duration: Duration,
}

impl StatementFinished {
    /// States the fact. What it meant for the rows has an event, and a log line, of its own.
    pub fn emit(self) {
        let labels = Labels::none()
            .with(Label::DbSystem, self.system)
            .with(Label::DbOperation, self.operation)
            .with(Label::DbCollection, self.table)
            .with_optional(Label::ErrorType, self.failed.then_some("_OTHER"));
        observe(Histogram::DbClientOperationDuration, labels, self.duration.as_secs_f64());
    }
}

/// Rows were lost; so many since this was last said.
#[derive(Debug)]
pub struct AuditRowsDropped {
    /// How many.
    pub rows: u64,
    /// `queue_full` or `write_failed`.
    pub reason: &'static str,
}

impl AuditRowsDropped {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(target: target::STORE, rows = self.rows, reason = self.reason, "audit rows dropped");
        add(Counter::AuditRowsDropped, Labels::none().with(Label::Reason, self.reason), self.rows);
    }
}

/// A write failed and will be tried again.
#[derive(Debug)]
pub struct AuditWriteError<'a> {
    /// What went wrong.
    pub error: &'a (dyn Error + 'static),
    /// Whether the write before it failed too.
    pub again: bool,
}

impl AuditWriteError<'_> {
    /// States the fact.
    pub fn emit(self) {
        if self.again {
            tracing::debug!(target: target::STORE, error = self.error, "audit write failed again");
        } else {
            tracing::error!(target: target::STORE, error = self.error, "audit write failed");
        }
        add(Counter::AuditWriteErrors, Labels::none(), 1);
    }
}

/// Rows waiting to be written, those of the statement under way among them.
#[derive(Debug)]
pub struct AuditQueueDepth(pub usize);

impl AuditQueueDepth {
    /// States the fact.
    pub fn emit(self) {
        tracing::trace!(target: target::STORE, rows = self.0, "audit queue");
        set(Gauge::AuditQueueDepth, Labels::none(), self.0 as f64);
    }
}

/// Rows past their retention are gone.
#[derive(Debug)]
pub struct AuditRowsDeleted {
    /// How many.
    pub rows: u64,
}

impl AuditRowsDeleted {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(target: target::STORE_WRITER, rows = self.rows, "old audit rows deleted");
    }
}
