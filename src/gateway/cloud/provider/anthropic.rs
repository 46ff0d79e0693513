//! Anthropic and everything compatible with it.

use http::{HeaderMap, HeaderValue};

pub(super) const PATH: &str = "/v1/messages";

pub(super) const REMAINING: [(&str, &str); 2] =
    [("requests", "anthropic-ratelimit-requests-remaining"), ("tokens", "anthropic-ratelimit-tokens-remaining")];

/// The version of the API that is assumed for a caller who names none.
const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// The caller's headers that are for this API begin so.
pub(super) const OWN_HEADERS: &str = "anthropic-";

/// The API refuses requests without a version.
pub(super) fn complete(headers: &mut HeaderMap) {
    headers.entry("anthropic-version").or_insert(VERSION);
}
