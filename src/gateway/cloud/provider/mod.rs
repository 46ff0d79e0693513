//! What differs between providers' HTTP APIs beside the bodies: one file each, with the same functions.

mod anthropic;
mod openai;

use http::{HeaderMap, HeaderName, HeaderValue};
use mlx_manager_config::{ProviderKind, Secret};
use mlx_manager_signal::event::RateLimitSeen;

/// The caller's headers that may reach a provider. Credentials are none of them: keys never leave their provider.
pub const FORWARDED_REQUEST_HEADERS: [&str; 4] =
    ["anthropic-beta", "anthropic-version", "idempotency-key", "openai-beta"];

/// The path below the base URL.
pub(super) fn path(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::OpenAi => openai::PATH,
        ProviderKind::Anthropic => anthropic::PATH,
    }
}

/// The headers of a request: content type, credentials, and those of the caller's that may pass.
pub(super) fn request_headers(kind: ProviderKind, key: Option<&Secret>, forwarded: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in forwarded.iter().filter(|(name, _)| FORWARDED_REQUEST_HEADERS.contains(&name.as_str())) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    match kind {
        ProviderKind::OpenAi => openai::complete(&mut headers),
        ProviderKind::Anthropic => anthropic::complete(&mut headers),
    }
    if let Some(key) = key {
        let (name, value) = match kind {
            ProviderKind::OpenAi => openai::credentials(key),
            ProviderKind::Anthropic => anthropic::credentials(key),
        };
        // The key was checked when the provider was made.
        if let Ok(mut value) = HeaderValue::try_from(value) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}

/// The headers of an answer that the caller should see. The provider's `x-request-id` gets another name, since that one
/// carries our own id.
pub(super) fn response_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = match name.as_str() {
                "x-request-id" => "x-upstream-request-id",
                name @ ("retry-after" | "retry-after-ms" | "request-id") => name,
                name if name.starts_with("x-ratelimit-") || name.starts_with("anthropic-ratelimit-") => name,
                _ => return None,
            };
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        })
        .collect()
}

/// States what is left of the rate limits, as far as the answer says.
pub(super) fn note_rate_limits(kind: ProviderKind, provider: &str, headers: &HeaderMap) {
    let names = match kind {
        ProviderKind::OpenAi => openai::REMAINING,
        ProviderKind::Anthropic => anthropic::REMAINING,
    };
    for (resource, name) in names {
        let remaining = headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        if let Some(remaining) = remaining {
            RateLimitSeen { provider, resource, remaining }.emit();
        }
    }
}
