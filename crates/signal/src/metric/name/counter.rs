//! What only grows: whole numbers in [`Counter`], fractions in [`Sum`].

use strum::VariantArray;

use super::{Definition, Label};

/// The GenAI conventions' labels of token counters.
const GENAI_USAGE: [Label; 5] = [
    Label::GenAiOperation,
    Label::GenAiProvider,
    Label::ManagerProvider,
    Label::GenAiRequestModel,
    Label::GenAiTokenModality,
];

/// A counter of whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray)]
pub enum Counter {
    /// Inference requests that ended, by how they ended.
    Requests,
    /// Tokens used; cache tokens are part of input, reasoning tokens are part of output.
    Tokens,
    /// Input tokens used with cloud providers, cached ones included.
    GenAiClientUsageInputTokens,
    /// Output tokens used with cloud providers, reasoning included.
    GenAiClientUsageOutputTokens,
    /// Input tokens that came from a cloud provider's cache.
    GenAiClientUsageCacheReadInputTokens,
    /// Input tokens that a cloud provider wrote to its cache.
    GenAiClientUsageCacheWriteInputTokens,
    /// Output tokens that a cloud provider's model reasoned with.
    GenAiClientUsageReasoningOutputTokens,
    /// Routing decisions, by the rule that matched.
    RouteDecisions,
    /// Calls to providers that were tried again.
    Retries,
    /// Requests that moved on to the next target of their route.
    Fallbacks,
    /// Frames of providers' streams that were forwarded without being understood.
    ObserverUnreadable,
    /// Prompts for whose beginning the prefix cache was searched.
    PrefixCacheLookups,
    /// Prompts whose beginning came from the prefix cache.
    PrefixCacheHits,
    /// Tokens of prompts for whose beginning the prefix cache was searched.
    PrefixCacheQueriedTokens,
    /// Tokens of prompts that came from the prefix cache.
    PrefixCacheHitTokens,
    /// Runs of tokens that the prefix cache wrote to disk.
    PrefixDiskWrites,
    /// Runs of tokens that the prefix cache read from disk.
    PrefixDiskReads,
    /// Requests whose place in the local engine was taken for a more urgent one.
    Preemptions,
    /// Requests that the local engine computed and that are over.
    EngineSequences,
    /// Local models unloaded to give memory back.
    Evictions,
    /// Log records written, by sink.
    LogRecordsWritten,
    /// Log records lost, by sink.
    LogRecordsDropped,
    /// Failed writes of a log sink.
    LogIoErrors,
    /// Spans, metric points or log records that an OTLP destination took.
    TelemetryExported,
    /// Spans, metric points or log records lost on this side, before an OTLP destination was asked.
    TelemetryDropped,
    /// Spans, metric points or log records that an OTLP destination refused, or for which it was tried in vain.
    TelemetryFailed,
    /// Audit rows written.
    AuditRowsWritten,
    /// Audit rows lost.
    AuditRowsDropped,
    /// Failed writes to the audit database; each is tried again.
    AuditWriteErrors,
    /// Measurements not kept because their metric already has as many series as it may.
    SeriesDropped,
}

