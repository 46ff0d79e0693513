//! `GET /health` and `GET /ready`, for supervisors and load balancers.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};

use crate::route::{Kind, Route};

/// What the daemon says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// A model or a provider can answer.
    Ready,
    /// Nothing can answer: no local model is loaded or loadable, and every provider is off.
    NothingToServe,
    /// It was told to stop and finishes what is open.
    Draining,
}

/// Asks the daemon how it is.
pub type Probe = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// The routes of this file.
pub fn routes(probe: &Probe) -> Vec<Route> {
    [("/health", get(health), Kind::Probe), ("/ready", get(ready), Kind::Probe)]
        .map(|(path, methods, kind)| Route { path, methods: methods.with_state(Arc::clone(probe)), kind })
        .into()
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

async fn ready(State(probe): State<Probe>) -> (StatusCode, Json<Value>) {
    match probe() {
        Readiness::Ready => (StatusCode::OK, Json(json!({ "status": "ready" }))),
        Readiness::NothingToServe => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": "not ready", "reason": "no local model is ready and no provider has a key" })),
        ),
        Readiness::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "reason": "stopping" })))
        }
    }
}
