//! Log records on their way out by OTLP. The log room decides which records come here, and redacts them.
//!
//! They are encoded from what is at hand. The SDK's logger would copy each into a record of its own first, and that for
//! each destination.

use std::sync::Arc;

use opentelemetry::Context;

use crate::otlp::{self, Any, Item, LogItem, Queue};

/// Sends log records to every destination that wants them. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct OtlpLogs {
    queues: Arc<[Queue<Item>]>,
}

impl OtlpLogs {
    pub(super) fn new(queues: Vec<Queue<Item>>) -> Option<Self> {
        (!queues.is_empty()).then(|| Self { queues: queues.into() })
    }

    /// Queues a record. What the export thread says itself is left out.
    pub(crate) fn emit<'a>(&self, record: &LogItem<'_>, attributes: impl Iterator<Item = (&'static str, Any<'a>)>) {
        if Context::is_current_telemetry_suppressed() {
            return;
        }
        let item = otlp::log_record(record, attributes);
        self.queues.iter().for_each(|queue| queue.push(item.clone()));
    }
}
