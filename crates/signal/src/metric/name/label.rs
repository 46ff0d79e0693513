//! The labels of all metrics.

use mlx_manager_config::{Level, ProviderKind, Signal};
use mlx_manager_llm::{Api, Operation, Outcome};
use strum::{IntoStaticStr, VariantArray};

use crate::{event::Phase, provider};

/// A label. Its values are closed sets or come from the configuration; a model name is admitted by
/// the recorder's limits. No key, user or request id is ever a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Label {
    /// The endpoint of an inference request.
    Api,
    /// The `[[providers]]` name, `mlx` for local models, `_none` when no target was reached.
    Provider,
    /// The model as the caller named it, or `_other`.
    Model,
    /// Which tokens: input, output, cache_read, cache_write, reasoning.
    Type,
    /// Whether the answer was streamed.
    Stream,
    /// How a request ended.
    Outcome,
    /// The pattern of the route that matched, `local` or `none`.
    Rule,
    /// Why.
    Reason,
    /// What memory is for.
    Kind,
    /// The provider that failed.
    From,
    /// The provider tried next.
    To,
    /// What a rate limit counts.
    Resource,
    /// The `[[log.sinks]]` name.
    Sink,
    /// A log level.
    Level,
    /// traces, metrics or logs.
    Signal,
    /// The `[[otlp]]` name.
    Destination,
    /// The daemon's version.
    Version,
    /// The commit it was built from.
    Commit,
    /// The local engine built in: mlx or none.
    Engine,
    /// A metric's name.
    Metric,
    /// HTTP method.
    Method,
    /// Matched HTTP route.
    Route,
    /// HTTP status.
    StatusCode,
    /// Kind of failure; absent on success.
    ErrorType,
    /// Host called.
    ServerAddress,
    /// Port called.
    ServerPort,
    /// Part of a request's way through the daemon.
    Phase,
    /// Part of a step of the local engine.
    Part,
    /// Database.
    #[strum(serialize = "db_system_name")]
    DbSystem,
    /// Database statement.
    #[strum(serialize = "db_operation_name")]
    DbOperation,
    /// Database table.
    #[strum(serialize = "db_collection_name")]
    DbCollection,
    /// GenAI operation.
    #[strum(serialize = "gen_ai_operation_name")]
    GenAiOperation,
    /// GenAI provider.
    #[strum(serialize = "gen_ai_provider_name")]
    GenAiProvider,
    /// The `[[providers]]` name, or `mlx`.
    #[strum(serialize = "mlx_manager_provider")]
    ManagerProvider,
    /// Model asked of the target, or `_other`.
    #[strum(serialize = "gen_ai_request_model")]
    GenAiRequestModel,
    /// input or output.
    #[strum(serialize = "gen_ai_token_type")]
    GenAiTokenType,
    /// What tokens stand for.
    #[strum(serialize = "gen_ai_token_modality")]
    GenAiTokenModality,
}