impl Counter {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// What it is.
    pub fn definition(self) -> &'static Definition {
        match self {
            Self::Requests => &Definition {
                name: "mlx_manager_requests_total",
                otlp_name: "mlx_manager.requests",
                unit: "{request}",
                help: "Inference requests that ended, by how they ended.",
                labels: &[Label::Api, Label::Provider, Label::Model, Label::Stream, Label::Outcome],
                buckets: &[],
            },
            Self::Tokens => &Definition {
                name: "mlx_manager_tokens_total",
                otlp_name: "mlx_manager.tokens",
                unit: "{token}",
                help: "Tokens used; cache tokens are part of input, reasoning tokens are part of output.",
                labels: &[Label::Provider, Label::Model, Label::Type],
                buckets: &[],
            },
            Self::GenAiClientUsageInputTokens => &Definition {
                name: "gen_ai_client_inference_usage_input_tokens_total",
                otlp_name: "gen_ai.client.inference.usage.input_tokens",
                unit: "{token}",
                help: "Input tokens used with cloud providers, cached ones included.",
                labels: &GENAI_USAGE,
                buckets: &[],
            },
            Self::GenAiClientUsageOutputTokens => &Definition {
                name: "gen_ai_client_inference_usage_output_tokens_total",
                otlp_name: "gen_ai.client.inference.usage.output_tokens",
                unit: "{token}",
                help: "Output tokens used with cloud providers, reasoning included.",
                labels: &GENAI_USAGE,
                buckets: &[],
            },
            Self::GenAiClientUsageCacheReadInputTokens => &Definition {
                name: "gen_ai_client_inference_usage_cache_read_input_tokens_total",
                otlp_name: "gen_ai.client.inference.usage.cache_read.input_tokens",
                unit: "{token}",
                help: "Input tokens that came from a cloud provider's cache.",
                labels: &GENAI_USAGE,
                buckets: &[],
            },
            Self::GenAiClientUsageCacheWriteInputTokens => &Definition {
                name: "gen_ai_client_inference_usage_cache_write_input_tokens_total",
                otlp_name: "gen_ai.client.inference.usage.cache_write.input_tokens",
                unit: "{token}",
                help: "Input tokens that a cloud provider wrote to its cache.",
                labels: &GENAI_USAGE,
                buckets: &[],
            },
            Self::GenAiClientUsageReasoningOutputTokens => &Definition {
                name: "gen_ai_client_inference_usage_reasoning_output_tokens_total",
                otlp_name: "gen_ai.client.inference.usage.reasoning.output_tokens",
                unit: "{token}",
                help: "Output tokens that a cloud provider's model reasoned with.",
                labels: &GENAI_USAGE,
                buckets: &[],
            },
            Self::RouteDecisions => &Definition {
                name: "mlx_manager_route_decisions_total",
                otlp_name: "mlx_manager.route.decisions",
                unit: "{request}",
                help: "Routing decisions, by the rule that matched.",
                labels: &[Label::Rule],
                buckets: &[],
            },
            Self::Retries => &Definition {
                name: "mlx_manager_retries_total",
                otlp_name: "mlx_manager.retries",
                unit: "{call}",
                help: "Calls to providers that were tried again.",
                labels: &[Label::Provider, Label::Reason],
                buckets: &[],
            },
            Self::Fallbacks => &Definition {
                name: "mlx_manager_fallbacks_total",
                otlp_name: "mlx_manager.fallbacks",
                unit: "{request}",
                help: "Requests that moved on to the next target of their route.",
                labels: &[Label::From, Label::To],
                buckets: &[],
            },
            Self::ObserverUnreadable => &Definition {
                name: "mlx_manager_observer_unreadable_total",
                otlp_name: "mlx_manager.observer.unreadable",
                unit: "{frame}",
                help: "Frames of providers' streams that were forwarded without being understood.",
                labels: &[Label::Provider],
                buckets: &[],
            },
            Self::PrefixCacheLookups => &Definition {
                name: "mlx_manager_prefix_cache_lookups_total",
                otlp_name: "mlx_manager.prefix_cache.lookups",
                unit: "{prompt}",
                help: "Prompts for whose beginning the prefix cache was searched.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::PrefixCacheHits => &Definition {
                name: "mlx_manager_prefix_cache_hits_total",
                otlp_name: "mlx_manager.prefix_cache.hits",
                unit: "{prompt}",
                help: "Prompts whose beginning came from the prefix cache.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::PrefixCacheQueriedTokens => &Definition {
                name: "mlx_manager_prefix_cache_queried_tokens_total",
                otlp_name: "mlx_manager.prefix_cache.queried_tokens",
                unit: "{token}",
                help: "Tokens of prompts for whose beginning the prefix cache was searched.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::PrefixCacheHitTokens => &Definition {
                name: "mlx_manager_prefix_cache_hit_tokens_total",
                otlp_name: "mlx_manager.prefix_cache.hit_tokens",
                unit: "{token}",
                help: "Tokens of prompts that came from the prefix cache.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::PrefixDiskWrites => &Definition {
                name: "mlx_manager_prefix_disk_writes_total",
                otlp_name: "mlx_manager.prefix_disk.writes",
                unit: "{run}",
                help: "Runs of tokens that gave way in the prefix cache and were written to disk.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::PrefixDiskReads => &Definition {
                name: "mlx_manager_prefix_disk_reads_total",
                otlp_name: "mlx_manager.prefix_disk.reads",
                unit: "{run}",
                help: "Runs of tokens that the prefix cache read from disk.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::Preemptions => &Definition {
                name: "mlx_manager_preemptions_total",
                otlp_name: "mlx_manager.preemptions",
                unit: "{request}",
                help: "Requests whose place in the local engine was taken for a more urgent one.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::EngineSequences => &Definition {
                name: "mlx_manager_engine_sequences_total",
                otlp_name: "mlx_manager.engine.sequences",
                unit: "{request}",
                help: "Requests that the local engine computed and that are over, by how they ended.",
                labels: &[Label::Model, Label::Reason],
                buckets: &[],
            },
            Self::Evictions => &Definition {
                name: "mlx_manager_evictions_total",
                otlp_name: "mlx_manager.evictions",
                unit: "{model}",
                help: "Local models unloaded to give memory back.",
                labels: &[Label::Reason],
                buckets: &[],
            },
            Self::LogRecordsWritten => &Definition {
                name: "mlx_manager_log_records_written_total",
                otlp_name: "mlx_manager.log.records.written",
                unit: "{record}",
                help: "Log records written, by sink.",
                labels: &[Label::Sink, Label::Level],
                buckets: &[],
            },
            Self::LogRecordsDropped => &Definition {
                name: "mlx_manager_log_records_dropped_total",
                otlp_name: "mlx_manager.log.records.dropped",
                unit: "{record}",
                help: "Log records lost, by sink.",
                labels: &[Label::Sink, Label::Level],
                buckets: &[],
            },
            Self::LogIoErrors => &Definition {
                name: "mlx_manager_log_io_errors_total",
                otlp_name: "mlx_manager.log.io_errors",
                unit: "{error}",
                help: "Failed writes of a log sink.",
                labels: &[Label::Sink],
                buckets: &[],
            },
            Self::TelemetryExported => &Definition {
                name: "mlx_manager_telemetry_exported_total",
                otlp_name: "mlx_manager.telemetry.exported",
                unit: "{item}",
                help: "Spans, metric points or log records that an OTLP destination took.",
                labels: &[Label::Signal, Label::Destination],
                buckets: &[],
            },
            Self::TelemetryDropped => &Definition {
                name: "mlx_manager_telemetry_dropped_total",
                otlp_name: "mlx_manager.telemetry.dropped",
                unit: "{item}",
                help: "Spans, metric points or log records lost on this side, before an OTLP destination was asked.",
                labels: &[Label::Signal, Label::Destination],
                buckets: &[],
            },
            Self::TelemetryFailed => &Definition {
                name: "mlx_manager_telemetry_failed_total",
                otlp_name: "mlx_manager.telemetry.failed",
                unit: "{item}",
                help: "Spans, metric points or log records that an OTLP destination refused, or for which it was tried in vain.",
                labels: &[Label::Signal, Label::Destination],
                buckets: &[],
            },
            Self::AuditRowsWritten => &Definition {
                name: "mlx_manager_audit_rows_written_total",
                otlp_name: "mlx_manager.audit.rows.written",
                unit: "{row}",
                help: "Audit rows written.",
                labels: &[],
                buckets: &[],
            },
            Self::AuditRowsDropped => &Definition {
                name: "mlx_manager_audit_rows_dropped_total",
                otlp_name: "mlx_manager.audit.rows.dropped",
                unit: "{row}",
                help: "Audit rows lost.",
                labels: &[Label::Reason],
                buckets: &[],
            },
            Self::AuditWriteErrors => &Definition {
                name: "mlx_manager_audit_write_errors_total",
                otlp_name: "mlx_manager.audit.write_errors",
                unit: "{error}",
                help: "Failed writes to the audit database, each failed try by itself.",
                labels: &[],
                buckets: &[],
            },
            Self::SeriesDropped => &Definition {
                name: "mlx_manager_metric_series_dropped_total",
                otlp_name: "mlx_manager.metric.series.dropped",
                unit: "{measurement}",
                help: "Measurements not kept because their metric already has as many series as it may.",
                labels: &[Label::Metric],
                buckets: &[],
            },
        }
    }
}

/// A counter of fractions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray)]
pub enum Sum {
    /// Price of calls in US dollars, as far as the model's price is known.
    CostUsd,
    /// User and system CPU time spent.
    ProcessCpuSeconds,
}

impl Sum {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// What it is.
    pub fn definition(self) -> &'static Definition {
        match self {
            Self::CostUsd => &Definition {
                name: "mlx_manager_cost_usd_total",
                otlp_name: "mlx_manager.cost",
                unit: "{USD}",
                help: "Price of calls in US dollars, as far as the model's price is known.",
                labels: &[Label::Provider, Label::Model],
                buckets: &[],
            },
            Self::ProcessCpuSeconds => &Definition {
                name: "process_cpu_seconds_total",
                otlp_name: "process.cpu.time",
                unit: "s",
                help: "User and system CPU time spent.",
                labels: &[],
                buckets: &[],
            },
        }
    }
}
