//! Simulated peers on real sockets, and the daemon itself as a process.

pub mod daemon;
pub mod grpc;
pub mod hub;
pub mod otlp;
pub mod raw;
pub mod upstream;
pub mod wire;
