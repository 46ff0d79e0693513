//! The server's routes: thin. Decode, dispatch, encode; whatever is measured is measured by the meter.

mod admin;
mod body;
mod buffer;
mod inference;
mod models;

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header::CONTENT_TYPE},
    response::Response,
    routing::{get, post},
};
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Api, Dialect, Error};
use tokio_util::sync::CancellationToken;

use self::admin::Admin;
use super::dispatch::Dispatch;
use crate::route::{Kind, Route};

pub(crate) use self::body::Bodies;

/// What inference requests share.
#[derive(Clone)]
struct Inference {
    dispatch: Arc<Dispatch>,
    bodies: Bodies,
}

/// The routes of the gateway. Streams that have no end of their own end when `stop` is cancelled.
pub(crate) fn routes(dispatch: &Arc<Dispatch>, bodies: Bodies, stop: &CancellationToken) -> Vec<Route> {
    let admin = Admin { dispatch: Arc::clone(dispatch), stop: stop.clone() };
    let admin = [
        ("/admin/models", get(admin::list)),
        // Its name may hold slashes too, and what is asked of it comes last.
        ("/admin/models/{*id}", get(admin::get).post(admin::post)),
    ]
    .map(|(path, methods)| Route { path, methods: methods.with_state(admin.clone()), kind: Kind::Question });
    let inference = Inference { dispatch: Arc::clone(dispatch), bodies };
    let inference = [
        (Api::ChatCompletions.path(), post(inference::chat_completions)),
        (Api::Messages.path(), post(inference::messages)),
    ]
    .map(|(path, methods)| Route { path, methods: methods.with_state(inference.clone()), kind: Kind::Inference });
    let models = [
        ("/v1/models", get(models::list)),
        // A model's name may hold slashes (`org/name`).
        ("/v1/models/{*id}", get(models::one)),
    ]
    .map(|(path, methods)| Route { path, methods: methods.with_state(Arc::clone(dispatch)), kind: Kind::Question });
    inference.into_iter().chain(models).chain(admin).collect()
}

/// The dialect that a caller reads. An endpoint's path says it, and so does a path below one; where both APIs meet
/// (`/v1/models`) or neither has anything, Anthropic's SDKs are known by the version that they always send.
pub fn caller_dialect(uri: &Uri, headers: &HeaderMap) -> Dialect {
    let is_at =
        |api: &&Api| uri.path().strip_prefix(api.path()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match Api::ALL.iter().find(is_at) {
        Some(api) => api.dialect(),
        None if headers.contains_key("anthropic-version") => Dialect::Anthropic,
        None => Dialect::OpenAi,
    }
}

/// An error as the caller's dialect writes it.
pub fn error_response(dialect: Dialect, error: &Error, request_id: Option<&str>) -> Response {
    let (status, body) = dialect::encode_error(dialect, error, request_id.unwrap_or_default());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    add_headers(&mut response, &error.headers);
    response
}

/// Headers of the provider's that the caller should see.
fn add_headers(response: &mut Response, headers: &HeaderMap) {
    for (name, value) in headers {
        response.headers_mut().append(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_what_its_caller_reads_and_else_the_version_does() {
        let (plain, mut versioned) = (HeaderMap::new(), HeaderMap::new());
        versioned.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
        let read = |path: &'static str, headers| caller_dialect(&Uri::from_static(path), headers);
        assert_eq!(read("/v1/messages", &plain), Dialect::Anthropic);
        assert_eq!(read("/v1/messages/count_tokens", &plain), Dialect::Anthropic);
        assert_eq!(read("/v1/chat/completions", &versioned), Dialect::OpenAi);
        assert_eq!(read("/v1/models", &versioned), Dialect::Anthropic);
        assert_eq!(read("/v1/models", &plain), Dialect::OpenAi);
        assert_eq!(read("/nowhere", &versioned), Dialect::Anthropic);
        assert_eq!(read("/v1/messages-of-ours", &plain), Dialect::OpenAi);
    }
}
