//! What is told of an HTTP request by the route that it asks for.

/// What telemetry makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its spans and events are the inference server's.
    Inference,
    /// Traced, as everything that somebody asks for; what matches no route is one too.
    Question,
    /// Asked every few seconds by machines; a trace of it tells nobody anything, and "not yet" is an answer.
    Probe,
}
