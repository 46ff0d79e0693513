//! A bounded queue of telemetry items and the task that exports them in batches.
//!
//! The SDK's own batch processors drop silently when their queue is full, run each on a thread of its own, and have one
//! resource each; ours counts what it drops and lives on the one export runtime.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mlx_manager_llm::BoxFuture;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    time::Instant,
};

use super::{cause::Cause, counters::Counter};

/// Items waiting at most. At 2 kB per span that is 32 MB when the endpoint is away, and 16 s of 1,000 spans per second.
pub(super) const QUEUE_ITEMS: usize = 16_384;
/// Bytes waiting at most, those under way included: spans with prompts and answers may be large.
pub(super) const QUEUE_BYTES: u64 = 64 * 1024 * 1024;
/// Items per request.
const BATCH_ITEMS: usize = 512;
/// Bytes per request, unless a single item has more. Logfire takes 100 MB, a collector 20 MiB as a rule.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// The longest an item waits for company.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// Sends one batch somewhere, and counts what becomes of it.
pub(super) type Export<T> = Box<dyn Fn(Vec<T>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Answered when everything queued before it was handed over.
pub(super) type FlushRequest = std::sync::mpsc::Sender<()>;

/// What was queued and is not yet delivered, spooled, refused or given up.
#[derive(Debug)]
pub(super) struct Load {
    items: AtomicU64,
    bytes: AtomicU64,
    counter: Arc<Counter>,
}

impl Load {
    /// Whether there is room for so many bytes; if so, they are taken.
    fn admit(&self, bytes: u64) -> bool {
        self.items.fetch_add(1, Ordering::Relaxed);
        let admitted = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES;
        if !admitted {
            self.release(1, bytes);
        }
        admitted
    }

    fn release(&self, items: u64, bytes: u64) {
        self.items.fetch_sub(items, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts what is still here as dropped, when nobody is left to send it. Returns how many items that are.
    pub(super) fn abandon(&self) -> u64 {
        let items = self.items.swap(0, Ordering::Relaxed);
        self.counter.lose(Cause::Exit, items, "");
        items
    }
}

/// The way into a batch task; cheap to clone, never blocks.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    items: mpsc::Sender<(T, u64)>,
    /// Told when a batch is full. Until then its task sleeps: to wake another thread costs more than to make a span.
    full: Arc<Notify>,
    load: Arc<Load>,
    weigh: fn(&T) -> u64,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            items: self.items.clone(),
            full: Arc::clone(&self.full),
            load: Arc::clone(&self.load),
            weigh: self.weigh,
        }
    }
}

impl<T> Queue<T> {
    /// Queues an item, or counts it as dropped.
    pub(crate) fn push(&self, item: T) {
        let bytes = (self.weigh)(&item);
        if !self.load.admit(bytes) {
            self.count_dropped(1);
        } else if self.items.try_send((item, bytes)).is_err() {
            self.load.release(1, bytes);
            self.count_dropped(1);
        } else if self.items.max_capacity() - self.items.capacity() >= BATCH_ITEMS {
            self.full.notify_one();
        }
    }

    /// Counts items that were lost before they came here, for want of room too.
    pub(crate) fn count_dropped(&self, items: u64) {
        self.load.counter.lose(Cause::QueueFull, items, "");
    }
}

/// Starts a batch task on the export runtime. `weigh` says about how many bytes an item takes.
pub(super) fn spawn<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    capacity: usize,
    counter: Arc<Counter>,
    weigh: fn(&T) -> u64,
    export: Export<T>,
) -> (Queue<T>, Arc<Load>, UnboundedSender<FlushRequest>) {
    let (items, receiver) = mpsc::channel(capacity);
    let (flush, flushes) = mpsc::unbounded_channel();
    let full = Arc::new(Notify::new());
    let load = Arc::new(Load { items: AtomicU64::new(0), bytes: AtomicU64::new(0), counter });
    runtime.spawn(run(receiver, Arc::clone(&full), flushes, Batches { load: Arc::clone(&load), export }));
    (Queue { items, full, load: Arc::clone(&load), weigh }, load, flush)
}

struct Batches<T> {
    load: Arc<Load>,
    export: Export<T>,
}

impl<T> Batches<T> {
    /// Exports all items, in as many requests as their bytes need.
    async fn export(&self, items: &mut Vec<(T, u64)>) {
        let mut batch = Vec::with_capacity(items.len());
        let mut bytes = 0;
        for (item, weight) in items.drain(..) {
            if bytes + weight > BATCH_BYTES && !batch.is_empty() {
                self.send(std::mem::take(&mut batch), std::mem::take(&mut bytes)).await;
            }
            batch.push(item);
            bytes += weight;
        }
        if !batch.is_empty() {
            self.send(batch, bytes).await;
        }
    }

    async fn send(&self, batch: Vec<T>, bytes: u64) {
        let items = batch.len() as u64;
        (self.export)(batch).await;
        self.load.release(items, bytes);
    }
}

