//! Times, as every line has one. A second is printed once and then copied.

use std::cell::Cell;

use jiff::{Timestamp, fmt::temporal::DateTimePrinter, tz::TimeZone};

/// `2026-11-20T23:11:34`
const SECOND_BYTES: usize = 19;

/// What is left of a second: `.123456Z`
const FRACTION: [u8; 8] = *b".000000Z";

thread_local! {
    /// The second that this thread printed last, and its text.
    static LAST: Cell<(i64, [u8; SECOND_BYTES])> = const { Cell::new((i64::MIN, [0; SECOND_BYTES])) };
}

/// Writes RFC 3339 with microseconds: with `Z` in UTC, else with the offset.
pub fn write_timestamp(out: &mut String, timestamp: Timestamp, timezone: &TimeZone) {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    let is_utc = *timezone == TimeZone::UTC;
    if is_utc && write_utc(out, timestamp).is_some() {
        return;
    }
    let start = out.len();
    let printed = if is_utc {
        PRINTER.print_timestamp(&timestamp, &mut *out)
    } else {
        PRINTER.print_timestamp_with_offset(&timestamp, timezone.to_offset(timestamp), &mut *out)
    };
    if printed.is_err() {
        out.push('-');
    }
    if is_utc && let (Some((second, _)), Some(text)) = (parts(timestamp), out.as_bytes()[start..].first_chunk()) {
        LAST.try_with(|last| last.set((second, *text))).unwrap_or_default();
    }
}

/// Writes a time of the second that was printed last; nothing if it is another one.
fn write_utc(out: &mut String, timestamp: Timestamp) -> Option<()> {
    let (second, mut micros) = parts(timestamp)?;
    let (last, text) = LAST.try_with(Cell::get).ok()?;
    if second != last {
        return None;
    }
    let mut fraction = FRACTION;
    for digit in fraction[1..7].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    out.push_str(str::from_utf8(&text).ok()?);
    out.push_str(str::from_utf8(&fraction).ok()?);
    Some(())
}

/// The second and its microseconds. Nothing before 1970, where the two would have to be told apart in another way.
fn parts(timestamp: Timestamp) -> Option<(i64, u32)> {
    (timestamp >= Timestamp::UNIX_EPOCH).then(|| (timestamp.as_second(), timestamp.subsec_microsecond().unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_what_the_printer_says() {
        let nanoseconds = [-2_500_000_000, -2_000_000_000, -500_000_000, -1, 0, 1, 999_999_999, 1_000_000_000];
        let around = [0, 951_782_400, 1_795_230_817, 253_402_207_100].map(|second: i128| second * 1_000_000_000);
        for nanosecond in around.iter().flat_map(|base| nanoseconds.map(|nanosecond| base + nanosecond)) {
            let timestamp = Timestamp::from_nanosecond(nanosecond).unwrap();
            // The second time it is a copy.
            for _ in 0..2 {
                let mut text = String::from("x");
                write_timestamp(&mut text, timestamp, &TimeZone::UTC);
                assert_eq!(text, format!("x{timestamp:.6}"));
            }
        }
        let mut text = String::new();
        write_timestamp(&mut text, Timestamp::UNIX_EPOCH, &TimeZone::fixed(jiff::tz::offset(1)));
        assert_eq!(text, "1970-01-01T01:00:00.000000+01:00");
    }
}
