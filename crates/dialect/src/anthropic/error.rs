//! Errors as Anthropic writes them.

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, ErrorKind};
use serde_json::json;

use super::super::upstream_error;

/// The body of an error; a provider's own answer as it came when it is written in this dialect.
pub(in super::super) fn encode(error: &Error, request_id: &str) -> Bytes {
    if let Some(own) = upstream_error::own_body(error, Dialect::Anthropic) {
        return own;
    }
    let message = upstream_error::words(error).unwrap_or_else(|| match &error.param {
        // Anthropic's errors have no place for the field but their text.
        Some(param) if !error.message.contains(param.as_str()) => format!("{param}: {}", error.message),
        _ => error.message.clone(),
    });
    let error = json!({"type": name(error.kind), "message": message});
    super::super::json::bytes(&json!({"type": "error", "error": error, "request_id": request_id}))
}

fn name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidRequest
        | ErrorKind::ContextLength
        | ErrorKind::UnsupportedMediaType
        | ErrorKind::UpstreamRefused => "invalid_request_error",
        ErrorKind::BodyTooLarge => "request_too_large",
        ErrorKind::Unauthorized => "authentication_error",
        ErrorKind::Forbidden => "permission_error",
        ErrorKind::InsufficientQuota => "billing_error",
        ErrorKind::ModelNotFound => "not_found_error",
        ErrorKind::RateLimited => "rate_limit_error",
        ErrorKind::Overloaded | ErrorKind::Unavailable => "overloaded_error",
        ErrorKind::TimeoutFirstToken | ErrorKind::TimeoutIdle | ErrorKind::TimeoutTotal => "timeout_error",
        ErrorKind::Upstream | ErrorKind::Engine | ErrorKind::Internal => "api_error",
    }
}
