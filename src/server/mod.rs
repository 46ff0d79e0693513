//! mlx-server: everything that happens to an inference request.
//!
//! `api → dispatch → {engine, cloud} → dialect → llm`; nothing here imports the manager.

pub mod api;
pub mod cloud;
pub mod dialect;
pub mod dispatch;
pub mod engine;
