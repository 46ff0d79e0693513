//! Errors as OpenAI writes them.

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, ErrorKind};
use serde_json::json;

use super::super::upstream_error;

/// The body of an error; a provider's own answer as it came when it is written in this dialect.
pub(in super::super) fn encode(error: &Error) -> Bytes {
    if let Some(own) = upstream_error::own_body(error, Dialect::OpenAi) {
        return own;
    }
    let (kind, code) = names(error.kind);
    let message = upstream_error::words(error).unwrap_or_else(|| error.message.clone());
    let body = json!({"error": {"message": message, "type": kind, "param": error.param, "code": code}});
    super::super::json::bytes(&body)
}

/// `type` and `code`, as OpenAI's SDKs and their users know them.
fn names(kind: ErrorKind) -> (&'static str, Option<&'static str>) {
    match kind {
        ErrorKind::InvalidRequest | ErrorKind::UnsupportedMediaType | ErrorKind::UpstreamRefused => {
            ("invalid_request_error", None)
        }
        ErrorKind::ContextLength => ("invalid_request_error", Some("context_length_exceeded")),
        ErrorKind::BodyTooLarge => ("invalid_request_error", Some("request_too_large")),
        ErrorKind::Unauthorized => ("authentication_error", Some("invalid_api_key")),
        ErrorKind::Forbidden => ("permission_error", Some("forbidden")),
        ErrorKind::InsufficientQuota => ("insufficient_quota", Some("insufficient_quota")),
        ErrorKind::ModelNotFound => ("invalid_request_error", Some("model_not_found")),
        ErrorKind::RateLimited => ("rate_limit_error", Some("rate_limit_exceeded")),
        ErrorKind::Overloaded => ("overloaded_error", Some("overloaded")),
        ErrorKind::Unavailable
        | ErrorKind::Upstream
        | ErrorKind::Engine
        | ErrorKind::TimeoutFirstToken
        | ErrorKind::TimeoutIdle
        | ErrorKind::TimeoutTotal
        | ErrorKind::Internal => ("server_error", Some(kind.as_str())),
    }
}
