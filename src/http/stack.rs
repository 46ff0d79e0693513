//! The whole HTTP stack, in one function.

use std::{any::Any, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode},
    middleware::from_fn,
    response::Response,
};
use http_body_util::Limited;
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer, map_request_body::MapRequestBodyLayer, timeout::RequestBodyTimeoutLayer,
};

use super::layer::trace;
use crate::{
    config::ServerConfig,
    llm::{Dialect, Error, ErrorKind},
    server::api::error_response,
};

/// The longest pause between two pieces of a request body.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Wraps the wings' routes. Read from the top: a request passes the layers downwards, its response upwards.
pub fn stack(routes: Router, config: &ServerConfig) -> Router {
    let max_body = usize::try_from(config.max_body).unwrap_or(usize::MAX);
    routes.fallback(no_such_path).method_not_allowed_fallback(wrong_method).layer(
        ServiceBuilder::new()
            // Outermost: request id, server span and HTTP metrics, so that whatever happens below is seen, even a panic.
            .layer(from_fn(trace::observe))
            // A panic costs one request: it becomes a 500 in the caller's dialect.
            .layer(CatchPanicLayer::custom(panicked))
            // A client that stops sending can't hold a request open for ever.
            .layer(RequestBodyTimeoutLayer::new(BODY_IDLE_TIMEOUT))
            // Innermost: the body limit is an error of whoever reads the body, who answers 413 and leaves a record.
            .layer(MapRequestBodyLayer::new(move |body| Body::new(Limited::new(body, max_body)))),
    )
}

async fn no_such_path(request: Request) -> Response {
    let message = format!("there is no {} {} here", request.method(), request.uri().path());
    plain_error(&request, StatusCode::NOT_FOUND, message)
}

async fn wrong_method(request: Request) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    plain_error(&request, StatusCode::METHOD_NOT_ALLOWED, message)
}

fn plain_error(request: &Request, status: StatusCode, message: String) -> Response {
    let dialect = caller_dialect(request.uri().path(), request.headers());
    let mut response = error_response(dialect, &Error::new(ErrorKind::InvalidRequest, message), None);
    *response.status_mut() = status;
    response
}

/// Whoever sends Anthropic's version header, or uses its path, reads Anthropic's errors.
fn caller_dialect(path: &str, headers: &HeaderMap) -> Dialect {
    if headers.contains_key("anthropic-version") || path.starts_with("/v1/messages") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

/// The panic itself was logged by the panic hook; the caller learns only that it was our fault.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    let error = Error::new(ErrorKind::Internal, "the daemon failed at this request; its log says why");
    error_response(Dialect::OpenAi, &error, None)
}
