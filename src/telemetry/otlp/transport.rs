//! How encoded batches get to an endpoint: one request, a judgement of its answer, and what to do when the endpoint is
//! away. With a spool a batch goes to disk at once and counts as delivered; without one it is tried again for a while.
//!
//! Everything here runs on the export runtime, whose thread is inside a telemetry-suppressed scope, so that our own
//! requests are neither traced nor logged to where they go.

use std::{
    cell::Cell,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    counters::Counter,
    grpc,
    spool::{Batch, Lost, Spool, signal_name},
};
use crate::config::{Protocol, Signal};

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The longest that an endpoint may make us wait.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);
/// Without a spool, a batch is given up after this; what comes meanwhile waits in the queue.
const PATIENCE: Duration = Duration::from_mins(5);

tokio::task_local! {
    /// How many items the exporter is encoding right now. The SDK's exporters hand their client bytes only.
    static ITEMS: Cell<u64>;
}

/// Runs an SDK exporter over `items` items. What the exporter fails to encode is counted as failed here; what it encodes
/// is counted by the client that sends it.
pub(super) async fn export_counted<E>(counter: &Counter, items: u64, export: impl Future<Output = Result<(), E>>) {
    ITEMS
        .scope(Cell::new(items), async {
            if export.await.is_err() {
                counter.count_failed(ITEMS.with(Cell::take));
            }
        })
        .await;
}

/// Why a batch was not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error("the endpoint refused telemetry: {0}")]
    Refused(String),
    #[error("the endpoint was away for too long: {0}")]
    Away(String),
    #[error("the spool can't be written")]
    Spool(#[source] std::io::Error),
    #[error("the exporter is shut down")]
    Closed,
}

/// What an endpoint said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Taken { rejected: u64 },
    Refused(String),
    Away { reason: String, retry_after: Option<Duration> },
}

impl Answer {
    /// What stands for an answer that never came.
    pub(super) fn unreachable(error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::Away { reason, retry_after: None }
    }
}

/// How a destination is doing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition {
    Well,
    Away,
    Refusing,
    SpoolBroken,
}

/// One endpoint, shared by its signals.
#[derive(Debug)]
pub(super) struct Destination {
    pub name: Arc<str>,
    /// Base URL without a trailing slash.
    pub endpoint: String,
    pub protocol: Protocol,
    pub headers: HeaderMap,
    pub client: reqwest::Client,
    pub timeout: Duration,
    pub spool: Option<Spool>,
    pub spooled: Notify,
    /// When the spool may be sent again.
    pub resume: Mutex<Instant>,
    pub counters: Vec<(Signal, Arc<Counter>)>,
    pub runtime: tokio::runtime::Handle,
    /// True once the daemon is about to exit: nothing waits any longer.
    pub closing: watch::Receiver<bool>,
    /// How things are, so that only changes are logged.
    pub condition: AtomicU8,
}

impl Destination {
    /// Delivers a batch, or sees to it that it is delivered later.
    async fn deliver(&self, batch: Batch) -> Result<(), DeliveryError> {
        match &self.spool {
            // Batches on disk are older: overtaking them would break the order.
            Some(spool) if !spool.is_empty() => self.spool(spool, &batch),
            Some(spool) => match self.post_unless_closing(&batch).await {
                Answer::Away { reason, retry_after } => {
                    self.note(Condition::Away, &reason);
                    let delay = Delays::default().next(retry_after);
                    *self.resume.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + delay;
                    self.spool(spool, &batch)
                }
                answer => self.settle(&batch, answer),
            },
            None => self.deliver_from_memory(&batch).await,
        }
    }

    async fn deliver_from_memory(&self, batch: &Batch) -> Result<(), DeliveryError> {
        let started = Instant::now();
        let mut delays = Delays::default();
        loop {
            let (reason, retry_after) = match self.post_unless_closing(batch).await {
                Answer::Away { reason, retry_after } => (reason, retry_after),
                answer => return self.settle(batch, answer),
            };
            self.note(Condition::Away, &reason);
            let delay = delays.next(retry_after);
            let mut closing = self.closing.clone();
            let give_up = started.elapsed() + delay > PATIENCE || *closing.borrow();
            if give_up || tokio::time::timeout(delay, closing.wait_for(|closing| *closing)).await.is_ok() {
                self.count(batch.signal, |counter| counter.count_failed(batch.items));
                return Err(DeliveryError::Away(reason));
            }
        }
    }

