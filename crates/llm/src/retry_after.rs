//! How long an HTTP server asks to be left alone.

use std::time::Duration;

use http::HeaderMap;
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};

/// What a server asks its callers to wait: `retry-after-ms` before `retry-after`, in seconds, which may have a fraction, or
/// as a date, of which what is left after `now` counts. A word that is none of these says nothing. Any length can be asked
/// for: how long to wait at most is the caller's to know.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
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
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "1.5")]), Some(Duration::from_millis(1500)));
        assert_eq!(wait(&[("retry-after", "Fri, 20 Nov 2026 00:00:07 GMT")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "Thu, 19 Nov 2026 00:00:00 GMT")]), Some(Duration::ZERO));
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        assert_eq!(wait(&[("retry-after", "-1")]), None);
        assert_eq!(wait(&[("retry-after", "1e300")]), None);
    }
}
