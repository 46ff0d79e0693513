//! How encoded batches get to an endpoint: who may go when, and what to do when the endpoint is away or slow. With a spool
//! a batch goes to disk then, and counts as delivered; without one it is tried again for a while.
//!
//! Everything here runs on the export runtime, whose one thread is inside a telemetry-suppressed scope, so that our own
//! requests are neither traced nor logged to where they go.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use http::header;
use mlx_manager_config::{Protocol, Signal};
use opentelemetry_http::{HttpClient, HttpError};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    answer::Answer,
    cause::Cause,
    counters::Counter,
    endpoint::Endpoint,
    grpc,
    spool::{self, Batch, Entry, Lost, Spool},
};

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The longest that an endpoint may make us wait.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);
/// Without a spool, a batch is given up after this; what comes meanwhile waits in the queue.
const PATIENCE: Duration = Duration::from_mins(5);
/// With a spool, what comes doesn't wait longer than this for the answer to the batch before it.
const SPOOL_AFTER: Duration = Duration::from_secs(1);

/// The export thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the exporter is shut down")]
struct Closed;

/// Why a batch still is where it was.
struct Unsent {
    reason: String,
    retry_after: Option<Duration>,
}

/// One endpoint and the ways to it.
#[derive(Debug)]
pub(super) struct Destination {
    pub endpoint: Endpoint,
    pub spool: Option<Spool>,
    /// By signal. An earlier run may have spooled one that is no longer configured.
    pub lanes: [Lane; 3],
    pub runtime: tokio::runtime::Handle,
    /// True once the daemon is about to exit: nothing waits any longer.
    pub closing: watch::Receiver<bool>,
}

/// One signal's way to an endpoint. Its batches go one after the other; what holds them up holds up no other signal.
#[derive(Debug)]
pub(super) struct Lane {
    pub counter: Arc<Counter>,
    spooled: Notify,
    /// The attempt to send the first batch on disk that began before it was there.
    under_way: Mutex<Option<(Entry, JoinHandle<Answer>)>>,
}

impl Lane {
    pub(super) fn new(counter: Counter) -> Self {
        Self { counter: Arc::new(counter), spooled: Notify::new(), under_way: Mutex::default() }
    }

    fn under_way(&self) -> MutexGuard<'_, Option<(Entry, JoinHandle<Answer>)>> {
        self.under_way.lock()
    }
}

impl Destination {
    pub(super) fn lane(&self, signal: Signal) -> &Lane {
        &self.lanes[signal as usize]
    }

    /// Delivers a batch that is encoded, compressed if it is to be.
    pub(super) async fn deliver_encoded(self: Arc<Self>, mut batch: Batch, compressed: bool) {
        if compressed && let Err(error) = batch.compress() {
            self.lane(batch.signal).counter.lose(Cause::Unencodable, batch.items, &error.to_string());
            return;
        }
        self.deliver(batch).await;
    }

    /// Delivers a batch, or sees to it that it is delivered later, or counts it as lost.
    async fn deliver(self: Arc<Self>, batch: Batch) {
        let started = Instant::now();
        let mut delays = Delays::default();
        let mut closing = self.closing.clone();
        while let Err(Unsent { reason, retry_after }) = self.attempt(&batch).await {
            let delay = delays.next(retry_after);
            let give_up = *closing.borrow() || started.elapsed() + delay > PATIENCE;
            if give_up || tokio::time::timeout(delay, closing.wait_for(|closing| *closing)).await.is_ok() {
                self.lane(batch.signal).counter.lose(Cause::Away, batch.items, &reason);
                return;
            }
        }
    }