async fn run<T: Send>(
    mut items: mpsc::Receiver<(T, u64)>,
    full: Arc<Notify>,
    mut flushes: UnboundedReceiver<FlushRequest>,
    batches: Batches<T>,
) {
    let mut batch = Vec::with_capacity(BATCH_ITEMS);
    let mut due = Instant::now();
    loop {
        let begun = !batch.is_empty();
        tokio::select! {
            biased;
            Some(done) = flushes.recv() => {
                // What comes in from here on was not promised, so a steady stream can't keep the flush from ending.
                for _ in 0..items.len() {
                    let Ok(item) = items.try_recv() else { break };
                    batch.push(item);
                    if batch.len() == BATCH_ITEMS {
                        batches.export(&mut batch).await;
                    }
                }
                batches.export(&mut batch).await;
                // The one who asked may have run out of patience, which is no failure.
                done.send(()).unwrap_or_default();
            }
            received = items.recv_many(&mut batch, BATCH_ITEMS), if !begun => {
                if received == 0 {
                    // A flush that was accepted is answered, however close to the end it came.
                    flushes.close();
                    while let Some(done) = flushes.recv().await {
                        done.send(()).unwrap_or_default();
                    }
                    return;
                }
                due = Instant::now() + BATCH_DELAY;
                if batch.len() == BATCH_ITEMS {
                    batches.export(&mut batch).await;
                }
            }
            () = wait(due, &full), if begun => {
                while batch.len() < BATCH_ITEMS
                    && let Ok(item) = items.try_recv()
                {
                    batch.push(item);
                }
                // One that is not full was announced by an item of the batch before.
                if batch.len() == BATCH_ITEMS || Instant::now() >= due {
                    batches.export(&mut batch).await;
                }
            }
        }
    }
}

/// Until a batch is due or full.
async fn wait(due: Instant, full: &Notify) {
    tokio::select! {
        () = tokio::time::sleep_until(due) => {}
        () = full.notified() => {}
    }
}

#[cfg(test)]
mod tests {
    use mlx_manager_config::Signal;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_flush_that_comes_while_the_last_batch_goes_out_is_answered() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (done, answer) = std::sync::mpsc::channel();
        let way_in = Arc::new(Mutex::new(None::<UnboundedSender<FlushRequest>>));
        let (asker, asked) = (Arc::clone(&way_in), Mutex::new(Some(done)));
        let export = move |_: Vec<u8>| -> BoxFuture<'static, ()> {
            let flush = asker.lock().take().unwrap();
            flush.send(asked.lock().take().unwrap()).unwrap();
            Box::pin(std::future::ready(()))
        };
        let counter = Arc::new(Counter::new("collector".into(), Signal::Traces));
        let (queue, _, flush) = spawn(runtime.handle(), 1, counter, |_| 1, Box::new(export));
        *way_in.lock() = Some(flush);
        queue.push(1);
        drop(queue);
        let answered = runtime.spawn_blocking(move || answer.recv_timeout(Duration::from_secs(20)));
        assert_eq!(runtime.block_on(answered).unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_goes_out_as_soon_as_it_is_full_and_no_later_than_it_is_due() {
        let (sent, mut batches) = mpsc::unbounded_channel();
        let export = move |items: Vec<usize>| -> BoxFuture<'static, ()> {
            sent.send((items.len(), Instant::now())).unwrap();
            Box::pin(std::future::ready(()))
        };
        let counter = Arc::new(Counter::new("collector".into(), Signal::Traces));
        let (queue, _load, _flush) =
            spawn(&tokio::runtime::Handle::current(), QUEUE_ITEMS, counter, |_| 1, Box::new(export));
        let started = Instant::now();
        queue.push(0);
        // The task begins a batch with it and sleeps.
        tokio::task::yield_now().await;
        (0..BATCH_ITEMS).for_each(|item| queue.push(item));
        assert_eq!(batches.recv().await, Some((BATCH_ITEMS, started)));
        let (items, at) = batches.recv().await.unwrap();
        assert_eq!(items, 1);
        assert!(at - started >= BATCH_DELAY);
    }

    #[test]
    fn what_waits_is_bounded_by_bytes_and_large_items_go_in_requests_of_their_own() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let counter = Arc::new(Counter::new("collector".into(), Signal::Traces));
        let batches = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&batches);
        let export = move |batch: Vec<u64>| -> BoxFuture<'static, ()> {
            seen.lock().push(batch);
            Box::pin(std::future::ready(()))
        };
        let weigh = |item: &u64| *item;
        let (queue, load, flush) = spawn(runtime.handle(), 100, Arc::clone(&counter), weigh, Box::new(export));
        // The runtime doesn't run yet, so all of these wait.
        let (large, small) = (QUEUE_BYTES / 2, BATCH_BYTES / 2);
        for item in [large, small, small, 1, QUEUE_BYTES, large] {
            queue.push(item);
        }
        assert_eq!(counter.read().dropped, 2, "neither the impossible one nor one beyond the bound");
        let (done, answer) = std::sync::mpsc::channel();
        flush.send(done).unwrap();
        let answered = runtime.spawn_blocking(move || answer.recv_timeout(Duration::from_secs(20)));
        assert_eq!(runtime.block_on(answered).unwrap(), Ok(()));
        assert_eq!(*batches.lock(), [vec![large], vec![small, small], vec![1]]);
        queue.push(large);
        queue.push(small);
        assert_eq!(load.abandon(), 2, "what was sent made room");
        assert_eq!(counter.read().dropped, 4);
    }
}
