//! What differs between providers' HTTP APIs beside the bodies: one file each, with the same functions.

mod anthropic;
mod openai;

use http::{HeaderMap, HeaderName, HeaderValue};
use mlx_manager_config::{ProviderKind, Secret};
use mlx_manager_signal::event::RateLimitSeen;

/// The caller's headers that may reach a provider. Credentials are none of them: keys never leave their provider.
const FORWARDED: [HeaderName; 4] = [
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("openai-beta"),
];

/// Those of the caller's headers that may reach a provider.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let values =
        FORWARDED.into_iter().flat_map(|name| headers.get_all(&name).iter().map(move |value| (name.clone(), value)));
    readable(values)
}

/// With the values that are text; of others nobody knows what to make.
fn readable<'a>(headers: impl Iterator<Item = (HeaderName, &'a HeaderValue)>) -> HeaderMap {
    let mut readable = HeaderMap::new();
    for (name, value) in headers.filter(|(_, value)| value.to_str().is_ok()) {
        readable.append(name, value.clone());
    }
    readable
}

/// What the caller gets a provider's `x-request-id` as.
const UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("x-upstream-request-id");

/// The path below the base URL.
pub(super) fn path(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::OpenAi => openai::PATH,
        ProviderKind::Anthropic => anthropic::PATH,
    }
}

/// The headers of a request: content type, credentials, and the caller's [`forwarded`] ones.
pub(super) fn request_headers(kind: ProviderKind, key: Option<&Secret>, forwarded: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in forwarded {
        headers.append(name, value.clone());
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
pub(super) fn response_headers(headers: &HeaderMap) -> HeaderMap {
    readable(headers.iter().filter_map(|(name, value)| {
        let shown = match name.as_str() {
            "x-request-id" => UPSTREAM_REQUEST_ID,
            "retry-after" | "retry-after-ms" | "request-id" | "x-should-retry" => name.clone(),
            text if text.starts_with("x-ratelimit-") || text.starts_with("anthropic-ratelimit-") => name.clone(),
            _ => return None,
        };
        Some((shown, value))
    }))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| (*name, HeaderValue::from_bytes(value).unwrap()));
        lines.map(|(name, value)| (HeaderName::from_static(name), value)).collect()
    }

    fn lines(headers: &HeaderMap) -> Vec<(&str, &[u8])> {
        headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    #[test]
    fn of_the_callers_headers_only_those_pass_that_are_for_providers() {
        let mut sent = headers(&[("authorization", b"Bearer k"), ("openai-beta", b"\xff"), ("anthropic-beta", b"a")]);
        sent.append("anthropic-beta", HeaderValue::from_static("b"));
        let passed = forwarded(&sent);
        assert_eq!(lines(&passed), [("anthropic-beta", &b"a"[..]), ("anthropic-beta", b"b")]);
        let request = request_headers(ProviderKind::Anthropic, None, &passed);
        assert_eq!(request.get_all("anthropic-beta").iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn of_a_providers_headers_those_pass_that_help_the_caller() {
        let sent = headers(&[
            ("server", b"x"),
            ("x-request-id", b"r"),
            ("x-ratelimit-remaining-tokens", b"7"),
            ("retry-after", b"\xff"),
        ]);
        let passed = response_headers(&sent);
        assert_eq!(lines(&passed), [("x-upstream-request-id", &b"r"[..]), ("x-ratelimit-remaining-tokens", b"7")]);
    }
}
