//! A bounded queue of telemetry items and the task that exports them in batches.
//!
//! The SDK's own batch processors drop silently when their queue is full, run each on a thread of its own, and have one
//! resource each; ours counts what it drops and lives on the one export runtime.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    time::Instant,
};

use crate::llm::BoxFuture;

use super::counters::Counter;

/// Items waiting at most. At 2 kB per span that is 32 MB when the endpoint is away, and 16 s of 1,000 spans per second.
pub(super) const QUEUE_ITEMS: usize = 16_384;
/// Items per request.
const BATCH_ITEMS: usize = 512;
/// The longest an item waits for company.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// Sends one batch somewhere, and counts what becomes of it.
pub(super) type Export<T> = Box<dyn Fn(Vec<T>) -> BoxFuture<'static, ()> + Send>;

/// Answered when everything queued before it was handed over.
pub(super) type FlushRequest = std::sync::mpsc::Sender<()>;

/// The way into a batch task; cheap to clone, never blocks.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    items: mpsc::Sender<T>,
    /// Told when a batch is full. Until then its task sleeps: to wake another thread costs more than to make a span.
    full: Arc<Notify>,
    counter: Arc<Counter>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), full: Arc::clone(&self.full), counter: Arc::clone(&self.counter) }
    }
}

impl<T> Queue<T> {
    /// Queues an item, or counts it as dropped.
    pub(crate) fn push(&self, item: T) {
        if self.items.try_send(item).is_err() {
            self.counter.count_dropped(1);
        } else if self.items.max_capacity() - self.items.capacity() >= BATCH_ITEMS {
            self.full.notify_one();
        }
    }

    /// Counts items that were lost before they came here.
    pub(crate) fn count_dropped(&self, items: u64) {
        self.counter.count_dropped(items);
    }
}

/// Starts a batch task on the export runtime.
pub(super) fn spawn<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    capacity: usize,
    counter: Arc<Counter>,
    export: Export<T>,
) -> (Queue<T>, UnboundedSender<FlushRequest>) {
    let (items, receiver) = mpsc::channel(capacity);
    let (flush, flushes) = mpsc::unbounded_channel();
    let full = Arc::new(Notify::new());
    runtime.spawn(run(receiver, Arc::clone(&full), flushes, export));
    (Queue { items, full, counter }, flush)
}

async fn run<T: Send>(
    mut items: mpsc::Receiver<T>,
    full: Arc<Notify>,
    mut flushes: UnboundedReceiver<FlushRequest>,
    export: Export<T>,
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
                        export(std::mem::take(&mut batch)).await;
                    }
                }
                if !batch.is_empty() {
                    export(std::mem::take(&mut batch)).await;
                }
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
                    export(std::mem::take(&mut batch)).await;
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
                    export(std::mem::take(&mut batch)).await;
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
    use std::sync::Mutex;

    use super::*;
    use crate::config::Signal;

    #[test]
    fn a_flush_that_comes_while_the_last_batch_goes_out_is_answered() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (done, answer) = std::sync::mpsc::channel();
        let way_in = Arc::new(Mutex::new(None::<UnboundedSender<FlushRequest>>));
        let (asker, asked) = (Arc::clone(&way_in), Mutex::new(Some(done)));
        let export = move |_: Vec<u8>| -> BoxFuture<'static, ()> {
            let flush = asker.lock().unwrap().take().unwrap();
            flush.send(asked.lock().unwrap().take().unwrap()).unwrap();
            Box::pin(std::future::ready(()))
        };
        let counter = Arc::new(Counter::new("collector".into(), Signal::Traces));
        let (queue, flush) = spawn(runtime.handle(), 1, counter, Box::new(export));
        *way_in.lock().unwrap() = Some(flush);
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
        let (queue, _flush) = spawn(&tokio::runtime::Handle::current(), QUEUE_ITEMS, counter, Box::new(export));
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
}
