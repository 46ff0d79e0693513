//! `/admin/models`: which local models are in memory, and bringing them in and out. From this machine only.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{ConnectInfo, FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt};
use mlx_manager_llm::{Dialect, Error, ErrorKind, ModelState};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::error_response;
use crate::gateway::dispatch::Dispatch;

/// The pause after which a stream that has nothing to say shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Admin {
    pub(super) dispatch: Arc<Dispatch>,
    /// Cancelled when the daemon is to stop, which a stream must not hold up.
    pub(super) stop: CancellationToken,
}

/// A caller on this machine, and no page of another site in its browser.
pub(super) struct Local;

impl<S: Sync> FromRequestParts<S> for Local {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Response> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical());
        if peer.is_some_and(|address| address.is_loopback()) && !is_foreign_page(&parts.headers) {
            return Ok(Self);
        }
        let error = Error::new(ErrorKind::Unauthorized, "/admin is for callers on this machine");
        Err(refuse(&error, StatusCode::FORBIDDEN))
    }
}

/// Browsers say by `origin` which page asks; that of another host has no business here.
fn is_foreign_page(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text("origin") else { return false };
    origin.split_once("://").map(|(_, host)| host) != text("host")
}

/// All local models, and where each stands.
pub(super) async fn list(_: Local, State(admin): State<Admin>) -> Json<Value> {
    let engine = admin.dispatch.engine();
    let models = engine.models().into_iter().map(|(name, _)| describe(&name, engine.state(&name)));
    Json(json!({ "models": models.collect::<Vec<_>>() }))
}

/// `GET …/events`, or the model itself.
pub(super) async fn get(_: Local, State(admin): State<Admin>, Path(path): Path<String>) -> Response {
    let (name, is_stream) = match path.strip_suffix("/events") {
        Some(name) => (name, true),
        None => (path.as_str(), false),
    };
    if let Some(refusal) = unknown(&admin, name) {
        return refusal;
    }
    let engine = admin.dispatch.engine();
    if !is_stream {
        return Json(describe(name, engine.state(name))).into_response();
    }
    let name = name.to_owned();
    let states = engine.watch(&name).take_until(admin.stop.clone().cancelled_owned());
    Sse::new(events(name, states)).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

/// `POST …/load` answers when the model is in memory, `POST …/unload` when it is out.
pub(super) async fn post(_: Local, State(admin): State<Admin>, Path(path): Path<String>) -> Response {
    let Some((name, verb @ ("load" | "unload"))) = path.rsplit_once('/') else {
        let message = "POST /admin/models/NAME/load or /admin/models/NAME/unload";
        return refuse(&Error::new(ErrorKind::InvalidRequest, message), StatusCode::NOT_FOUND);
    };
    if let Some(refusal) = unknown(&admin, name) {
        return refusal;
    }
    let engine = admin.dispatch.engine();
    let done = if verb == "load" { engine.load(name).await } else { engine.unload(name).await };
    match done {
        Ok(()) => Json(describe(name, engine.state(name))).into_response(),
        Err(error) => error_response(Dialect::OpenAi, &error, None),
    }
}

fn unknown(admin: &Admin, name: &str) -> Option<Response> {
    if admin.dispatch.engine().has(name) {
        return None;
    }
    let error = Error::new(ErrorKind::ModelNotFound, format!("there is no local model {name:?}")).with_param("model");
    Some(error_response(Dialect::OpenAi, &error, None))
}

fn refuse(error: &Error, status: StatusCode) -> Response {
    let mut response = error_response(Dialect::OpenAi, error, None);
    *response.status_mut() = status;
    response
}

fn events(name: String, states: impl Stream<Item = ModelState>) -> impl Stream<Item = Result<Event, Infallible>> {
    states.map(move |state| Ok(Event::default().event(state.as_str()).data(describe(&name, state).to_string())))
}

fn describe(name: &str, state: ModelState) -> Value {
    let mut model = json!({ "name": name, "state": state.as_str() });
    match state {
        ModelState::Loading { bytes, total } => {
            model["bytes"] = json!(bytes);
            model["total"] = json!(total);
        }
        ModelState::Loaded { bytes, weights } => {
            model["bytes"] = json!(bytes);
            model["weights"] = json!(weights);
        }
        ModelState::OnDisk | ModelState::Waiting | ModelState::Failed => {}
    }
    model
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_page_of_another_site_is_not_let_in() {
        let asks = |origin: Option<&'static str>| {
            let mut headers =
                HeaderMap::from_iter([("host".parse().unwrap(), HeaderValue::from_static("127.0.0.1:1"))]);
            headers.extend(origin.map(|origin| ("origin".parse().unwrap(), HeaderValue::from_static(origin))));
            is_foreign_page(&headers)
        };
        assert!(!asks(None) && !asks(Some("http://127.0.0.1:1")));
        assert!(asks(Some("https://example.org")) && asks(Some("null")) && asks(Some("http://127.0.0.1:2")));
    }
}
