//! What the user wrote, checked: one TOML file, the environment and the defaults become one [`Config`].
//!
//! Enter at [`load()`]: it finds the file, parses it, lets every section decode itself ([`Config`]'s fields name them) and
//! hands back either a checked config or every problem at once. A section's file holds its type, the description of its
//! keys (`TABLE`) and its decoding; defaults, `config.example.toml` and `check --show` all come from that description.
//!
//! Nothing here knows what the values are for; every other room gets only its own section.

mod check;
mod cloud;
mod database;
mod decode;
mod environment;
mod example;
mod hub;
mod load;
mod local;
mod log;
mod log_file;
mod metrics;
mod otlp;
mod overlay;
mod overrides;
mod prices;
mod problem;
mod redaction;
mod routes;
mod schema;
mod section;
mod server;
mod setting;
mod show;
mod substitute;
mod tables;
mod telemetry;
#[cfg(test)]
mod tests;
mod traces;
mod value;

pub use cloud::{Auth, Breaker, Calls, CloudConfig, Provider, ProviderKind};
pub use database::DatabaseConfig;
pub use environment::Environment;
pub use example::{EXAMPLE, write_example};
pub use hub::{HubConfig, HubConfigError};
pub use load::{LoadOptions, Loaded, load, load_text};
pub use local::{KeepAlive, LocalConfig, LocalModel, MemoryLimit, ModelPath, Unpack};
pub use log::{
    Color, Compression, Directive, Format, Level, LogConfig, MAX_SINKS, Period, Retention, Rotation, Sink, SinkKind,
    Timezone, is_target,
};
pub use log_file::{is_stream, lock_of};
pub use metrics::PrometheusConfig;
pub use otlp::{OtlpConfig, OtlpKind, Protocol, Send, Signal, Spool};
pub use prices::Price;
pub use problem::{Place, Problem, Problems};
pub use routes::{LOCAL, RetryBudget, Route, Target};
pub use server::ServerConfig;
pub use show::Shown;
pub use telemetry::TelemetryConfig;
pub use traces::{SemanticConventions, TracesConfig};
pub use value::Secret;

/// Everything the daemon runs by.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[telemetry]`
    pub telemetry: TelemetryConfig,
    /// `[metrics.prometheus]`
    pub prometheus: PrometheusConfig,
    /// `[traces]`
    pub traces: TracesConfig,
    /// `[[otlp]]`
    pub otlp: Vec<OtlpConfig>,
    /// `[local]`
    pub local: LocalConfig,
    /// `[[providers]]`
    pub providers: Vec<Provider>,
    /// `[cloud]` and `[[routes]]`
    pub cloud: CloudConfig,
    /// `[[prices]]`, of which the first that matches wins.
    pub prices: Vec<Price>,
    /// `[database]`
    pub database: DatabaseConfig,
}
