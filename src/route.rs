//! What gateway and manager tell of a route: the one list from which routing, labels and traces derive.

use axum::routing::MethodRouter;
pub use mlx_manager_signal::route::Kind;

/// A route. Its path is its label in metrics, spans and events.
#[derive(Debug, Clone)]
pub struct Route {
    /// As axum writes it, with `{…}` for what varies.
    pub path: &'static str,
    /// What answers there, by method.
    pub methods: MethodRouter,
    /// What telemetry makes of its requests.
    pub kind: Kind,
}
