//! The layers that are our own.

pub mod trace;
