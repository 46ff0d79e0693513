//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Uri, header::CONTENT_TYPE},
    response::Response,
};
use mlx_manager_catalogue::composed;
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::ModelEntry;
use mlx_manager_llm::{Context, Error, ErrorKind};

use super::{caller_dialect, error_response};
use crate::gateway::dispatch::{Dispatch, ListedModel};

pub(super) async fn list(State(dispatch): State<Arc<Dispatch>>, uri: Uri, headers: HeaderMap) -> Response {
    let models: Vec<_> = dispatch.models().into_iter().map(entry).collect();
    json(dialect::encode_models(caller_dialect(&uri, &headers), &models))
}

pub(super) async fn one(
    State(dispatch): State<Arc<Dispatch>>,
    Extension(context): Extension<Context>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let dialect = caller_dialect(&uri, &headers);
    // Local models are found by any form of their name, and listed by one.
    let composed = composed(&id);
    match dispatch.models().into_iter().find(|model| model.id == id || model.id == composed) {
        Some(model) => json(dialect::encode_model(dialect, &entry(model))),
        None => {
            let error =
                Error::new(ErrorKind::ModelNotFound, format!("the model {id:?} does not exist")).with_param("model");
            error_response(dialect, &error, Some(&context.request_id))
        }
    }
}

fn entry(model: ListedModel) -> ModelEntry {
    ModelEntry { id: model.id, created: model.created, owned_by: model.owner }
}

fn json(body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
