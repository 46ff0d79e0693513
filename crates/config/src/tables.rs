//! Every table of the file.

use super::{cloud, database, local, log, metrics, otlp, prices, routes, schema::Table, server, telemetry, traces};

/// Every table, in the order of the example.
pub(super) const TABLES: &[Table] = &[
    server::TABLE,
    log::TABLE,
    log::TARGETS,
    log::SINKS,
    telemetry::TABLE,
    metrics::TABLE,
    traces::TABLE,
    otlp::TABLE,
    local::TABLE,
    local::MODELS,
    cloud::PROVIDERS,
    cloud::TABLE,
    routes::TABLE,
    prices::TABLE,
    database::TABLE,
];
