//! mlx-manager: everything that is not an inference request.

pub mod api;
pub mod models;
