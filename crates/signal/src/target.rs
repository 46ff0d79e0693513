//! The targets of events and spans: what log lines show, what filters and sinks go by, and by which an event belongs to one
//! of the two components.
//!
//! They are a contract with the user (`include = ["mlx_manager::server"]`) and not module paths: an event keeps its target
//! wherever the code that states it moves.

/// What everything of mlx-server begins with: whatever happens to an inference request.
pub const SERVER: &str = "mlx_manager::server";
/// The server span of an inference request, and what is said of its exchange.
pub const SERVER_HTTP: &str = "mlx_manager::server::http";
/// Understanding requests.
pub const SERVER_API: &str = "mlx_manager::server::api";
/// Routing, targets, and the end of a request.
pub const SERVER_DISPATCH: &str = "mlx_manager::server::dispatch";
/// Calls to providers.
pub const SERVER_CLOUD: &str = "mlx_manager::server::cloud";
/// A single call to a provider.
pub const SERVER_CLOUD_ATTEMPT: &str = "mlx_manager::server::cloud::attempt";
/// The local engine.
pub const SERVER_ENGINE: &str = "mlx_manager::server::engine";
/// The engine of a build without one.
pub const SERVER_ENGINE_ABSENT: &str = "mlx_manager::server::engine::absent";
/// The engine's start.
pub const SERVER_ENGINE_BACKEND: &str = "mlx_manager::server::engine::backend";
/// The model inside the binary.
pub const SERVER_ENGINE_BUILTIN: &str = "mlx_manager::server::engine::builtin";
/// The prefix cache on disk.
pub const SERVER_ENGINE_DISK: &str = "mlx_manager::server::engine::disk";
/// What the machine offers.
pub const SERVER_ENGINE_MACHINE: &str = "mlx_manager::server::engine::machine";
/// Tokens and texts.
pub const SERVER_ENGINE_TOKENIZER: &str = "mlx_manager::server::engine::tokenizer";
/// The steps of the MLX thread.
pub const SERVER_ENGINE_TURN: &str = "mlx_manager::server::engine::turn";
/// The MLX thread itself.
pub const SERVER_ENGINE_WORKER: &str = "mlx_manager::server::engine::worker";

/// The daemon's own life.
pub const APP: &str = "mlx_manager::app";
/// Signals and reloads.
pub const SERVE: &str = "mlx_manager::cli::serve";
/// Requests that no inference endpoint takes.
pub const HTTP: &str = "mlx_manager::http";
/// Connections.
pub const HTTP_LISTENER: &str = "mlx_manager::http::listener";
/// Models on their way here.
pub const MODELS: &str = "mlx_manager::manager::models";
/// The audit database.
pub const STORE: &str = "mlx_manager::store";
/// What the writer of audit rows does besides.
pub const STORE_WRITER: &str = "mlx_manager::store::writer";
/// Exporters, metrics and prices.
pub const TELEMETRY: &str = "mlx_manager::telemetry";
/// The logs themselves.
pub const LOG: &str = "mlx_manager::telemetry::log";
/// Panics.
pub const PANIC: &str = "mlx_manager::telemetry::log::panic";