    fn settle(&self, batch: &Batch, answer: Answer) -> Result<(), DeliveryError> {
        match answer {
            Answer::Taken { rejected } => {
                self.note(Condition::Well, "");
                let rejected = rejected.min(batch.items);
                self.count(batch.signal, |counter| {
                    counter.count_exported(batch.items - rejected);
                    counter.count_failed(rejected);
                });
                Ok(())
            }
            Answer::Refused(reason) | Answer::Away { reason, .. } => {
                self.count(batch.signal, |counter| counter.count_failed(batch.items));
                self.note(Condition::Refusing, &reason);
                Err(DeliveryError::Refused(reason))
            }
        }
    }

    fn spool(&self, spool: &Spool, batch: &Batch) -> Result<(), DeliveryError> {
        let mut lost = Vec::new();
        let pushed = spool.push(batch, SystemTime::now(), &mut lost);
        self.count_lost(&lost);
        match pushed {
            Ok(()) => {
                self.spooled.notify_one();
                Ok(())
            }
            Err(error) => {
                self.count(batch.signal, |counter| counter.count_dropped(batch.items));
                self.note(Condition::SpoolBroken, &error.to_string());
                Err(DeliveryError::Spool(error))
            }
        }
    }

    /// Sends what is on disk, oldest first, whenever the endpoint is there. Runs as long as the runtime.
    pub(super) async fn drain(self: Arc<Self>) {
        let Some(spool) = &self.spool else { return };
        let mut delays = Delays::default();
        loop {
            let resume = *self.resume.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep_until(resume).await;
            match self.send_oldest(spool).await {
                Ok(Sent::Empty) => self.spooled.notified().await,
                Ok(Sent::One) => delays = Delays::default(),
                Ok(Sent::Away(retry_after)) => tokio::time::sleep(delays.next(retry_after)).await,
                Err(error) => {
                    self.note(Condition::SpoolBroken, &error.to_string());
                    tokio::time::sleep(LONGEST_DELAY).await;
                }
            }
        }
    }

    async fn send_oldest(&self, spool: &Spool) -> std::io::Result<Sent> {
        let mut lost = Vec::new();
        let expired = spool.expire(SystemTime::now(), &mut lost);
        self.count_lost(&lost);
        expired?;
        let Some(entry) = spool.oldest() else { return Ok(Sent::Empty) };
        let batch = match spool.read(&entry) {
            Ok(batch) => batch,
            Err(error) => {
                // Somebody took or damaged the file. The others must not wait for it.
                if spool.remove(&entry)? {
                    self.count_lost(&[entry.lost()]);
                }
                return Err(error);
            }
        };
        match self.post(&batch).await {
            Answer::Away { reason, retry_after } => {
                self.note(Condition::Away, &reason);
                Ok(Sent::Away(retry_after))
            }
            answer => {
                let removed = spool.remove(&entry);
                // One that gave way to newer ones while it was under way has been counted as lost.
                if !matches!(removed, Ok(false)) {
                    // A refusal is counted and logged there; what matters here is that the file goes.
                    self.settle(&batch, answer).unwrap_or_default();
                }
                removed.map(|_| Sent::One)
            }
        }
    }

    async fn post_unless_closing(&self, batch: &Batch) -> Answer {
        let mut closing = self.closing.clone();
        tokio::select! {
            answer = self.post(batch) => answer,
            // Closing means that nobody waits for a slow endpoint any more; the batch may arrive twice, not never.
            Ok(_) = closing.wait_for(|closing| *closing), if self.spool.is_some() => {
                Answer::Away { reason: "the daemon exits".to_owned(), retry_after: None }
            }
        }
    }

    async fn post(&self, batch: &Batch) -> Answer {
        match self.protocol {
            Protocol::HttpProtobuf => self.post_http(batch).await,
            Protocol::Grpc => grpc::call(self, batch).await,
        }
    }

