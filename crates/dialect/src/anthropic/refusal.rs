//! What Anthropic's error answers say.

use serde::Deserialize;

use super::super::refusal::Refusal;

/// What a provider's error body says.
pub(in super::super) fn read(body: &[u8]) -> Option<Refusal> {
    #[derive(Deserialize)]
    struct Body {
        error: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        r#type: Option<String>,
        message: Option<String>,
    }
    let Body { error } = serde_json::from_slice(body).ok()?;
    Some(Refusal { message: error.message, status: None, name: error.r#type })
}
