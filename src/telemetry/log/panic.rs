//! The panic hook: a panic is a record like any other, and is on disk before the thread unwinds.

use std::{backtrace::Backtrace, panic::PanicHookInfo, thread, time::Duration};

use tracing::Level;

use super::{
    LogHandle,
    format::BACKTRACE,
    record::{Fields, LogRecord, Value},
};

/// How long a panicking thread waits for the disk.
const DEADLINE: Duration = Duration::from_secs(1);

/// Makes a hook for [`std::panic::set_hook`] that logs the panic at ERROR with its backtrace and flushes all sinks.
pub fn panic_hook(handle: LogHandle) -> impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static {
    move |info| {
        let payload = info.payload();
        let reason =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let reason = reason.unwrap_or("(no message)");
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let current = thread::current();
        let thread = current.name().unwrap_or("(unnamed)");
        let backtrace = Backtrace::force_capture().to_string();
        // While a thread is inside a subscriber its events reach nobody, and its panics may be about just that.
        let deaf = tracing::dispatcher::get_default(|dispatch| dispatch.is::<tracing::subscriber::NoSubscriber>());
        if deaf {
            let mut fields = Fields::default();
            for (key, value) in [("thread", thread), ("location", location.as_str()), (BACKTRACE, backtrace.as_str())] {
                fields.set(key, Value::Text(value));
            }
            handle.deliver_directly(&LogRecord {
                timestamp: handle.core.now(),
                level: Level::ERROR,
                target: module_path!(),
                line: None,
                message: &format!("panicked: {reason}"),
                fields: &fields,
                context: Fields::NONE,
                request_id: None,
                trace: None,
                spans: &[],
            });
        } else {
            tracing::error!(thread, location, backtrace, "panicked: {reason}");
        }
        // The thread unwinds in any case; what is late is written by the worker all the same.
        handle.flush(DEADLINE);
    }
}
