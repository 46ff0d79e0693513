//! Whether and when a failed call is tried again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use mlx_manager_config::Calls;
use tokio::time::Instant;

/// The first wait, and the longest of our own choosing.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// A provider that asks for more is not waited for: its answer goes to the caller, who can decide.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The tries of one call.
pub(super) struct Retry {
    delays: ExponentialBackoff,
    count: u32,
}

impl Retry {
    pub(super) fn new(calls: &Calls) -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(calls.retries as usize)
            .with_jitter()
            .build();
        Self { delays, count: 0 }
    }

    /// Retries begun so far.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// How long to wait before the next try; `None` when there is none, because the tries are used up or its time
    /// would lie beyond the deadline.
    pub(super) fn next(&mut self, retry_after: Option<Duration>, deadline: Instant) -> Option<Duration> {
        let delay = self.delays.next()?;
        let delay = retry_after.unwrap_or(delay);
        if delay > LONGEST_RETRY_AFTER || Instant::now() + delay >= deadline {
            return None;
        }
        self.count += 1;
        Some(delay)
    }
}

/// Why a status is worth another try.
pub(super) fn reason(status: u16) -> Option<&'static str> {
    match status {
        408 => Some("timeout"),
        409 => Some("conflict"),
        429 => Some("rate_limited"),
        500.. => Some("server_error"),
        _ => None,
    }
}
