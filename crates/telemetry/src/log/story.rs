//! What a request said at DEBUG, in memory until it is known whether the request fails.
//!
//! Knows nothing of spans and sinks: a span holds the story of its request, and [`Story::tell`] hands it to whoever
//! writes it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tracing::Metadata;

use super::record::{Fields, LogRecord, TraceIds, Value};

/// The field that marks a record as part of a told story.
pub const MARK: &str = "failure_story";

/// The most records of one story; the oldest give way.
pub const STORY_RECORDS: usize = 256;
/// The most bytes of one story.
pub const STORY_BYTES: usize = 128 * 1024;
/// The most bytes of all stories.
const ALL_BYTES: usize = 32 * 1024 * 1024;

/// The memory that all stories share.
#[derive(Debug)]
pub struct Memory {
    left: AtomicUsize,
}

impl Default for Memory {
    fn default() -> Self {
        Self { left: AtomicUsize::new(ALL_BYTES) }
    }
}

impl Memory {
    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A record that outlives its event.
#[derive(Debug)]
pub struct KeptRecord {
    metadata: &'static Metadata<'static>,
    timestamp: Timestamp,
    message: String,
    fields: Fields,
    context: Fields,
    request_id: Option<String>,
    trace: Option<TraceIds>,
    spans: Vec<&'static str>,
    /// Targets of the enclosing spans, if these have a say in who takes it.
    pub span_targets: Vec<&'static str>,
}

impl KeptRecord {
    /// Copies the record of a callsite, and marks it.
    pub fn of(record: &LogRecord<'_>, metadata: &'static Metadata<'static>, span_targets: Vec<&'static str>) -> Self {
        let mut fields = record.fields.clone();
        fields.set(MARK, Value::Bool(true));
        Self {
            metadata,
            timestamp: record.timestamp,
            message: record.message.to_owned(),
            fields,
            context: record.context.clone(),
            request_id: record.request_id.map(str::to_owned),
            trace: record.trace,
            spans: record.spans.to_vec(),
            span_targets,
        }
    }

    /// The record as sinks see it.
    pub fn record(&self) -> LogRecord<'_> {
        LogRecord {
            timestamp: self.timestamp,
            level: *self.metadata.level(),
            target: self.metadata.target(),
            line: self.metadata.line(),
            message: &self.message,
            fields: &self.fields,
            context: &self.context,
            request_id: self.request_id.as_deref(),
            trace: self.trace,
            spans: &self.spans,
        }
    }

    /// Bytes of memory that it takes, near enough to bound many of them.
    fn bytes(&self) -> usize {
        let text = |value: Value<'_>| match value {
            Value::Text(text) => text.len(),
            Value::Error(chain) => chain.iter().map(|cause| size_of::<String>() + cause.len()).sum(),
            _ => 0,
        };
        let fields = self.fields.iter().chain(self.context.iter());
        let fields: usize = fields.map(|(key, value)| size_of_val(&(key, value)) + text(value)).sum();
        size_of::<Self>() + self.message.len() + fields
    }
}

/// The last records of one request, shared by all of its spans.
#[derive(Debug)]
pub struct Story {
    memory: Arc<Memory>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<(KeptRecord, usize)>,
    bytes: usize,
    /// Older records that gave way, and any that were too large.
    omitted: u64,
    /// The request failed: what it still says is written at once.
    told: bool,
}

impl Story {
    /// An empty one.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, state: Mutex::default() }
    }

    /// Keeps a record, or writes it if the story is told already.
    pub fn add(&self, record: KeptRecord, write: impl FnOnce(&KeptRecord)) {
        let mut state = self.state.lock();
        if state.told {
            write(&record);
            return;
        }
        let bytes = record.bytes();
        if bytes > STORY_BYTES {
            state.omitted += 1;
            return;
        }
        while state.records.len() >= STORY_RECORDS || state.bytes + bytes > STORY_BYTES {
            self.forget_oldest(&mut state);
        }
        // The last records explain a failure best, so the story's own older ones make room when memory is short.
        while !self.memory.take(bytes) {
            if state.records.is_empty() {
                state.omitted += 1;
                return;
            }
            self.forget_oldest(&mut state);
        }
        state.bytes += bytes;
        state.records.push_back((record, bytes));
    }

    /// Writes what there is, in the order of its timestamps, and from now on whatever follows. Returns how many records
    /// are missing; the second time there is nothing to tell.
    pub fn tell(&self, write: impl FnMut(&KeptRecord)) -> u64 {
        let mut state = self.state.lock();
        state.told = true;
        self.memory.give_back(std::mem::take(&mut state.bytes));
        let mut records: Vec<_> = state.records.drain(..).map(|(record, _)| record).collect();
        // Two threads may have come in another order than their records were made.
        records.sort_by_key(|record| record.timestamp);
        records.iter().for_each(write);
        std::mem::take(&mut state.omitted)
    }

    fn forget_oldest(&self, state: &mut State) {
        if let Some((_, bytes)) = state.records.pop_front() {
            state.bytes -= bytes;
            state.omitted += 1;
            self.memory.give_back(bytes);
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.memory.give_back(self.state.get_mut().bytes);
    }
}

#[cfg(test)]
mod tests;
