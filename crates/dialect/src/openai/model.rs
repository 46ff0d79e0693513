//! The list of models, as `GET /v1/models` and `/v1/models/{id}` give it.

use bytes::Bytes;
use serde::Serialize;

use super::super::{ModelEntry, json};

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'a str,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

fn model(entry: &ModelEntry) -> Model<'_> {
    Model { id: &entry.id, object: "model", created: entry.created.as_second(), owned_by: &entry.owned_by }
}

pub(in super::super) fn encode_list(entries: &[ModelEntry]) -> Bytes {
    json::bytes(&List { object: "list", data: entries.iter().map(model).collect() })
}

pub(in super::super) fn encode(entry: &ModelEntry) -> Bytes {
    json::bytes(&model(entry))
}
