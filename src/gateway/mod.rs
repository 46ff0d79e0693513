//! mlx-server: everything that happens to an inference request.
//!
//! `api → dispatch → {local, cloud}`; nothing here imports the manager.

pub mod api;
pub mod cloud;
pub mod dispatch;
pub mod local;
