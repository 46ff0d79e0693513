//! Records that were lost, and the record that says so in the sink itself.

use jiff::Timestamp;
use tracing::Level;

use super::{
    format::{Rendered, Style, render},
    record::{Fields, LogRecord},
};

/// The target of records that a sink writes about itself.
pub const TARGET: &str = "mlx_manager::telemetry::log";

/// Records lost in one stretch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    count: u64,
    between: Option<(Timestamp, Timestamp)>,
}

impl Loss {
    /// Adds a lost record by the time at which it happened.
    pub fn add(&mut self, timestamp: Timestamp) {
        self.count += 1;
        let (first, last) = self.between.unwrap_or((timestamp, timestamp));
        self.between = Some((first.min(timestamp), last.max(timestamp)));
    }

    /// Whether nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The record that says so, in the sink's own format.
    pub fn render(&self, style: &Style, now: Timestamp) -> Option<Rendered> {
        let (first, last) = self.between?;
        let noun = if self.count == 1 { "record" } else { "records" };
        let message = format!("{} {noun} lost between {first:.6} and {last:.6}", self.count);
        Some(render(style, &own_record(&message, Level::WARN, now)))
    }
}

/// A record of the log about itself.
fn own_record(message: &str, level: Level, timestamp: Timestamp) -> LogRecord<'_> {
    LogRecord {
        timestamp,
        level,
        target: TARGET,
        line: None,
        message,
        fields: Fields::NONE,
        context: Fields::NONE,
        request_id: None,
        trace: None,
        spans: &[],
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::Format;

    #[test]
    fn says_how_many_and_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let style = Style { format: Format::Text, color: false, journald: false, timezone: TimeZone::UTC };
        let mut loss = Loss::default();
        assert!(loss.render(&style, at(9)).is_none());
        for second in [3, 1, 2] {
            loss.add(at(second));
        }
        let text = loss.render(&style, at(9)).unwrap().text;
        assert_eq!(
            text,
            "1970-01-01T00:00:09.000000Z | WARN     | mlx_manager::telemetry::log - 3 records lost between \
             1970-01-01T00:00:01.000000Z and 1970-01-01T00:00:03.000000Z\n"
        );
    }
}
