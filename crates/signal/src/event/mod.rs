//! Typed facts. Each is a struct with what happened and an `emit(self)` that writes the log line and the metrics, with
//! the constant target of the component it speaks for.

mod audit;
mod cloud;
mod daemon;
mod engine;
mod http;
mod prefix_disk;
mod pull;
mod request;
mod step;
mod telemetry;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use audit::{
    AuditQueueDepth, AuditRowsDeleted, AuditRowsDropped, AuditRowsWritten, AuditWriteError, StatementFinished,
};
pub use cloud::{
    AttemptFailed, AttemptFinished, AttemptRetried, BreakerChanged, BreakerState, ErrorBodyTimedOut, FrameUnreadable,
    HttpCall, ModelPaused, RateLimitSeen, RetryBudgetSpent, TargetFailedOver, UsageRefused,
};
pub use daemon::{
    AcceptFailed, ConfigWarning, ConnectionFailed, DaemonFailed, DaemonServing, DaemonStopped, DrainTimedOut,
    LogFilesReopened, LogReloaded, NoDelayRefused, ReloadRefused, StopSignalled, TasksLeftBehind,
};
pub use engine::{
    CacheNotCleared, DecodeError, DecodeFinished, EngineAbsent, EngineMemory, EngineMemoryHeld, EngineOutOfMemory,
    EngineStartError, FolderLeftOver, KernelsPicked, MachineMemoryUnknown, MlxThreadGone, ModelLoadError, ModelLoaded,
    ModelLoading, ModelUnloaded, ModelWaitsForRoom, PrefillFinished, PrefixLookedUp, PromptNotKept, QueueDepth,
    QueueLeft,
};
pub use http::{BodiesHeld, HttpRequestFinished, HttpRequestStarted};
pub use prefix_disk::{PrefixDiskFailed, PrefixDiskHeld, PrefixDiskLate, PrefixNotWritten, PrefixRead, PrefixWritten};
pub use pull::{DownloadFinished, DownloadRetried, FileDownloaded, PullFinished, PullStarted};
pub use request::{
    InferenceFailedOver, OverheadMeasured, Phase, RequestDecoded, RequestFinished, RouteDecided, TargetCalled,
    TargetFailed, TargetsTried,
};
pub use step::{Preempted, RunningRequests, SequenceEnded, StepFinished, TokenFollowed};
pub use telemetry::{
    EndpointChanged, ExportTotals, LogSinkTotals, Panicked, SeriesCapReached, SinkTrouble, SpoolSize, TelemetryLost,
};

/// Milliseconds for a log line, to the microsecond: what lies below is noise, and would be seventeen digits of it.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
