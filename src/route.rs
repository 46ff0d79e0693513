//! What gateway and manager tell of a route: the one list from which routing, labels and traces derive.

use axum::routing::MethodRouter;

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

/// What telemetry makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its spans and events are the inference server's.
    Inference,
    /// Traced, as everything that somebody asks for.
    Question,
    /// Asked every few seconds by machines; a trace of it tells nobody anything.
    Probe,
}
