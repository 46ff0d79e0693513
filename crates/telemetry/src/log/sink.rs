//! A file sink's queue and its worker thread.
//!
//! Callers append to a shared buffer and never wait for the disk; the worker swaps the buffer and writes up to 64 KiB at
//! once. It knows records as bytes with a level and nothing of how they came about.
//! Enter at [`FileSink::push`] and [`Worker::run`].

use std::{
    collections::VecDeque,
    io, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::Level;

use super::{
    archive::Shelf,
    clock::Clock,
    counter::SinkCounters,
    format::{Rendered, Style},
    loss::Loss,
    rolling::{RollingFile, RollingPlan, Rotated},
};

/// The most bytes of one write.
const WRITE_BYTES: usize = 64 * 1024;
/// The most bytes that a buffer keeps for its next use.
const SPARE_BYTES: usize = 1024 * 1024;
/// A record waits no longer than this before it is written.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// The queue counts as idle, and is written, when nothing came for this long.
const IDLE_AFTER: Duration = Duration::from_millis(10);
/// How often an idle worker looks after its file.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a failed write waits before the next attempt.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// How often an operator is told of a disk that fails, whether it fails all the time or now and then.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60 * 60);

/// Bounds of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most records that wait.
    pub records: usize,
    /// The most bytes that wait.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { records: 65_536, bytes: 16 * 1024 * 1024 }
    }
}

/// What a reload changes about a sink that stays.
pub struct Change {
    /// When its file rolls; the path is the same.
    pub plan: RollingPlan,
    /// Where archives go.
    pub shelf: Shelf,
    /// Hears of rotations.
    pub rotated: Rotated,
    /// How it writes about its own losses.
    pub style: Style,
}

/// The callers' end of a file sink.
pub struct FileSink {
    queue: Mutex<Queue>,
    /// Wakes the worker.
    work: Condvar,
    /// Wakes who waits for a flush.
    flushed: Condvar,
    bounds: Bounds,
    counters: ArcSwap<SinkCounters>,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    entries: VecDeque<Entry>,
    /// How many of the entries are neither ERROR nor WARN.
    lesser: usize,
    next_sequence: u64,
    /// Records that gave way to newer ones while the disk failed.
    overtaken: Loss,
    /// Records that found the queue full.
    shed: Loss,
    /// When an operator was last told that records are being shed.
    overload_told: Option<Instant>,
    /// The disk fails: keep the newest.
    failing: bool,
    urgent: bool,
    /// Ends of flushes that were asked for and that were carried out.
    flushes_wanted: u64,
    flushes_done: u64,
    reopen: bool,
    change: Option<Change>,
    stop: bool,
    /// The worker is no more.
    ended: bool,
    /// The worker sleeps until it is woken.
    idle: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    length: usize,
    sequence: u64,
    level: Level,
    timestamp: Timestamp,
}

impl FileSink {
    /// An empty queue whose first record gets this sequence number.
    pub fn new(bounds: Bounds, first_sequence: u64, counters: Arc<SinkCounters>) -> Self {
        Self {
            queue: Mutex::new(Queue { next_sequence: first_sequence, ..Queue::default() }),
            work: Condvar::new(),
            flushed: Condvar::new(),
            bounds,
            counters: ArcSwap::new(counters),
        }
    }

    /// Puts a record into the queue, or counts it as lost. Never waits for the disk. `true`: it was lost, and that was
    /// not said lately.
    pub fn push(&self, rendered: &Rendered, level: Level, timestamp: Timestamp) -> bool {
        let mut queue = self.lock();
        // Assigned before anything is shed, so that a gap in the file is a proof of loss.
        let sequence = queue.next_sequence;
        queue.next_sequence += 1;
        if self.is_full(&queue, rendered.text.len(), level) && !self.make_room(&mut queue, rendered.text.len(), level) {
            queue.shed.add(sequence, level, timestamp);
            self.counters.load().count_dropped(level);
            // The worker has said what is wrong with a disk that fails.
            return !queue.failing && is_due(&mut queue.overload_told);
        }
        let before = queue.bytes.len();
        rendered.append_to(&mut queue.bytes, sequence);
        let length = queue.bytes.len() - before;
        queue.entries.push_back(Entry { length, sequence, level, timestamp });
        queue.lesser += usize::from(level > Level::WARN);
        queue.urgent |= level == Level::ERROR;
        if queue.idle || queue.urgent || queue.bytes.len() >= WRITE_BYTES && before < WRITE_BYTES {
            queue.idle = false;
            self.work.notify_one();
        }
        false
    }

