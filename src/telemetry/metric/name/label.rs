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
    /// Database statement.
    DbOperation,
    /// Database table.
    DbCollection,
    /// GenAI operation.
    GenAiOperation,
    /// GenAI provider.
    GenAiProvider,
    /// Model asked for, or `_other`.
    GenAiRequestModel,
    /// input or output.
    GenAiTokenType,
}

impl Label {
    /// Every label.
    pub const ALL: [Self; 31] = [
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
        Self::DbOperation,
        Self::DbCollection,
        Self::GenAiOperation,
        Self::GenAiProvider,
        Self::GenAiRequestModel,
        Self::GenAiTokenType,
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
            Self::DbOperation => "db_operation_name",
            Self::DbCollection => "db_collection_name",
            Self::GenAiOperation => "gen_ai_operation_name",
            Self::GenAiProvider => "gen_ai_provider_name",
            Self::GenAiRequestModel => "gen_ai_request_model",
            Self::GenAiTokenType => "gen_ai_token_type",
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
            Self::DbOperation => "db.operation.name",
            Self::DbCollection => "db.collection.name",
            Self::GenAiOperation => "gen_ai.operation.name",
            Self::GenAiProvider => "gen_ai.provider.name",
            Self::GenAiRequestModel => "gen_ai.request.model",
            Self::GenAiTokenType => "gen_ai.token.type",
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
}