    /// Sends a batch, or puts it on disk. An error: neither the endpoint nor the disk has it.
    async fn attempt(self: &Arc<Self>, batch: &Batch) -> Result<(), Unsent> {
        let (signal, items) = (batch.signal, batch.items);
        let Some(spool) = &self.spool else {
            return self.settle(signal, items, self.post(batch).await);
        };
        let mut closing = self.closing.clone();
        // What is on disk is older: overtaking it would break the order.
        if !spool.is_empty(signal) || *closing.borrow() {
            self.spool(spool, batch)?;
            self.lane(signal).spooled.notify_one();
            return Ok(());
        }
        let (destination, own) = (Arc::clone(self), batch.clone());
        let mut post = Box::pin(async move { destination.post(&own).await });
        let answer = tokio::select! {
            answer = &mut post => Some(answer),
            () = tokio::time::sleep(SPOOL_AFTER) => None,
            // Closing means that nobody waits for a slow endpoint any more.
            Ok(_) = closing.wait_for(|closing| *closing) => None,
        };
        // Whoever empties the spool goes on from here, with the answer if there is one, so that nothing is sent twice.
        let answer = match answer {
            Some(answer @ Answer::Away { .. }) => self.runtime.spawn(std::future::ready(answer)),
            Some(answer) => return self.settle(signal, items, answer),
            None => self.runtime.spawn(post),
        };
        match self.spool(spool, batch) {
            Ok(entry) => {
                *self.lane(signal).under_way() = Some((entry, answer));
                self.lane(signal).spooled.notify_one();
                Ok(())
            }
            Err(unsent) => match answer.await {
                Ok(answer) => self.settle(signal, items, answer),
                Err(_) => Err(unsent),
            },
        }
    }

    /// Counts what an endpoint has decided. An error: it hasn't.
    fn settle(&self, signal: Signal, items: u64, answer: Answer) -> Result<(), Unsent> {
        let counter = &self.lane(signal).counter;
        match answer {
            Answer::Taken { rejected, message } => {
                let rejected = rejected.min(items);
                counter.count_exported(items - rejected);
                counter.lose(Cause::Rejected, rejected, &message);
                counter.report.endpoint(None);
                Ok(())
            }
            Answer::Refused(reason) | Answer::Denied(reason) => {
                counter.lose(Cause::Refused, items, &reason);
                Ok(())
            }
            Answer::Away { reason, retry_after } => {
                counter.report.endpoint(Some(&reason));
                Err(Unsent { reason, retry_after })
            }
        }
    }

    fn spool(&self, spool: &Spool, batch: &Batch) -> Result<Entry, Unsent> {
        let mut batch = batch.clone();
        let mut lost = Vec::new();
        let pushed = batch.compress().and_then(|()| spool.push(&batch, SystemTime::now(), &mut lost));
        self.count_lost(&lost, "");
        pushed.map_err(|error| {
            let reason = error.to_string();
            self.lane(batch.signal).counter.report.trouble(Cause::SpoolBroken, 0, &reason);
            Unsent { reason, retry_after: None }
        })
    }

