//! The one task that writes audit rows.
//!
//! Whoever finishes a request hands its record over and goes on; the queue is bounded, and what doesn't fit is counted. A
//! database that is away, locked or slow costs rows once the queue is full, never a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use mlx_manager_config::DatabaseConfig;
use mlx_manager_llm::Record;
use mlx_manager_signal::{
    event::{
        AuditQueueDepth, AuditRowsDeleted, AuditRowsDropped, AuditRowsWritten, AuditWriteError, StatementFinished,
    },
    span,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::{Instrument, Span};

use super::{Store, StoreError, audit::BATCH};

/// Records that may wait for the database.
pub(super) const QUEUE: usize = 8192;
/// How long a record waits for others. A transaction costs as much as a proxied request, so they share one.
const GATHER: Duration = Duration::from_millis(50);
/// Between two tries of a failed write.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often old rows are deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Where finished records go.
#[derive(Debug, Clone)]
pub struct AuditSender {
    records: mpsc::Sender<Record>,
    backlog: Arc<Backlog>,
}

/// What the writer is behind with.
#[derive(Debug, Default)]
struct Backlog {
    /// Records handed over and neither written nor given up: those in the queue, and those of the statement under way.
    waiting: AtomicUsize,
    /// Records that found the queue full, since this was last said.
    turned_away: AtomicU64,
}

impl Backlog {
    /// States how things are. A database that is away loses a row with each request, which is one line each time and not
    /// one per request.
    fn state(&self) {
        AuditQueueDepth(self.waiting.load(Ordering::Relaxed)).emit();
        let rows = self.turned_away.swap(0, Ordering::Relaxed);
        if rows > 0 {
            AuditRowsDropped { rows, reason: "queue_full" }.emit();
        }
    }
}

impl AuditSender {
    /// Hands a record over. Never waits: when the queue is full the record is lost and counted.
    pub(crate) fn send(&self, record: Record) {
        // Counted first, or the writer could be done with it before.
        self.backlog.waiting.fetch_add(1, Ordering::Relaxed);
        if self.records.try_send(record).is_err() {
            self.backlog.waiting.fetch_sub(1, Ordering::Relaxed);
            self.backlog.turned_away.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A poller for the metrics, since the writer can say nothing while it waits for the
    /// database. It keeps no queue open.
    pub(crate) fn poller(&self) -> impl Fn() + Send + Sync + 'static {
        let backlog = Arc::clone(&self.backlog);
        move || backlog.state()
    }
}

/// Makes the queue and the task that empties it. The task ends when every sender is gone and the queue is written; after
/// `give_up` resolves it stops trying to reach a database that is away.
pub fn writer<F>(config: DatabaseConfig, give_up: F) -> (AuditSender, impl Future<Output = ()> + Send)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let backlog = Arc::<Backlog>::default();
    let mut writer =
        Writer { config, backlog: Arc::clone(&backlog), store: None, next_prune: Instant::now(), failing: false };
    let task = async move {
        tokio::pin!(give_up);
        writer.run(receiver, give_up).await;
    };
    (AuditSender { records: sender, backlog }, task)
}

/// Waits for a record, and then a moment for more, asleep: to be woken by each would cost every request a little. None
/// means that every sender is gone. Cancelled, it leaves what came in the batch.
async fn gather(records: &mut mpsc::Receiver<Record>, batch: &mut Vec<Record>) {
    if records.recv_many(batch, BATCH).await > 0 && !records.is_closed() {
        if batch.len() + records.len() < BATCH {
            sleep(GATHER).await;
        }
        while batch.len() < BATCH
            && let Ok(record) = records.try_recv()
        {
            batch.push(record);
        }
    }
}

struct Writer {
    config: DatabaseConfig,
    backlog: Arc<Backlog>,
    /// Opened by the first use and whenever a connection was lost, so that a database that is away delays nothing.
    store: Option<Store>,
    next_prune: Instant,
    /// Whether the last try failed: an outage is an error once, not once a second.
    failing: bool,
}

impl Writer {
    async fn run(
        &mut self,
        mut records: mpsc::Receiver<Record>,
        mut give_up: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut gone = false;
        let mut tick = interval(PRUNE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = gather(&mut records, &mut batch) => if batch.is_empty() { break },
                _ = tick.tick() => self.prune().await,
            }
            while !batch.is_empty() {
                if !self.write(&batch).await {
                    if !gone {
                        tokio::select! {
                            () = &mut give_up => gone = true,
                            () = sleep(RETRY_PAUSE) => {}
                        }
                        continue;
                    }
                    AuditRowsDropped { rows: batch.len() as u64, reason: "write_failed" }.emit();
                }
                self.backlog.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
                batch.clear();
            }
        }
        self.backlog.state();
        if let Some(store) = self.store.take() {
            store.close().await;
        }
    }

    async fn write(&mut self, batch: &[Record]) -> bool {
        let started = Instant::now();
        let result = match self.store().await {
            Ok(store) => {
                let span = store.span("INSERT", batch);
                let called = Instant::now();
                let result = store.insert(batch).instrument(span.clone()).await;
                finish(&store, "INSERT", called, &span, result.as_ref().map(|()| batch.len() as u64));
                result
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.failing = false;
                AuditRowsWritten { rows: batch.len() as u64, duration: started.elapsed() }.emit();
                true
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    async fn prune(&mut self) {
        if Instant::now() < self.next_prune {
            return;
        }
        self.next_prune = Instant::now() + PRUNE_EVERY;
        let retention = self.config.retention;
        let result = match self.store().await {
            Ok(store) => {
                let span = store.span("DELETE", &[]);
                let called = Instant::now();
                let result = store.prune(Timestamp::now(), retention).instrument(span.clone()).await;
                finish(&store, "DELETE", called, &span, result.as_ref().copied());
                result
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(0) => {}
            Ok(rows) => AuditRowsDeleted { rows }.emit(),
            Err(error) => self.failed(&error),
        }
    }

    async fn store(&mut self) -> Result<Store, StoreError> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let store = Store::open(&self.config).await?;
        self.store = Some(store.clone());
        Ok(store)
    }

    fn failed(&mut self, error: &StoreError) {
        let again = std::mem::replace(&mut self.failing, true);
        AuditWriteError { error, again }.emit();
    }
}

/// The metric and the span of a statement, from one measurement.
fn finish(store: &Store, operation: &'static str, called: Instant, span: &Span, result: Result<u64, &StoreError>) {
    let (error, duration) = (result.err(), called.elapsed());
    let statement = StatementFinished {
        system: store.system().name(),
        operation,
        table: "requests",
        failed: error.is_some(),
        duration,
    };
    statement.emit();
    let code = error.and_then(StoreError::code);
    span::database_finished(span, result.unwrap_or(0), error.map(|error| error as _), code.as_deref());
}
