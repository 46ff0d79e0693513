//! What goes up and down.

use strum::VariantArray;

use super::{Definition, Label};

/// A gauge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray)]
pub enum Gauge {
    /// HTTP requests in progress.
    HttpServerActiveRequests,
    /// Room that request bodies take of what they may take together.
    InflightBodyBytes,
    /// Requests waiting for the local engine.
    QueueDepth,
    /// Requests that the local engine computes.
    RunningRequests,
    /// Whether a local model is in memory: 1 or 0.
    ModelLoaded,
    /// Memory that a local model's weights take.
    ModelMemoryBytes,
    /// Memory of the local engine, by what it is for.
    EngineMemoryBytes,
    /// How much of a model that is being loaded is read, from 0 to 1.
    ModelLoading,
    /// Key-value caches of open sequences, and those kept in the prefix cache.
    KvCacheBytes,
    /// What the prefix cache has on disk.
    PrefixDiskBytes,
    /// The worst circuit breaker among a provider's models: 0 closed, 1 half open, 2 open.
    BreakerState,
    /// What a provider said is left of its rate limit.
    RatelimitRemaining,
    /// Batches on disk, waiting for their OTLP destination.
    SpoolBytes,
    /// Audit rows waiting to be written.
    AuditQueueDepth,
    /// Always 1; the labels say which build this is.
    BuildInfo,
    /// Open file descriptors.
    ProcessOpenFds,
    /// Most file descriptors that may be open; 0 is no limit.
    ProcessMaxFds,
    /// Virtual memory.
    ProcessVirtualMemoryBytes,
    /// Resident memory.
    ProcessResidentMemoryBytes,
    /// Start of the process, in seconds since 1970.
    ProcessStartTimeSeconds,
    /// Threads.
    ProcessThreads,
}

impl Gauge {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// What it is.
    pub fn definition(self) -> &'static Definition {
        match self {
            Self::HttpServerActiveRequests => &Definition {
                name: "http_server_active_requests",
                otlp_name: "http.server.active_requests",
                unit: "{request}",
                help: "HTTP requests in progress.",
                labels: &[Label::Method, Label::Route],
                buckets: &[],
            },
            Self::InflightBodyBytes => &Definition {
                name: "mlx_manager_inflight_body_bytes",
                otlp_name: "mlx_manager.inflight_body.size",
                unit: "By",
                help: "Room that the bodies of open requests take of server.max_inflight_body, until their answers have begun.",
                labels: &[],
                buckets: &[],
            },
            Self::QueueDepth => &Definition {
                name: "mlx_manager_queue_depth",
                otlp_name: "mlx_manager.queue.depth",
                unit: "{request}",
                help: "Requests waiting for the local engine.",
                labels: &[],
                buckets: &[],
            },
            Self::RunningRequests => &Definition {
                name: "mlx_manager_running_requests",
                otlp_name: "mlx_manager.running_requests",
                unit: "{request}",
                help: "Requests that the local engine computes.",
                labels: &[],
                buckets: &[],
            },
            Self::ModelLoaded => &Definition {
                name: "mlx_manager_model_loaded",
                otlp_name: "mlx_manager.model.loaded",
                unit: "1",
                help: "Whether a local model is in memory: 1 or 0.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::ModelMemoryBytes => &Definition {
                name: "mlx_manager_model_memory_bytes",
                otlp_name: "mlx_manager.model.memory",
                unit: "By",
                help: "Memory that a local model's weights take.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::EngineMemoryBytes => &Definition {
                name: "mlx_manager_engine_memory_bytes",
                otlp_name: "mlx_manager.engine.memory",
                unit: "By",
                help: "Memory that MLX holds, by what it is for; together, all of it.",
                labels: &[Label::Kind],
                buckets: &[],
            },
            Self::ModelLoading => &Definition {
                name: "mlx_manager_model_loading_ratio",
                otlp_name: "mlx_manager.model.loading",
                unit: "1",
                help: "How much of a local model that is being loaded is read; 0 when none is.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::KvCacheBytes => &Definition {
                name: "mlx_manager_kv_cache_bytes",
                otlp_name: "mlx_manager.kv_cache.size",
                unit: "By",
                help: "Key-value caches of open sequences, and those kept in the prefix cache.",
                labels: &[Label::Model],
                buckets: &[],
            },
            Self::PrefixDiskBytes => &Definition {
                name: "mlx_manager_prefix_disk_bytes",
                otlp_name: "mlx_manager.prefix_disk.size",
                unit: "By",
                help: "What the prefix cache has on disk.",
                labels: &[],
                buckets: &[],
            },
            Self::BreakerState => &Definition {
                name: "mlx_manager_breaker_state",
                otlp_name: "mlx_manager.breaker.state",
                unit: "1",
                help: "The worst circuit breaker among a provider's models: 0 closed, 1 half open, 2 open.",
                labels: &[Label::Provider],
                buckets: &[],
            },
            Self::RatelimitRemaining => &Definition {
                name: "mlx_manager_ratelimit_remaining",
                otlp_name: "mlx_manager.ratelimit.remaining",
                unit: "1",
                help: "What a provider said is left of its rate limit.",
                labels: &[Label::Provider, Label::Resource],
                buckets: &[],
            },
            Self::SpoolBytes => &Definition {
                name: "mlx_manager_spool_bytes",
                otlp_name: "mlx_manager.spool.size",
                unit: "By",
                help: "Batches on disk, waiting for their OTLP destination.",
                labels: &[Label::Destination],
                buckets: &[],
            },
            Self::AuditQueueDepth => &Definition {
                name: "mlx_manager_audit_queue_depth",
                otlp_name: "mlx_manager.audit.queue.depth",
                unit: "{row}",
                help: "Audit rows waiting to be written.",
                labels: &[],
                buckets: &[],
            },
            Self::BuildInfo => &Definition {
                name: "mlx_manager_build_info",
                otlp_name: "mlx_manager.build_info",
                unit: "1",
                help: "Always 1; the labels say which build this is.",
                labels: &[Label::Version, Label::Commit, Label::Engine],
                buckets: &[],
            },
            Self::ProcessOpenFds => &Definition {
                name: "process_open_fds",
                otlp_name: "process.open_file_descriptor.count",
                unit: "{count}",
                help: "Open file descriptors.",
                labels: &[],
                buckets: &[],
            },
            Self::ProcessMaxFds => &Definition {
                name: "process_max_fds",
                otlp_name: "process.open_file_descriptor.limit",
                unit: "{count}",
                help: "Most file descriptors that may be open; 0 is no limit.",
                labels: &[],
                buckets: &[],
            },
            Self::ProcessVirtualMemoryBytes => &Definition {
                name: "process_virtual_memory_bytes",
                otlp_name: "process.memory.virtual",
                unit: "By",
                help: "Virtual memory.",
                labels: &[],
                buckets: &[],
            },
            Self::ProcessResidentMemoryBytes => &Definition {
                name: "process_resident_memory_bytes",
                otlp_name: "process.memory.usage",
                unit: "By",
                help: "Resident memory.",
                labels: &[],
                buckets: &[],
            },
            Self::ProcessStartTimeSeconds => &Definition {
                name: "process_start_time_seconds",
                otlp_name: "process.start_time",
                unit: "s",
                help: "Start of the process, in seconds since 1970.",
                labels: &[],
                buckets: &[],
            },
            Self::ProcessThreads => &Definition {
                name: "process_threads",
                otlp_name: "process.thread.count",
                unit: "{thread}",
                help: "Threads.",
                labels: &[],
                buckets: &[],
            },
        }
    }
}
