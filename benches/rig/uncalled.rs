//! Load that never reaches a provider.

use anyhow::Result;
use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::load::{Chat, Load, TEXT};

/// A chat that a daemon understands and refuses, for it has no such model.
pub fn refused() -> Chat {
    let body = json!({ "model": "nobody-has-it", "messages": [{ "role": "user", "content": TEXT.repeat(15) }] });
    Chat { body: Bytes::from(body.to_string()), status: StatusCode::NOT_FOUND, ending: b"model_not_found" }
}

impl Load {
    /// Reads a page `count` times.
    pub async fn pages(&self, path: &'static str, count: usize) -> Result<()> {
        self.loops(count, move |mut connection| async move { connection.get(path).await.map(drop) }).await
    }
}
