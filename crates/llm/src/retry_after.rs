//! How long an HTTP server asks to be left alone.

use std::time::Duration;

use http::HeaderMap;
use jiff::{
    Span, Timestamp,
    civil::DateTime,
    fmt::{rfc2822::DateTimeParser, strtime::BrokenDownTime},
    tz::Offset,
};

/// What a server asks its callers to wait: `retry-after-ms` before `retry-after`, in seconds, which may have a fraction, or
/// as a date, of which what is left after `now` counts; of one that has passed nothing is left. A word that is none of these
/// says nothing. Any length can be asked for: how long to wait at most is the caller's to know.
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
    let date = date(value, now)?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// An HTTP date in any of the three forms of RFC 9110. The day of the week adds nothing, so a wrong one is no reason to come
/// back too early.
fn date(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let parser = DateTimeParser::new().relaxed_weekday(true);
    parser.parse_timestamp(&text).ok().or_else(|| rfc850(&text, now)).or_else(|| asctime(&text))
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`: of the years that end so it is the last that isn't more than 50 years ahead.
fn rfc850(text: &str, now: Timestamp) -> Option<Timestamp> {
    let (_, date) = text.split_once(',')?;
    let parsed = BrokenDownTime::parse("%d-%b-%y %H:%M:%S GMT", date.trim()).ok()?;
    let now = Offset::UTC.to_datetime(now);
    let latest = now.saturating_add(Span::new().years(50));
    let century = now.year() - now.year() % 100;
    let year_of_century = parsed.year()? % 100;
    let dates = [century + 100, century, century - 100].map(|century| in_year(&parsed, century + year_of_century));
    dates.into_iter().flatten().find(|date| Offset::UTC.to_datetime(*date) <= latest)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<Timestamp> {
    let (_, date) = text.split_once(' ')?;
    let parsed = BrokenDownTime::parse("%b %d %H:%M:%S %Y", date).ok()?;
    in_year(&parsed, parsed.year()?)
}

fn in_year(parsed: &BrokenDownTime, year: i16) -> Option<Timestamp> {
    let (month, day) = (parsed.month()?, parsed.day()?);
    let (hour, minute, second) = (parsed.hour()?, parsed.minute()?, parsed.second()?);
    let date = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    Offset::UTC.to_timestamp(date).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, HeaderValue};
    use jiff::Timestamp;

    use super::retry_after;

    fn wait_at(now: &str, headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let now: Timestamp = now.parse().unwrap();
        retry_after(&headers, now)
    }

    const NOW: &str = "2026-11-20T00:00:00Z";

    #[test]
    fn numbers_are_seconds_and_milliseconds_come_first() {
        let milliseconds = Duration::from_millis;
        for (value, expected) in [
            ("7", Some(milliseconds(7000))),
            ("1.5", Some(milliseconds(1500))),
            (" \t7 ", Some(milliseconds(7000))),
            ("0", Some(Duration::ZERO)),
            ("", None),
            ("soon", None),
            ("-1", None),
            ("NaN", None),
            ("1e300", None),
        ] {
            assert_eq!(wait_at(NOW, &[("retry-after", value)]), expected, "{value:?}");
        }
        for (value, expected) in [("250", 250), (" 250 ", 250), ("0.5", 0), ("soon", 9000), ("-1", 9000)] {
            let found = wait_at(NOW, &[("retry-after-ms", value), ("retry-after", "9")]);
            assert_eq!(found.map(|wait| wait.as_millis()), Some(expected), "{value:?}");
        }
    }

    #[test]
    fn dates_are_read_in_all_three_forms() {
        const DAY: u64 = 86_400;
        for (now, value, expected) in [
            (NOW, "Fri, 20 Nov 2026 00:00:07 GMT", Some(7)),
            (NOW, "  Fri,   20 Nov 2026  00:00:07   GMT ", Some(7)),
            (NOW, "Mon, 20 Nov 2026 00:00:07 GMT", Some(7)),
            (NOW, "Thu, 19 Nov 2026 00:00:00 GMT", Some(0)),
            (NOW, "Friday, 20-Nov-26 00:00:07 GMT", Some(7)),
            (NOW, "Friday,20-Nov-26  00:00:07  GMT", Some(7)),
            (NOW, "Thursday, 19-Nov-26 23:59:59 GMT", Some(0)),
            (NOW, "Sunday, 06-Nov-94 08:49:37 GMT", Some(0)),
            (NOW, "Friday, 20-Nov-76 00:00:00 GMT", Some(18_263 * DAY)),
            (NOW, "Saturday, 21-Nov-76 00:00:00 GMT", Some(0)),
            ("2099-12-31T23:59:50Z", "Friday, 01-Jan-00 00:00:00 GMT", Some(10)),
            ("2028-02-28T00:00:00Z", "Tuesday, 29-Feb-28 00:00:00 GMT", Some(DAY)),
            (NOW, "Fri Nov 20 00:00:07 2026", Some(7)),
            (NOW, "Tue Dec  1 00:00:00 2026", Some(11 * DAY)),
            (NOW, " Tue  Dec 1  00:00:00  2026 ", Some(11 * DAY)),
            (NOW, "Sun Nov  6 08:49:37 1994", Some(0)),
            (NOW, "Friday, 31-Feb-27 00:00:00 GMT", None),
            (NOW, "Friday, 20-Nov-26 00:00:07 PST", None),
            (NOW, "Fri Nov 20 2026", None),
            (NOW, "Fri Nov 31 00:00:07 2026", None),
            (NOW, "2026-11-20", None),
        ] {
            let found = wait_at(now, &[("retry-after", value)]);
            assert_eq!(found, expected.map(Duration::from_secs), "{value:?} at {now}");
        }
    }
}