    /// Whether there is no room for a record. The last quarter is for WARN and ERROR only.
    fn is_full(&self, queue: &Queue, length: usize, level: Level) -> bool {
        let share = |bound: usize| if level <= Level::WARN { bound } else { bound / 4 * 3 };
        queue.entries.len() >= share(self.bounds.records) || queue.bytes.len() + length > share(self.bounds.bytes)
    }

    /// While the disk fails a good quarter of the queue gives way at once: the oldest of TRACE to INFO, then the oldest.
    fn make_room(&self, queue: &mut Queue, length: usize, level: Level) -> bool {
        let quarter = queue.entries.len() / 4 + 1;
        // A record below WARN takes no warning's place, and it isn't worth a pass over the queue for a few others.
        if !queue.failing || level > Level::WARN && queue.lesser < quarter {
            return false;
        }
        let Queue { bytes, entries, lesser, overtaken, .. } = queue;
        let counters = self.counters.load();
        let mut lesser_left = quarter.min(*lesser);
        let mut others_left = quarter - lesser_left;
        *lesser -= lesser_left;
        let (mut read, mut kept) = (0, 0);
        entries.retain(|entry| {
            let left = if entry.level > Level::WARN { &mut lesser_left } else { &mut others_left };
            let keep = *left == 0;
            if keep {
                bytes.copy_within(read..read + entry.length, kept);
                kept += entry.length;
            } else {
                *left -= 1;
                overtaken.add(entry.sequence, entry.level, entry.timestamp);
                counters.count_dropped(entry.level);
            }
            read += entry.length;
            keep
        });
        bytes.truncate(kept);
        !self.is_full(queue, length, level)
    }

    /// Asks for everything that was pushed before to be on disk; the answer is what [`Self::await_flush`] takes.
    pub fn ask_flush(&self) -> u64 {
        let mut queue = self.lock();
        queue.flushes_wanted += 1;
        self.work.notify_one();
        queue.flushes_wanted
    }

