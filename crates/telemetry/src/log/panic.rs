//! The panic hook: a panic is a record like any other, and is on disk before the thread unwinds.

use std::{
    backtrace::Backtrace,
    collections::HashMap,
    panic::PanicHookInfo,
    thread,
    time::{Duration, Instant},
};

use mlx_manager_signal::{event::Panicked, hook, target};
use parking_lot::Mutex;
use tracing::Level;

use super::{
    LogHandle,
    format::BACKTRACE,
    record::{Fields, LogRecord, Value},
};

/// How long a panicking thread waits for the disk.
const DEADLINE: Duration = Duration::from_secs(1);

/// One line of source has so many backtraces per [`BACKTRACE_WINDOW`]: each takes milliseconds and a screenful, and they
/// are all alike.
const BACKTRACES: u32 = 5;
const BACKTRACE_WINDOW: Duration = Duration::from_secs(60);

/// Makes a hook for [`std::panic::set_hook`] that logs the panic at ERROR with its backtrace and flushes all sinks. One
/// place that panics again and again gets few backtraces.
pub fn panic_hook(handle: LogHandle) -> impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static {
    let limit = BacktraceLimit::default();
    move |info| {
        let payload = info.payload();
        let reason =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let reason = reason.unwrap_or("(no message)");
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let current = thread::current();
        let thread = current.name().unwrap_or("(unnamed)");
        let backtrace = if limit.allows(&location, Instant::now()) {
            Backtrace::force_capture().to_string()
        } else {
            format!("left out: this place had {BACKTRACES} within {} s", BACKTRACE_WINDOW.as_secs())
        };
        // While a thread is inside a subscriber its events reach nobody, and its panics may be about just that.
        let deaf = hook::is_deaf();
        if deaf {
            let mut fields = Fields::default();
            for (key, value) in [("thread", thread), ("location", location.as_str()), (BACKTRACE, backtrace.as_str())] {
                fields.set(key, Value::Text(value));
            }
            handle.deliver_directly(&LogRecord {
                timestamp: handle.core.now(),
                level: Level::ERROR,
                target: target::PANIC,
                line: None,
                message: &format!("panicked: {reason}"),
                fields: &fields,
                context: Fields::NONE,
                request_id: None,
                trace: None,
                spans: &[],
            });
        } else {
            Panicked { thread, location: &location, backtrace: &backtrace, reason }.emit();
        }
        // The thread unwinds in any case; what is late is written by the worker all the same.
        handle.flush(DEADLINE);
    }
}

/// Counts backtraces by the place of the panic; there are only so many places in a program.
#[derive(Default)]
struct BacktraceLimit(Mutex<HashMap<String, (Instant, u32)>>);

impl BacktraceLimit {
    fn allows(&self, place: &str, now: Instant) -> bool {
        let mut places = self.0.lock();
        let (since, count) = places.entry(place.to_owned()).or_insert((now, 0));
        if now.duration_since(*since) >= BACKTRACE_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= BACKTRACES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_panics_again_and_again_gets_few_backtraces() {
        let limit = BacktraceLimit::default();
        let start = Instant::now();
        let allowed = |place, now| (0..100).filter(|_| limit.allows(place, now)).count();
        assert_eq!(allowed("a.rs:1:1", start), 5);
        assert_eq!(allowed("b.rs:1:1", start), 5, "each place counts for itself");
        assert_eq!(allowed("a.rs:1:1", start + BACKTRACE_WINDOW / 2), 0);
        assert_eq!(allowed("a.rs:1:1", start + BACKTRACE_WINDOW), 5);
    }
}
