//! Typed facts. Each is a struct with what happened and an `emit(self)` that writes the log line and the metrics, with
//! the constant target of the component it speaks for.

mod audit;
mod cloud;
mod engine;
mod http;
mod pull;
mod request;
mod telemetry;
#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

pub use audit::{AuditQueueDepth, AuditRowsDropped, AuditRowsWritten, AuditWriteError, StatementFinished};
pub use cloud::{
    AttemptFailed, AttemptFinished, AttemptRetried, BreakerChanged, BreakerState, HttpCall, RateLimitSeen,
    TargetFailedOver,
};
pub use engine::{
    DecodeFinished, EngineMemory, ModelLoadError, ModelLoaded, ModelUnloaded, PrefillFinished, PrefixLookedUp,
    QueueDepth, QueueLeft,
};
pub use http::{HttpRequestFinished, HttpRequestStarted};
pub use pull::{DownloadFinished, DownloadRetried, FileDownloaded, PullFinished, PullStarted};
pub use request::{
    InferenceFailedOver, OverheadMeasured, Phase, RequestDecoded, RequestFinished, RouteDecided, TargetCalled,
    TargetFailed,
};
pub use telemetry::{ExportTotals, LogSinkTotals, SeriesCapReached, SpoolSize};

/// Milliseconds for a log line, to the microsecond: what lies below is noise, and would be seventeen digits of it.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