    /// Waits until a flush is done, or until the deadline.
    pub fn await_flush(&self, wanted: u64, deadline: Instant) -> bool {
        let mut queue = self.lock();
        while queue.flushes_done < wanted {
            if queue.ended {
                return queue.entries.is_empty();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.flushed.wait_for(&mut queue, left);
        }
        true
    }

    /// Whether every flush that was asked for is done.
    pub fn is_flushed(&self) -> bool {
        let queue = self.lock();
        queue.flushes_done == queue.flushes_wanted
    }

    /// Asks the worker to open its file anew.
    pub fn reopen(&self) {
        self.lock().reopen = true;
        self.work.notify_one();
    }

    /// Tells the worker what is new after a reload; it keeps its file. Records count under the new name from now on.
    pub fn change(&self, change: Change, counters: Arc<SinkCounters>) {
        self.counters.store(counters);
        self.lock().change = Some(change);
        self.work.notify_one();
    }

    /// Asks the worker to write what there is and to end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.work.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Waits until there is something to do and takes it.
    fn next_job(&self, pending: &mut Pending) -> Job {
        let failing = pending.failing;
        let mut queue = self.lock();
        let until = Instant::now() + if failing { RETRY_AFTER } else { LOOK_EVERY };
        let mut first_seen = None;
        loop {
            let now = Instant::now();
            if queue.reopen || queue.change.is_some() || queue.stop || now >= until {
                break;
            }
            if failing {
                // Nothing is urgent enough to try a broken disk without a pause.
                self.work.wait_for(&mut queue, until - now);
                continue;
            }
            if queue.urgent || queue.flushes_wanted > queue.flushes_done || queue.bytes.len() >= WRITE_BYTES {
                break;
            }
            if queue.entries.is_empty() {
                queue.idle = true;
                self.work.wait_for(&mut queue, until - now);
                queue.idle = false;
                continue;
            }
            let first_seen = *first_seen.get_or_insert(now);
            let before = queue.entries.len();
            self.work.wait_for(&mut queue, IDLE_AFTER);
            if queue.entries.len() == before || first_seen.elapsed() >= FLUSH_AFTER {
                break;
            }
        }
        queue.urgent = false;
        Job {
            // While older bytes are unwritten the queue keeps the newer ones, within its bounds.
            batch: pending.is_empty().then(|| take_batch(&mut queue, pending.spare())),
            reopen: mem::take(&mut queue.reopen),
            change: queue.change.take(),
            stop: queue.stop,
            flush: queue.flushes_wanted,
        }
    }
}

/// Whether an operator is to be told again of what was last told then.
fn is_due(told: &mut Option<Instant>) -> bool {
    let due = told.is_none_or(|when| when.elapsed() > COMPLAIN_EVERY);
    if due {
        *told = Some(Instant::now());
    }
    due
}

/// Takes what waits, and leaves a spare buffer behind.
fn take_batch(queue: &mut Queue, spare: Vec<u8>) -> Batch {
    let after = queue.next_sequence;
    // Numbered here, between what is taken and what comes next, so that numbers rise in the file.
    queue.next_sequence += u64::from(!queue.shed.is_empty());
    queue.lesser = 0;
    Batch {
        after,
        bytes: mem::replace(&mut queue.bytes, spare),
        entries: mem::take(&mut queue.entries),
        overtaken: mem::take(&mut queue.overtaken),
        shed: mem::take(&mut queue.shed),
    }
}

struct Job {
    batch: Option<Batch>,
    reopen: bool,
    change: Option<Change>,
    stop: bool,
    flush: u64,
}

struct Batch {
    bytes: Vec<u8>,
    entries: VecDeque<Entry>,
    overtaken: Loss,
    shed: Loss,
    /// The number of the record about `shed`.
    after: u64,
}

impl Batch {
    /// Puts a record where its number belongs.
    fn insert(&mut self, rendered: &Rendered, sequence: u64, timestamp: Timestamp) {
        let position = self.entries.partition_point(|entry| entry.sequence < sequence);
        let start: usize = self.entries.range(..position).map(|entry| entry.length).sum();
        let mut bytes = Vec::new();
        rendered.append_to(&mut bytes, sequence);
        self.entries.insert(position, Entry { length: bytes.len(), sequence, level: Level::WARN, timestamp });
        self.bytes.splice(start..start, bytes);
    }
}

/// The worker's end of a file sink.
pub struct Worker {
    /// The callers' end.
    pub sink: Arc<FileSink>,
    /// Where it writes.
    pub file: RollingFile,
    /// How it writes about its own losses.
    pub style: Style,
    /// The time.
    pub clock: Clock,
    /// Says something once where an operator sees it when the sink itself can't.
    pub complain: Box<dyn Fn(&str) + Send>,
}

impl Worker {
    /// Writes until it is told to stop, or, while the disk fails, until it was told to.
    pub fn run(mut self) {
        let mut pending = Pending::default();
        loop {
            let job = self.sink.next_job(&mut pending);
            if let Some(Change { plan, shelf, rotated, style }) = job.change {
                self.file.change(plan, shelf, rotated);
                self.style = style;
            }
            if job.reopen
                && let Err(error) = self.file.reopen()
            {
                self.fail(&mut pending, &error);
            }
            if let Some(batch) = job.batch {
                self.accept(&mut pending, batch);
            }
            let mut result = self.write(&mut pending);
            if result.is_ok() && pending.recovered() {
                // What waited while the disk failed is part of what a flush waits for.
                let batch = take_batch(&mut self.recover(), Vec::new());
                self.accept(&mut pending, batch);
                result = self.write(&mut pending);
            }
            match result {
                Ok(()) => self.finish_flush(&mut pending, job.flush),
                Err(error) => self.fail(&mut pending, &error),
            }
            if job.stop {
                self.give_up(&pending);
                return;
            }
        }
    }

    /// Counts what could not be written, says so, and notes its numbers so that they will be missed.
    fn give_up(&self, pending: &Pending) {
        let mut queue = self.sink.lock();
        queue.ended = true;
        self.sink.flushed.notify_all();
        let next = queue.next_sequence;
        let lost: Vec<Level> = pending.entries.iter().chain(&queue.entries).map(|entry| entry.level).collect();
        drop(queue);
        lost.iter().for_each(|level| self.sink.counters.load().count_dropped(*level));
        self.note(next);
        if !lost.is_empty() {
            let (path, lost) = (self.file.path().display(), lost.len());
            (self.complain)(&format!("log file {path} could not be written to the end: {lost} records are lost"));
        }
    }

    fn recover(&self) -> MutexGuard<'_, Queue> {
        let mut queue = self.sink.lock();
        queue.failing = false;
        queue
    }

