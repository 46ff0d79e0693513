//! OpenAI and everything compatible with it.

use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use mlx_manager_config::Secret;

pub(super) const PATH: &str = "/chat/completions";

pub(super) const REMAINING: [(&str, &str); 2] =
    [("requests", "x-ratelimit-remaining-requests"), ("tokens", "x-ratelimit-remaining-tokens")];

pub(super) fn credentials(key: &Secret) -> (HeaderName, String) {
    (AUTHORIZATION, format!("Bearer {}", key.expose()))
}

/// Nothing beyond the caller's own.
pub(super) fn complete(headers: &mut HeaderMap) {
    headers.remove("anthropic-version");
    headers.remove("anthropic-beta");
}
