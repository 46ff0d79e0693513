//! What a provider's error answer means, whichever dialect it is written in.
//!
//! A provider's own words may quote the prompt or a part of a key. They stay in the body that is passed on to the caller;
//! the neutral message, which reaches logs and audit rows, is ours and carries only the status and the error's name.

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, ErrorKind, UpstreamBody};

use super::{anthropic, openai, refusal::Refusal};

const MAX_NAME_BYTES: usize = 64;

fn read(dialect: Dialect, body: &[u8]) -> Option<Refusal> {
    match dialect {
        Dialect::OpenAi => openai::refusal::read(body),
        Dialect::Anthropic => anthropic::refusal::read(body),
    }
}

/// The neutral error for an error answer; see [`decode_error`](super::decode_error).
pub(super) fn decode(dialect: Dialect, status: u16, body: Bytes) -> Error {
    let refusal = read(dialect, &body);
    let kind = kind(status, refusal.as_ref());
    let name = refusal.as_ref().and_then(|refusal| refusal.name.as_deref()).filter(|name| is_name(name));
    if kind == ErrorKind::Unauthorized {
        // The key is ours, not the caller's, and such answers may quote parts of it: not passed on.
        // Nor may the words be such that telemetry scrubs them.
        return Error::new(kind, format!("the provider refused the key configured for it (status {status})"));
    }
    let named = name.map(|name| format!(", {name}")).unwrap_or_default();
    let mut error = Error::new(kind, format!("the provider answered with an error (status {status}{named})"));
    if refusal.is_some() {
        error.upstream = Some(Box::new(UpstreamBody { dialect, status, body }));
    }
    error
}

/// The neutral error for an error that came as a frame of a running stream, or `None` if the frame is none.
pub(super) fn decode_frame(dialect: Dialect, data: &Bytes) -> Option<Error> {
    let refusal = read(dialect, data)?;
    let status = refusal.status.filter(|status| (400..600).contains(status));
    let status = status.unwrap_or_else(|| status_of(refusal.name.as_deref().unwrap_or_default()));
    Some(decode(dialect, status, data.clone()))
}

/// The status that goes with a name, for where a stream leaves no room for one.
fn status_of(name: &str) -> u16 {
    match name {
        "invalid_request_error" | "context_length_exceeded" => 400,
        "authentication_error" | "invalid_api_key" => 401,
        "permission_error" => 403,
        "not_found_error" | "model_not_found" => 404,
        "request_too_large" => 413,
        "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}

fn kind(status: u16, refusal: Option<&Refusal>) -> ErrorKind {
    let name = refusal.and_then(|refusal| refusal.name.as_deref()).unwrap_or_default();
    let message = refusal.and_then(|refusal| refusal.message.as_deref()).unwrap_or_default();
    match status {
        400 if name == "context_length_exceeded" || message.starts_with("prompt is too long") => {
            ErrorKind::ContextLength
        }
        401 | 403 => ErrorKind::Unauthorized,
        404 => ErrorKind::ModelNotFound,
        429 => ErrorKind::RateLimited,
        408 | 409 => ErrorKind::Upstream,
        400..=499 => ErrorKind::UpstreamRefused,
        _ => ErrorKind::Upstream,
    }
}

/// Whether a provider's text is a name, and not a sentence that could hold anything.
fn is_name(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(word)
}

/// The provider's body, when the caller speaks its dialect.
pub(super) fn own_body(error: &Error, dialect: Dialect) -> Option<Bytes> {
    error.upstream.as_ref().filter(|upstream| upstream.dialect == dialect).map(|upstream| upstream.body.clone())
}

/// The provider's words out of a body of another dialect.
pub(super) fn foreign_message(error: &Error) -> Option<String> {
    let upstream = error.upstream.as_ref()?;
    read(upstream.dialect, &upstream.body)?.message
}
