//! Anthropic and everything compatible with it.

use http::{HeaderMap, HeaderName, HeaderValue};
use mlx_manager_config::Secret;

pub(super) const PATH: &str = "/v1/messages";

pub(super) const REMAINING: [(&str, &str); 2] =
    [("requests", "anthropic-ratelimit-requests-remaining"), ("tokens", "anthropic-ratelimit-tokens-remaining")];

/// The version of the API that is assumed for a caller who names none.
const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

pub(super) fn credentials(key: &Secret) -> (HeaderName, String) {
    (HeaderName::from_static("x-api-key"), key.expose().to_owned())
}

/// The API refuses requests without a version.
pub(super) fn complete(headers: &mut HeaderMap) {
    headers.remove("openai-beta");
    headers.entry("anthropic-version").or_insert(VERSION);
}
