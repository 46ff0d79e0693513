//! The registry behind the metrics: the recorder, and where the numbers go (a Prometheus page, OTLP).
//!
//! Enter at [`install`]. What exists, and how it is recorded, is said in [`mlx_manager_signal::metric`].

mod bridge;
mod known;
mod limit;
mod process;
mod prometheus;
mod recorder;
#[cfg(test)]
mod tests;

pub use prometheus::{Error, Metrics};

pub(crate) use bridge::meter_provider;
pub(crate) use known::Known;
pub(crate) use prometheus::{Settings, install};
