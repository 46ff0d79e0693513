//! The labels of all metrics.

/// A label. Its values are closed sets or come from the configuration; a model name is admitted by
/// the recorder's limits. No key, user or request id is ever a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Database.
    DbSystem,
    /// Database statement.
    DbOperation,
    /// Database table.
    DbCollection,
    /// GenAI operation.
    GenAiOperation,
    /// GenAI provider.
    GenAiProvider,
    /// The `[[providers]]` name, or `mlx`.
    ManagerProvider,
    /// Model asked of the target, or `_other`.
    GenAiRequestModel,
    /// input or output.
    GenAiTokenType,
    /// What tokens stand for.
    GenAiTokenModality,
}

impl Label {
    /// Every label.
    pub const ALL: [Self; 35] = [
        Self::Api,
        Self::Provider,
        Self::Model,
        Self::Type,
        Self::Stream,
        Self::Outcome,
        Self::Rule,
        Self::Reason,
        Self::From,
        Self::To,
        Self::Resource,
        Self::Sink,
        Self::Level,
        Self::Signal,
        Self::Destination,
        Self::Version,
        Self::Commit,
        Self::Engine,
        Self::Metric,
        Self::Method,
        Self::Route,
        Self::StatusCode,
        Self::ErrorType,
        Self::ServerAddress,
        Self::ServerPort,
        Self::Phase,
        Self::DbSystem,
        Self::DbOperation,
        Self::DbCollection,
        Self::GenAiOperation,
        Self::GenAiProvider,
        Self::ManagerProvider,
        Self::GenAiRequestModel,
        Self::GenAiTokenType,
        Self::GenAiTokenModality,
    ];

    /// The name on the Prometheus page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Type => "type",
            Self::Stream => "stream",
            Self::Outcome => "outcome",
            Self::Rule => "rule",
            Self::Reason => "reason",
            Self::From => "from",
            Self::To => "to",
            Self::Resource => "resource",
            Self::Sink => "sink",
            Self::Level => "level",
            Self::Signal => "signal",
            Self::Destination => "destination",
            Self::Version => "version",
            Self::Commit => "commit",
            Self::Engine => "engine",
            Self::Metric => "metric",
            Self::Method => "method",
            Self::Route => "route",
            Self::StatusCode => "status_code",
            Self::ErrorType => "error_type",
            Self::ServerAddress => "server_address",
            Self::ServerPort => "server_port",
            Self::Phase => "phase",
            Self::DbSystem => "db_system_name",
            Self::DbOperation => "db_operation_name",
            Self::DbCollection => "db_collection_name",
            Self::GenAiOperation => "gen_ai_operation_name",
            Self::GenAiProvider => "gen_ai_provider_name",
            Self::ManagerProvider => "mlx_manager_provider",
            Self::GenAiRequestModel => "gen_ai_request_model",
            Self::GenAiTokenType => "gen_ai_token_type",
            Self::GenAiTokenModality => "gen_ai_token_modality",
        }
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
            Self::Api => &["chat_completions", "messages"],
            Self::Type => &["input", "output", "cache_read", "cache_write", "reasoning"],
            Self::Stream => &["true", "false"],
            Self::Outcome => &[
                "ok",
                "client_abort",
                "timeout_first_token",
                "timeout_idle",
                "timeout_total",
                "rate_limited",
                "shed",
                "upstream_error",
                "engine_error",
                "invalid_request",
                "unauthorized",
                "not_found",
                "unavailable",
            ],
            Self::Reason => &[
                "connect",
                "timeout",
                "rate_limited",
                "server_error",
                "conflict",
                "idle",
                "memory",
                "queue_full",
                "write_failed",
            ],
            Self::Resource => &["requests", "tokens"],
            Self::Level => &["error", "warn", "info", "debug", "trace"],
            Self::Signal => &["traces", "metrics", "logs"],
            Self::Engine => &["mlx", "none"],
            Self::Method => &["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "_OTHER"],
            Self::Phase => &["decode", "route", "record"],
            Self::DbSystem => &["sqlite", "postgresql"],
            Self::DbOperation => &["INSERT", "DELETE"],
            Self::DbCollection => &["requests"],
            Self::GenAiOperation => &["chat"],
            Self::GenAiProvider => &["openai", "anthropic", "mlx"],
            Self::GenAiTokenType => &["input", "output"],
            Self::GenAiTokenModality => &["unknown"],
            _ => return None,
        })
    }
}
