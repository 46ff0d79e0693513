//! mlx-server: everything that happens to an inference request.
//!
//! `api → dispatch → {local, cloud}`; nothing here imports the manager.

pub(crate) mod api;
pub(crate) mod cloud;
pub mod dispatch;
mod encoding;
pub(crate) mod local;
