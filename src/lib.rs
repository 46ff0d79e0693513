//! mlx-manager: one daemon that serves language models and shows what it does.
//!
//! In reading order:
//! - [`config`]: what the user wrote, checked.
//! - [`llm`]: the neutral vocabulary of requests, events and records; pure data.
//! - [`store`] and [`telemetry`]: the audit database; logs, traces and metrics.
//! - [`server`]: everything that happens to an inference request (the component *mlx-server*).
//! - [`manager`]: health, models and administration (the component *mlx-manager*).
//! - [`http`]: listeners and the tower stack.
//! - [`app`] and [`cli`]: wire the floors together and run them.
//!
//! Arrows point up this list only; `tests/it/floors.rs` holds every `use` line to it.

pub mod app;
pub mod cli;
pub mod config;
pub mod http;
pub mod llm;
pub mod manager;
pub mod server;
pub mod store;
pub mod telemetry;
