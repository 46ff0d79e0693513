//! What OpenAI's error answers say.

use serde::Deserialize;
use serde_json::Value;

use super::super::refusal::Refusal;

/// What a provider's error body says.
pub(in super::super) fn read(body: &[u8]) -> Option<Refusal> {
    /// Some servers write the code as a number, or the whole error as a string.
    #[derive(Deserialize)]
    struct Body {
        error: Value,
    }
    let Body { error } = serde_json::from_slice(body).ok()?;
    if error.is_null() {
        return None;
    }
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    let code = error.get("code");
    Some(Refusal {
        message: text("message").or_else(|| error.as_str().map(str::to_owned)),
        status: code.and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok()),
        name: text("code").or_else(|| text("type")),
    })
}