    /// Lines up a batch, with the records about losses among the others.
    fn accept(&self, pending: &mut Pending, mut batch: Batch) {
        let timestamp = self.clock.now();
        // What gave way had numbers among those that are left. The record about it takes the first, which nobody else has.
        let overtaken = (batch.overtaken, batch.overtaken.first_sequence().unwrap_or_default());
        for (loss, sequence) in [overtaken, (batch.shed, batch.after)] {
            if let Some(rendered) = loss.render(&self.style, timestamp) {
                batch.insert(&rendered, sequence, timestamp);
            }
        }
        if pending.is_empty() {
            // The common case: no copy.
            pending.bytes = batch.bytes;
            pending.entries = batch.entries;
            pending.offset = 0;
        } else {
            pending.bytes.extend_from_slice(&batch.bytes);
            pending.entries.extend(batch.entries);
        }
    }

    /// Writes everything that is pending, in pieces of whole records.
    fn write(&mut self, pending: &mut Pending) -> io::Result<()> {
        self.file.look_after()?;
        if pending.is_empty() && pending.generation != self.file.generation() {
            pending.generation = self.file.generation();
            let next = self.sink.lock().next_sequence;
            self.note(next);
        }
        while let Some(next) = pending.entries.front().copied() {
            // A record that was begun belongs into the file in which it was begun.
            if pending.begun > 0 && self.file.generation() != pending.generation {
                pending.begun = 0;
            }
            if pending.begun == 0 {
                self.file.make_room_for(next.length as u64)?;
            }
            if pending.generation != self.file.generation() {
                pending.generation = self.file.generation();
                self.note(next.sequence);
            }
            let length = pending.piece(self.file.room());
            let start = pending.offset + pending.begun;
            let written = self.file.write(&pending.bytes[start..pending.offset + length])?;
            pending.advance(written, &self.sink.counters.load());
        }
        pending.clear();
        Ok(())
    }

    /// Notes the number with which a file begins, or how far the numbers are while nothing can be written. Best effort: it
    /// is only needed when the old files are taken away, or when the disk fails until the end.
    fn note(&self, next_sequence: u64) {
        if self.file.note_sequence(next_sequence).is_err() {
            self.sink.counters.load().count_io_error();
        }
    }

    fn finish_flush(&mut self, pending: &mut Pending, flush: u64) {
        if self.sink.lock().flushes_done < flush {
            if let Err(error) = self.file.sync() {
                self.fail(pending, &error);
                return;
            }
            self.sink.lock().flushes_done = flush;
            self.sink.flushed.notify_all();
        }
    }

    fn fail(&self, pending: &mut Pending, error: &io::Error) {
        self.sink.counters.load().count_io_error();
        pending.failing = true;
        if is_due(&mut pending.complained) {
            (self.complain)(&format!(
                "cannot write log file {}: {error}; keeping the newest records in memory",
                self.file.path().display()
            ));
        }
        let mut queue = self.sink.lock();
        queue.failing = true;
        let next = queue.next_sequence;
        drop(queue);
        self.note(next);
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.file.give_up_oldest_archive();
        }
    }
}

/// What the worker took from the queue and has not written yet.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    entries: VecDeque<Entry>,
    /// Where the first entry starts in `bytes`.
    offset: usize,
    /// How much of the first entry is written.
    begun: usize,
    /// The file in which it was begun, or that was written last.
    generation: u64,
    failing: bool,
    /// When an operator was last told.
    complained: Option<Instant>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The buffer of what is written, for the queue to fill; not one that an outage made large.
    fn spare(&mut self) -> Vec<u8> {
        let mut spare = mem::take(&mut self.bytes);
        spare.clear();
        spare.shrink_to(SPARE_BYTES);
        spare
    }

    /// Whether the disk failed before and does no longer; true once.
    fn recovered(&mut self) -> bool {
        mem::take(&mut self.failing)
    }

    /// The length of the next piece from `offset`: whole records, up to 64 KiB and the room in the file, at least one.
    fn piece(&self, room: u64) -> usize {
        let limit = room.min(WRITE_BYTES as u64);
        let mut length = 0;
        for entry in &self.entries {
            if length > 0 && (length + entry.length) as u64 > limit {
                break;
            }
            length += entry.length;
        }
        length
    }

    fn advance(&mut self, written: usize, counters: &SinkCounters) {
        self.begun += written;
        while let Some(entry) = self.entries.front().copied().filter(|entry| entry.length <= self.begun) {
            counters.count_written(entry.level);
            self.begun -= entry.length;
            self.offset += entry.length;
            self.entries.pop_front();
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.offset = 0;
        self.begun = 0;
    }
}

#[cfg(test)]
mod tests;
