//! Whether and when a failed call is tried again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use http::HeaderMap;
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
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

/// What the provider asks us to wait: `retry-after-ms` before `retry-after`, in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        return Duration::try_from_secs_f64(milliseconds / 1e3).ok();
    }
    let value = text("retry-after")?;
    if let Some(seconds) = number(value) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, HeaderValue};
    use jiff::Timestamp;

    use super::retry_after;

    fn wait(headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let now: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
        retry_after(&headers, now)
    }

    #[test]
    fn milliseconds_beat_seconds_and_dates_are_read() {
        assert_eq!(wait(&[("retry-after-ms", "250"), ("retry-after", "9")]), Some(Duration::from_millis(250)));
        assert_eq!(wait(&[("retry-after", "1.5")]), Some(Duration::from_millis(1500)));
        assert_eq!(wait(&[("retry-after", "Fri, 20 Nov 2026 00:00:07 GMT")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "Thu, 19 Nov 2026 00:00:00 GMT")]), Some(Duration::ZERO));
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        assert_eq!(wait(&[("retry-after", "-1")]), None);
        assert_eq!(wait(&[("retry-after", "1e300")]), None);
    }
}
