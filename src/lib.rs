//! mlx-manager: one daemon that serves language models and shows what it does.
//!
//! The package wires together what the crates below `crates/` can do; ARCHITECTURE.md is the map. In reading order:
//! - [`route`]: what gateway and manager tell of their routes.
//! - [`store`]: the audit database.
//! - [`gateway`]: everything that happens to an inference request (the component *mlx-server*).
//! - [`manager`]: health, models and administration (the component *mlx-manager*).
//! - [`http`]: listeners and the tower stack.
//! - [`app`] and [`cli`]: wire the rooms together and run them.
//!
//! Arrows point up this list only; `tests/it/floors.rs` holds every `use` to it.

pub mod app;
pub mod cli;
pub mod gateway;
mod http;
mod manager;
mod route;
pub mod store;
