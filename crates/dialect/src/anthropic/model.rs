//! The list of models, as `GET /v1/models` and `/v1/models/{id}` give it.

use bytes::Bytes;
use serde::Serialize;

use super::super::{ModelEntry, json};

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    id: &'a str,
    display_name: &'a str,
    created_at: String,
}

#[derive(Serialize)]
struct List<'a> {
    data: Vec<Model<'a>>,
    has_more: bool,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
}

fn model(entry: &ModelEntry) -> Model<'_> {
    Model { r#type: "model", id: &entry.id, display_name: &entry.id, created_at: entry.created.to_string() }
}

pub(in super::super) fn encode_list(entries: &[ModelEntry]) -> Bytes {
    json::bytes(&List {
        data: entries.iter().map(model).collect(),
        has_more: false,
        first_id: entries.first().map(|entry| entry.id.as_str()),
        last_id: entries.last().map(|entry| entry.id.as_str()),
    })
}

pub(in super::super) fn encode(entry: &ModelEntry) -> Bytes {
    json::bytes(&model(entry))
}
