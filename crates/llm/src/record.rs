//! What is kept of a finished request. Metric, span, log line and audit row are all made from one [`Record`].

use std::time::Duration;

use jiff::Timestamp;
use strum::{IntoStaticStr, VariantArray, VariantNames};

use super::{Api, Context, FinishReason, Usage};

/// How a request ended; the one closed `outcome` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The whole answer was delivered.
    Ok,
    /// The client went away.
    ClientAbort,
    /// The daemon stopped and cut it off.
    Shutdown,
    /// No first token in time.
    TimeoutFirstToken,
    /// Too long a pause between two chunks.
    TimeoutIdle,
    /// The whole request took too long.
    TimeoutTotal,
    /// The provider said 429.
    RateLimited,
    /// We had no room for it.
    Shed,
    /// The provider failed.
    UpstreamError,
    /// The local engine failed.
    EngineError,
    /// The caller's request is wrong.
    InvalidRequest,
    /// The caller, or our key at the provider, is not allowed.
    Unauthorized,
    /// The provider doesn't let us have what was asked for.
    Forbidden,
    /// No such model.
    NotFound,
    /// The provider is off, or the engine is away.
    Unavailable,
}

impl Outcome {
    /// Every outcome, for series that exist from the start.
    pub const ALL: &'static [Self] = <Self as VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Where token counts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum UsageSource {
    /// Reported by the provider, or counted by the local engine: exact.
    Provider,
    /// Worked out from what passed by.
    Estimated,
    /// Reported, but the answer broke off before the final count.
    Partial,
}

impl UsageSource {
    /// The value of the audit column.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One request, finished. Never holds content or secrets.
#[derive(Debug, Clone)]
pub struct Record {
    /// The id in `x-request-id`.
    pub request_id: String,
    /// Hexadecimal trace id, when the request was traced.
    pub trace_id: Option<String>,
    /// Hexadecimal id of its server span, to which the span of the audit row's statement is linked.
    pub span_id: Option<String>,
    /// Whether its trace was chosen from the start to be exported.
    pub sampled: bool,
    /// When the request arrived.
    pub started_at: Timestamp,
    /// When its last byte was handed over, or it failed, or the client left.
    pub finished_at: Timestamp,
    /// The endpoint.
    pub api: Api,
    /// The model as the caller named it; empty when the body could not be read that far.
    pub requested_model: String,
    /// The `[[providers]]` name, or `mlx` for local models; `None` when no target was reached.
    pub provider: Option<String>,
    /// The model that answered, as the provider names it.
    pub response_model: Option<String>,
    /// Whether the answer was streamed.
    pub stream: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// The HTTP status sent; for a stream, the one sent before its first byte. 0 when the client left before.
    pub status: u16,
    /// Token counts.
    pub usage: Usage,
    /// Where they come from; `None` when nothing is known.
    pub usage_source: Option<UsageSource>,
    /// Price of the call in US dollars; `None` when the model's price is unknown.
    pub cost_usd: Option<f64>,
    /// Time spent waiting for the engine.
    pub queue: Option<Duration>,
    /// From arrival to the first generated content.
    pub time_to_first_token: Option<Duration>,
    /// From the first generated content to the last.
    pub generation: Option<Duration>,
    /// Content events seen; the streamed chunks of a cloud answer, the tokens of a local one.
    pub chunks: u64,
    /// From arrival to the end.
    pub duration: Duration,
    /// Why the model stopped.
    pub finish_reason: Option<FinishReason>,
    /// [`super::ErrorKind`]'s name, when it failed.
    pub error_kind: Option<&'static str>,
    /// What went wrong, without content or secrets.
    pub error_message: Option<String>,
    /// The id of the caller's key, never the key.
    pub key_id: Option<String>,
    /// Calls to providers beyond the first of each target.
    pub retries: u32,
    /// What was asked of the last target; `None` when no target was reached.
    pub inference: Option<Inference>,
}

impl Record {
    /// What is known of a request when it arrives: who asks, when, and by which endpoint. Until more happens its client
    /// went away. The ids of its trace are for whoever knows the tracer to add.
    pub fn begin(context: &Context, api: Api) -> Self {
        let trace = context.trace.as_deref();
        Self {
            request_id: context.request_id.to_string(),
            trace_id: trace.map(|ids| ids.trace_id.clone()),
            span_id: trace.map(|ids| ids.span_id.clone()),
            sampled: trace.is_some_and(|ids| ids.sampled),
            started_at: context.arrived_at,
            finished_at: context.arrived_at,
            api,
            requested_model: String::new(),
            provider: None,
            response_model: None,
            stream: false,
            outcome: Outcome::ClientAbort,
            status: 0,
            usage: Usage::default(),
            usage_source: None,
            cost_usd: None,
            queue: None,
            time_to_first_token: None,
            generation: None,
            chunks: 0,
            duration: Duration::ZERO,
            finish_reason: None,
            error_kind: None,
            error_message: None,
            key_id: context.key_id.as_deref().map(ToOwned::to_owned),
            retries: 0,
            inference: None,
        }
    }
}

/// The part of a request that its last target had: what the inference span covers, and the GenAI metrics count.
#[derive(Debug, Clone)]
pub struct Inference {
    /// `gen_ai.provider.name`: the provider's kind, or `mlx`.
    pub system: &'static str,
    /// The model asked of the target.
    pub model: String,
    /// From the call of the target to its failure or the end of its answer.
    pub duration: Duration,
    /// From the call of the target to the first generated content.
    pub time_to_first_token: Option<Duration>,
}