    async fn post_http(&self, batch: &Batch) -> Answer {
        let mut request = self
            .client
            .post(format!("{}/v1/{}", self.endpoint, signal_name(batch.signal)))
            .timeout(self.timeout)
            .headers(self.headers.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(batch.body.clone());
        if batch.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        let away = |error: reqwest::Error| Answer::unreachable(&error.without_url());
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return away(error),
        };
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER).and_then(retry_after);
        match status {
            status if status.is_success() => match response.bytes().await {
                Ok(body) => Answer::Taken { rejected: rejected_items(&body) },
                Err(error) => away(error),
            },
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Answer::Away { reason: format!("status {status}"), retry_after }
            }
            status if status.is_server_error() => Answer::Away { reason: format!("status {status}"), retry_after },
            status => Answer::Refused(format!("status {status}")),
        }
    }

    fn count(&self, signal: Signal, count: impl Fn(&Counter)) {
        self.counters.iter().filter(|(other, _)| *other == signal).for_each(|(_, counter)| count(counter));
    }

    fn count_lost(&self, lost: &[Lost]) {
        for lost in lost {
            self.count(lost.signal, |counter| counter.count_dropped(lost.items));
        }
    }

    fn note(&self, condition: Condition, reason: &str) {
        // The spool is looked at as soon as there is one, which may be before the logs are set up. What nobody hears isn't
        // said, and the next attempt says it.
        if crate::telemetry::is_deaf() {
            return;
        }
        if self.condition.swap(condition as u8, Ordering::Relaxed) == condition as u8 {
            return;
        }
        let destination = &*self.name;
        match condition {
            Condition::Well => {
                tracing::info!(target: "mlx_manager::telemetry", destination, "telemetry endpoint is back");
            }
            Condition::Away => {
                tracing::warn!(target: "mlx_manager::telemetry", destination, reason, "telemetry endpoint is away");
            }
            Condition::Refusing => {
                tracing::warn!(target: "mlx_manager::telemetry", destination, reason, "telemetry endpoint refuses");
            }
            Condition::SpoolBroken => {
                tracing::warn!(target: "mlx_manager::telemetry", destination, reason, "telemetry spool is broken");
            }
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
struct Delays(Duration);

impl Default for Delays {
    fn default() -> Self {
        Self(FIRST_DELAY)
    }
}

impl Delays {
    fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(LONGEST_DELAY);
        // An endpoint that says 0 again and again must not be called in a tight loop.
        retry_after.map_or(delay, |retry_after| retry_after.clamp(delay, LONGEST_RETRY_AFTER))
    }
}

/// Seconds, or an HTTP date.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let value = value.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Some(SystemTime::from(date).duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// The items that an endpoint rejected though it answered well. All three signals answer alike: field 1 holds the partial
/// success, whose field 1 is the count. An answer that is no such message rejects nothing.
pub(super) fn rejected_items(body: &[u8]) -> u64 {
    let field = |message: &mut &[u8]| -> Option<(u64, u64)> {
        let key = varint(message)?;
        Some((key, varint(message)?))
    };
    let mut message = body;
    // 0x0a: field 1, length-delimited. 0x08: field 1, varint.
    let Some((0x0a, length)) = field(&mut message) else { return 0 };
    let Some(mut partial) = usize::try_from(length).ok().and_then(|length| message.get(..length)) else { return 0 };
    match field(&mut partial) {
        Some((0x08, rejected)) => rejected,
        _ => 0,
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The client that the SDK's exporters call, from whatever thread they run on.
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
            // The SDK's periodic metric reader calls from its own thread: its unit is the request.
            items: ITEMS.try_with(Cell::take).unwrap_or(1),
            body: request.into_body(),
        };
        let destination = Arc::clone(&self.destination);
        // reqwest needs a runtime, and the caller may have none.
        let delivery = self.destination.runtime.spawn(async move { destination.deliver(batch).await });
        Box::pin(async move {
            match delivery.await {
                Ok(Ok(())) => Ok(http::Response::new(Bytes::new())),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(DeliveryError::Closed.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_success_is_read() {
        assert_eq!(rejected_items(&[]), 0);
        assert_eq!(rejected_items(b"{}"), 0);
        // partial_success { rejected_spans: 300, error_message: "no" }
        assert_eq!(rejected_items(&[0x0a, 0x07, 0x08, 0xac, 0x02, 0x12, 0x02, b'n', b'o']), 300);
        // partial_success { error_message: "a warning" }
        assert_eq!(rejected_items(&[0x0a, 0x02, 0x12, 0x00]), 0);
        assert_eq!(rejected_items(&[0x0a, 0x7f, 0x08]), 0, "cut off");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(&HeaderValue::from_static("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&HeaderValue::from_static("Fri, 31 Dec 1999 23:59:59 GMT")), Some(Duration::ZERO));
        assert_eq!(retry_after(&HeaderValue::from_static("soon")), None);
        let mut delays = Delays::default();
        assert_eq!(delays.next(None), FIRST_DELAY);
        assert_eq!(delays.next(Some(Duration::from_hours(2))), LONGEST_RETRY_AFTER);
        assert_eq!(delays.next(None), FIRST_DELAY * 4);
    }
}
