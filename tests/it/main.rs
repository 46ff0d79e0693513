//! All integration tests, in one binary.
// Clippy lets tests unwrap, and knows a module of tests by this.
#![cfg(test)]
#![expect(clippy::disallowed_macros, reason = "tests of the logs speak as anybody might")]

mod agree;
mod bodies;
mod config;
mod connections;
mod delivery;
mod failover;
mod floors;
mod gateway;
mod grpc;
mod ledger;
#[cfg(feature = "mlx")]
mod local;
mod logs;
mod metrics;
mod odd;
mod peer;
mod pull;
mod reload;
mod serve;
mod spool;
mod story;
mod streams;
mod traces;
