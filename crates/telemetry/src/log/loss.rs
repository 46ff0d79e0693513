//! Records that were lost, and the record that says so in the sink itself.

use jiff::Timestamp;
use mlx_manager_config::Format;
use tracing::Level;

use super::{
    counter::index,
    format::{Rendered, Style, render},
    record::{Fields, LogRecord, Value},
};

/// The target of records that a sink writes about itself.
pub const TARGET: &str = "mlx_manager::telemetry::log";

/// How many records a loss record stands for.
pub const LOST: &str = "lost";
/// The lowest number among them.
pub const FIRST: &str = "lost_first";
/// The highest number among them. Numbers between the two that were not lost are in the file.
pub const LAST: &str = "lost_last";
/// How many of each level, in the order of the counters.
const LOST_OF_LEVEL: [&str; 5] = ["lost_error", "lost_warn", "lost_info", "lost_debug", "lost_trace"];

/// Records lost in one stretch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    of_level: [u64; 5],
    stretch: Option<Stretch>,
}

/// From the first to the last lost record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    sequence: (u64, u64),
    timestamp: (Timestamp, Timestamp),
}

impl Loss {
    /// Adds a lost record by its number and the time at which it happened.
    pub fn add(&mut self, sequence: u64, level: Level, timestamp: Timestamp) {
        self.of_level[index(level)] += 1;
        let stretch =
            self.stretch.unwrap_or(Stretch { sequence: (sequence, sequence), timestamp: (timestamp, timestamp) });
        self.stretch = Some(Stretch {
            sequence: (stretch.sequence.0.min(sequence), stretch.sequence.1.max(sequence)),
            timestamp: (stretch.timestamp.0.min(timestamp), stretch.timestamp.1.max(timestamp)),
        });
    }

    /// Whether nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.stretch.is_none()
    }

    /// The lowest number lost; nothing if nothing was.
    pub fn first_sequence(&self) -> Option<u64> {
        self.stretch.map(|stretch| stretch.sequence.0)
    }

    /// The record that says so, in the sink's own format. With the numbers in it a reader can prove that it stands for
    /// every number that is missing.
    pub fn render(&self, style: &Style, now: Timestamp) -> Option<Rendered> {
        let stretch = self.stretch?;
        let count: u64 = self.of_level.iter().sum();
        let noun = if count == 1 { "record" } else { "records" };
        let (first, last) = stretch.timestamp;
        let message = format!("{count} {noun} lost between {first:.6} and {last:.6}");
        let mut fields = Fields::default();
        // Text has no numbers.
        if style.format != Format::Text {
            for (key, value) in [(LOST, count), (FIRST, stretch.sequence.0), (LAST, stretch.sequence.1)] {
                fields.set(key, Value::Unsigned(value));
            }
        }
        for (key, value) in LOST_OF_LEVEL.into_iter().zip(self.of_level).filter(|(_, value)| *value > 0) {
            fields.set(key, Value::Unsigned(value));
        }
        Some(render(style, &own_record(&message, &fields, now)))
    }
}

/// A record of the log about itself.
pub fn own_record<'a>(message: &'a str, fields: &'a Fields, timestamp: Timestamp) -> LogRecord<'a> {
    LogRecord {
        timestamp,
        level: Level::WARN,
        target: TARGET,
        line: None,
        message,
        fields,
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

    #[test]
    fn says_how_many_when_and_which() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut style = Style { format: Format::Text, color: false, journald: false, timezone: TimeZone::UTC };
        let mut loss = Loss::default();
        assert!(loss.render(&style, at(9)).is_none());
        for (second, level) in [(3, Level::INFO), (1, Level::WARN), (2, Level::INFO)] {
            loss.add(100 + second as u64, level, at(second));
        }
        let head = "1970-01-01T00:00:09.000000Z | WARN     | mlx_manager::telemetry::log - ";
        let message = "3 records lost between 1970-01-01T00:00:01.000000Z and 1970-01-01T00:00:03.000000Z";
        let text = loss.render(&style, at(9)).unwrap().text;
        assert_eq!(text, format!("{head}{message} lost_warn=1 lost_info=2\n"));
        style.format = Format::Logfmt;
        let text = loss.render(&style, at(9)).unwrap().text;
        let fields = "lost=3 lost_first=101 lost_last=103 lost_warn=1 lost_info=2\n";
        assert!(text.contains(message) && text.ends_with(fields), "{text}");
        assert_eq!(loss.first_sequence(), Some(101));
    }
}
