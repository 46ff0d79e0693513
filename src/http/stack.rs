//! The whole HTTP stack, in one function.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body::Body as HttpBody;
use http_body_util::Limited;
use mlx_manager_config::ServerConfig;
use mlx_manager_llm::{Error, ErrorKind};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::{map_request_body::MapRequestBodyLayer, timeout::RequestBodyTimeoutLayer};

use super::layer::trace::{self, Labels, ObservedBody};
use crate::{
    gateway::api::{caller_dialect, error_response},
    route::Route,
};

/// The longest pause between two pieces of a request body.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Wraps the gateway's and the manager's routes. Read from the top: a request passes the layers downwards, its response upwards.
/// No layer is boxed or cloned, so that each costs what it does.
pub fn stack<B>(
    routes: Vec<Route>,
    config: &ServerConfig,
) -> impl Service<Request<B>, Response = Response<ObservedBody>, Error = Infallible, Future: Send> + Clone + use<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let max_body = usize::try_from(config.max_body).unwrap_or(usize::MAX);
    let labels = Arc::new(Labels::of(&routes));
    let routes =
        routes.into_iter().fold(Router::new(), |router, Route { path, methods, .. }| router.route(path, methods));
    let routes = routes.fallback(no_such_path).method_not_allowed_fallback(wrong_method);
    service_fn(move |request: Request<B>| {
        let (labels, routes) = (Arc::clone(&labels), routes.clone());
        let answer = async move |request: Request<B>| {
            let routes = ServiceBuilder::new()
                // A client that stops sending can't hold a request open for ever.
                .layer(RequestBodyTimeoutLayer::new(BODY_IDLE_TIMEOUT))
                // Innermost: the body limit is an error of whoever reads the body, who answers 413 and leaves a record.
                .layer(MapRequestBodyLayer::new(|body| Body::new(Limited::new(body, max_body))))
                .service(routes);
            routes.oneshot(request).await.unwrap_or_else(|never| match never {})
        };
        // Outermost: request id, server span and HTTP metrics, so that whatever happens below is seen, even a panic.
        trace::observe(labels, request, move |request| {
            // A panic costs one request: it becomes a 500 in the caller's dialect.
            catch_panic(request, answer)
        })
        .map(Ok)
    })
}

async fn no_such_path(request: Request<Body>) -> Response<Body> {
    let message = format!("there is no {} {} here", request.method(), request.uri().path());
    plain_error(&request, StatusCode::NOT_FOUND, message)
}

async fn wrong_method(request: Request<Body>) -> Response<Body> {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    plain_error(&request, StatusCode::METHOD_NOT_ALLOWED, message)
}

fn plain_error(request: &Request<Body>, status: StatusCode, message: String) -> Response<Body> {
    let dialect = caller_dialect(request.uri(), request.headers());
    let mut response = error_response(dialect, &Error::new(ErrorKind::InvalidRequest, message), None);
    *response.status_mut() = status;
    response
}

/// The panic itself is logged by the panic hook; the caller learns only that it was our fault. (tower-http's layer doesn't
/// show its handler the request, whose dialect the answer needs.)
async fn catch_panic<B, A>(request: Request<B>, answer: impl FnOnce(Request<B>) -> A) -> Response<Body>
where
    A: Future<Output = Response<Body>>,
{
    let dialect = caller_dialect(request.uri(), request.headers());
    // What the request owned is dropped with it, so nothing is seen half-changed afterwards.
    AssertUnwindSafe(answer(request)).catch_unwind().await.unwrap_or_else(|_| {
        let error = Error::new(ErrorKind::Internal, "the daemon failed at this request; its log says why");
        error_response(dialect, &error, None)
    })
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use http_body_util::BodyExt;
    use mlx_manager_llm::Api;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;
    use crate::route::Kind;

    #[tokio::test]
    async fn a_panic_is_answered_in_the_callers_dialect() {
        let fails = || post(|| async { panic!("a secret detail") as StatusCode });
        let routes =
            Api::ALL.iter().map(|api| Route { path: api.path(), methods: fails(), kind: Kind::Inference }).collect();
        let config = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            max_body: 10_000,
            max_inflight_body: 10_000,
            drain_timeout: Duration::ZERO,
        };
        let stack = stack(routes, &config);
        for (api, pointer, wanted) in
            [(Api::ChatCompletions, "/error/type", "server_error"), (Api::Messages, "/type", "error")]
        {
            let request = Request::post(api.path()).body(Body::empty()).unwrap();
            let response = stack.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(response.headers().contains_key("x-request-id"));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body.pointer(pointer).and_then(Value::as_str), Some(wanted), "{body}");
            assert!(!body.to_string().contains("secret"));
        }
    }
}