impl Label {
    /// Every label.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The name on the Prometheus page.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The attribute in OTLP: the semantic conventions' name where there is one.
    pub fn otlp_name(self) -> &'static str {
        match self {
            Self::Method => "http.request.method",
            Self::Route => "http.route",
            Self::StatusCode => "http.response.status_code",
            Self::ErrorType => "error.type",
            Self::ServerAddress => "server.address",
            Self::ServerPort => "server.port",
            Self::DbSystem => "db.system.name",
            Self::DbOperation => "db.operation.name",
            Self::DbCollection => "db.collection.name",
            Self::GenAiOperation => "gen_ai.operation.name",
            Self::GenAiProvider => "gen_ai.provider.name",
            Self::ManagerProvider => "mlx_manager.provider",
            Self::GenAiRequestModel => "gen_ai.request.model",
            Self::GenAiTokenType => "gen_ai.token.type",
            Self::GenAiTokenModality => "gen_ai.token.modality",
            other => other.as_str(),
        }
    }

    /// Whether the conventions want an integer.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::StatusCode | Self::ServerPort)
    }

    /// Whether the value is a model's name, which a caller may choose freely.
    pub fn is_model(self) -> bool {
        matches!(self, Self::Model | Self::GenAiRequestModel)
    }

    /// What it says, in words for people.
    pub fn help(self) -> &'static str {
        match self {
            Self::Api => "The endpoint of an inference request",
            Self::Provider => "The `[[providers]]` name, `mlx` for local models, `_none` when no target was reached",
            Self::Model => "The model as the caller named it, or `_other`",
            Self::Type => "Which tokens; cache tokens are part of input, reasoning tokens are part of output",
            Self::Stream => "Whether the answer was streamed",
            Self::Outcome => "How a request ended",
            Self::Rule => "The pattern of the route that matched, `local` for a local model without one, `none`",
            Self::Reason => "Why it happened",
            Self::Kind => {
                "`weights` of models, `kv_live` of open sequences, `prefix_cache` kept for prompts to come, `allocator_cache` of freed buffers, and all `other`"
            }
            Self::From => "The provider that failed, `mlx` for local models",
            Self::To => "The provider tried next, `mlx` for local models",
            Self::Resource => "What a rate limit counts",
            Self::Sink => "The `[[log.sinks]]` name",
            Self::Level => "The level of a log record",
            Self::Signal => "What is exported",
            Self::Destination => "The `[[otlp]]` name",
            Self::Version => "The daemon's version",
            Self::Commit => "The commit it was built from; absent if unknown",
            Self::Engine => "The local engine built in",
            Self::Metric => "The name of a metric in this table",
            Self::Method => "The HTTP method",
            Self::Route => "The route that matched, or `_other`",
            Self::StatusCode => "The HTTP status; absent when no answer came",
            Self::ErrorType => "The kind of failure; absent on success",
            Self::ServerAddress => "The host called, of a provider's `base_url` or a model's download",
            Self::ServerPort => "The port called, of a provider's `base_url` or a model's download",
            Self::Part => {
                "`graph` describes the forward, `sample` the choice of tokens, `wait` waits for them, `tell` tells them"
            }
            Self::Phase => "`decode` reads a request's head, `route` finds its target, `record` writes its end",
            Self::DbSystem => "The database",
            Self::DbOperation => "The statement",
            Self::DbCollection => "The table",
            Self::GenAiOperation => "What was asked of the model",
            Self::GenAiProvider => "The provider's `kind`, or `mlx` for local models",
            Self::ManagerProvider => "The `[[providers]]` name, or `mlx` for local models",
            Self::GenAiRequestModel => "The model as the target was asked for it, or `_other`",
            Self::GenAiTokenType => "Which tokens; cache tokens are part of input, reasoning tokens are part of output",
            Self::GenAiTokenModality => "What the tokens stand for; providers don't break it down",
        }
    }

    /// Every value it may have, when these are known beforehand. The others come from the configuration, or are bounded by
    /// the protocol or by the recorder's limits.
    pub fn values(self) -> Option<&'static [&'static str]> {
        Some(match self {
            Self::Api => Api::NAMES,
            Self::Type => &["input", "output", "cache_read", "cache_write", "reasoning"],
            Self::Stream => &["true", "false"],
            Self::Outcome => Outcome::NAMES,
            Self::Reason => &[
                "connect",
                "timeout",
                "rate_limited",
                "server_error",
                "conflict",
                "usage_refused",
                "idle",
                "memory",
                "request",
                "queue_full",
                "write_failed",
                "stop",
                "length",
                "abort",
                "error",
            ],
            Self::Kind => &["weights", "kv_live", "prefix_cache", "allocator_cache", "other"],
            Self::Resource => &["requests", "tokens"],
            Self::Level => {
                const {
                    &[
                        Level::Error.as_str(),
                        Level::Warn.as_str(),
                        Level::Info.as_str(),
                        Level::Debug.as_str(),
                        Level::Trace.as_str(),
                    ]
                }
            }
            Self::Signal => Signal::NAMES,
            Self::Engine => &["mlx", "none"],
            Self::Method => &["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "_OTHER"],
            Self::Phase => Phase::NAMES,
            Self::Part => &["graph", "sample", "wait", "tell"],
            Self::DbSystem => &["sqlite", "postgresql"],
            Self::DbOperation => &["INSERT", "DELETE"],
            Self::DbCollection => &["requests"],
            Self::GenAiOperation => Operation::NAMES,
            Self::GenAiProvider => {
                const { &[ProviderKind::OpenAi.as_str(), ProviderKind::Anthropic.as_str(), provider::MLX] }
            }
            Self::GenAiTokenType => &["input", "output"],
            Self::GenAiTokenModality => &["unknown"],
            _ => return None,
        })
    }
}
