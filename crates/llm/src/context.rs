//! What the HTTP stack knows of a request and all others may read: the one request extension.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

/// Identity and arrival of a request.
#[derive(Debug, Clone)]
pub struct Context {
    /// The client's own `x-request-id` if it sent a sane one, else a new UUIDv7.
    pub request_id: Arc<str>,
    /// The id of the caller's key, when keys are in use.
    pub key_id: Option<Arc<str>>,
    /// Arrival by the wall clock, for records.
    pub arrived_at: Timestamp,
    /// Arrival by the monotonic clock, for durations.
    pub arrived: Instant,
    /// The server span, parent of everything done for this request.
    pub span: tracing::Span,
    /// Its ids, when it is traced.
    pub trace: Option<Arc<TraceIds>>,
}

/// The hexadecimal ids of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceIds {
    /// 32 digits.
    pub trace_id: String,
    /// 16 digits.
    pub span_id: String,
    /// Whether the trace was chosen from the start to be exported.
    pub sampled: bool,
    /// What others on its way say of it, as `tracestate` has it; mostly nothing.
    pub state: String,
}

impl Context {
    /// A request without a key that arrives now.
    pub fn new(request_id: impl Into<Arc<str>>, span: tracing::Span) -> Self {
        Self {
            request_id: request_id.into(),
            key_id: None,
            arrived_at: Timestamp::now(),
            arrived: Instant::now(),
            span,
            trace: None,
        }
    }
}