    /// Sends what is on disk, oldest first, whenever the endpoint is there. Until the daemon is about to exit.
    pub(super) async fn drain(self: Arc<Self>, signal: Signal) {
        let Some(spool) = &self.spool else { return };
        let mut closing = self.closing.clone();
        let mut delays = Delays::default();
        loop {
            let delay = match self.send_oldest(spool, signal).await {
                Sent::Empty => None,
                Sent::One if *closing.borrow() => return,
                Sent::One => {
                    delays = Delays::default();
                    continue;
                }
                Sent::Away(retry_after) => Some(delays.next(retry_after)),
            };
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => {
                    // An answer that is about to come is waited for.
                    if self.lane(signal).under_way().is_none() {
                        return;
                    }
                }
                () = tokio::time::sleep(delay.unwrap_or_default()), if delay.is_some() => {}
                () = self.lane(signal).spooled.notified(), if delay.is_none() => {}
            }
        }
    }

    async fn send_oldest(&self, spool: &Spool, signal: Signal) -> Sent {
        let mut lost = Vec::new();
        let expired = spool.expire(signal, SystemTime::now(), &mut lost);
        self.count_lost(&lost, "");
        self.note_trouble(signal, expired);
        let under_way = self.lane(signal).under_way().take();
        let (entry, answer) = match under_way {
            Some((entry, answer)) => (entry, answer.await.unwrap_or_else(|error| Answer::unreachable(&error))),
            None => {
                let Some(entry) = spool.oldest(signal) else { return Sent::Empty };
                match spool.read(&entry) {
                    Ok(batch) => (entry, self.post(&batch).await),
                    Err(error) if spool::is_passing(&error) => {
                        self.note_trouble(signal, Err(error));
                        return Sent::Away(None);
                    }
                    Err(error) => {
                        // Somebody took or damaged the file. The others must not wait for it.
                        let (known, removed) = spool.remove(&entry);
                        if known {
                            self.count_lost(&[entry.lost(Cause::Damaged)], &error.to_string());
                        }
                        self.note_trouble(signal, removed);
                        return Sent::One;
                    }
                }
            }
        };
        if let Answer::Away { reason, retry_after } = answer {
            self.lane(signal).counter.report.endpoint(Some(&reason));
            return Sent::Away(retry_after);
        }
        let (known, removed) = spool.remove(&entry);
        self.note_trouble(signal, removed);
        // One that gave way to newer ones while it was under way has been counted as lost.
        if known && self.settle(signal, entry.items(), answer).is_err() {
            return Sent::Away(None);
        }
        Sent::One
    }

    async fn post(&self, batch: &Batch) -> Answer {
        let answer = match self.endpoint.protocol {
            Protocol::HttpProtobuf => self.endpoint.post(batch).await,
            Protocol::Grpc => grpc::call(&self.endpoint, batch).await,
        };
        match answer {
            // The spool has bounds of its own, and an expired token must not cost all that is in it.
            Answer::Denied(reason) if self.spool.is_some() => Answer::Away { reason, retry_after: None },
            answer => answer,
        }
    }

    fn count_lost(&self, lost: &[Lost], reason: &str) {
        for lost in lost {
            self.lane(lost.signal).counter.lose(lost.cause, lost.items, reason);
        }
    }

    fn note_trouble(&self, signal: Signal, result: std::io::Result<()>) {
        if let Err(error) = result {
            self.lane(signal).counter.report.trouble(Cause::SpoolBroken, 0, &error.to_string());
        }
    }
}

/// How an attempt to empty the spool went.
enum Sent {
    Empty,
    One,
    Away(Option<Duration>),
}

/// Waits that double.
struct Delays(ExponentialBackoff);

impl Default for Delays {
    fn default() -> Self {
        let delays = ExponentialBuilder::new().with_min_delay(FIRST_DELAY).with_max_delay(LONGEST_DELAY);
        Self(delays.without_max_times().build())
    }
}

impl Delays {
    fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let delay = self.0.next().unwrap_or(LONGEST_DELAY);
        // An endpoint that says 0 again and again must not be called in a tight loop.
        retry_after.map_or(delay, |retry_after| retry_after.clamp(delay, LONGEST_RETRY_AFTER))
    }
}

/// The client that the SDK's exporter of metrics calls, from the thread of its reader.
#[derive(Debug)]
pub(super) struct Client {
    pub destination: Arc<Destination>,
    pub signal: Signal,
}

impl HttpClient for Client {
    // What `async_trait` makes of `async fn send_bytes(&self, …)`.
    fn send_bytes<'life, 'future>(
        &'life self,
        request: http::Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'life: 'future,
        Self: 'future,
    {
        let batch = Batch {
            signal: self.signal,
            gzip: request.headers().contains_key(header::CONTENT_ENCODING),
            // All metrics are one reading, whose unit is the request.
            items: 1,
            body: request.into_body(),
        };
        // reqwest needs a runtime, and the caller may have none.
        let delivery = self.destination.runtime.spawn(Arc::clone(&self.destination).deliver(batch));
        Box::pin(async move {
            // What was lost on the way is counted and reported; the SDK would report it once more, with another cause.
            delivery.await.map(|()| http::Response::new(Bytes::new())).map_err(|_| Closed.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_heed_the_endpoint_within_reason() {
        let mut delays = Delays::default();
        assert_eq!(delays.next(None), FIRST_DELAY);
        assert_eq!(delays.next(Some(Duration::from_hours(2))), LONGEST_RETRY_AFTER);
        assert_eq!(delays.next(None), FIRST_DELAY * 4);
        let rest: Vec<_> = (0..100).map(|_| delays.next(None).as_millis()).collect();
        assert_eq!(rest[..5], [2_000, 4_000, 8_000, 16_000, 30_000]);
        assert!(rest[5..].iter().all(|delay| *delay == 30_000), "for ever");
    }
}
