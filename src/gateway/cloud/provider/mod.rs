//! What differs between providers' HTTP APIs beside the bodies: one file each, with the same functions.

mod anthropic;
mod openai;

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION, request::Parts};
use mlx_manager_config::{Auth, ProviderKind, Secret};
use mlx_manager_signal::event::RateLimitSeen;
use reqwest::Url;

/// The caller's header that both APIs know.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What parameters of a query are called by which callers name themselves.
const CREDENTIALS: [&str; 5] = ["key", "api_key", "api-key", "access_token", "token"];

/// What of a caller's request may reach a provider beside its body. Credentials are none of it: keys never leave.
#[derive(Debug)]
pub struct Passed {
    /// Those of the headers that some API knows.
    pub headers: HeaderMap,
    /// The query, without its question mark.
    pub query: Option<String>,
}

impl Passed {
    /// Of a caller's request.
    pub fn of(request: &Parts) -> Self {
        Self { headers: known(&request.headers), query: request.uri.query().and_then(without_credentials) }
    }
}

fn known(headers: &HeaderMap) -> HeaderMap {
    let known = headers.iter().filter(|(name, _)| {
        let own = [openai::OWN_HEADERS, anthropic::OWN_HEADERS].iter().any(|prefix| name.as_str().starts_with(prefix));
        own || *name == IDEMPOTENCY_KEY
    });
    readable(known.map(|(name, value)| (name.clone(), value)))
}

/// The other parameters as they came; `None` when there are none.
fn without_credentials(query: &str) -> Option<String> {
    let is_credential = |parameter: &&str| {
        // Decoded, so that a name can't hide.
        let name = url::form_urlencoded::parse(parameter.as_bytes()).next().map(|(name, _)| name.to_ascii_lowercase());
        name.is_some_and(|name| CREDENTIALS.contains(&name.as_str()))
    };
    let kept: Vec<&str> = query.split('&').filter(|part| !part.is_empty() && !is_credential(part)).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// What of a provider's own query is a secret.
pub(super) fn secrets(url: &Url) -> Vec<Secret> {
    let secret = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
        let name = name.to_ascii_lowercase();
        ["key", "token", "secret", "sig"]
            .iter()
            .any(|word| name.contains(word))
            .then(|| Secret::new(value.into_owned()))
    };
    url.query_pairs().filter_map(secret).collect()
}

/// Where a call goes: the provider's own query comes first.
pub(super) fn url(base: &Url, query: Option<&str>) -> Url {
    let mut url = base.clone();
    if let Some(query) = query {
        let joined = base.query().filter(|own| !own.is_empty()).map(|own| format!("{own}&{query}"));
        url.set_query(Some(joined.as_deref().unwrap_or(query)));
    }
    url
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

/// The headers of a request: content type, credentials, and the caller's own that this API knows.
pub(super) fn request_headers(kind: ProviderKind, key: Option<(&Auth, &Secret)>, passed: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let own = match kind {
        ProviderKind::OpenAi => openai::OWN_HEADERS,
        ProviderKind::Anthropic => anthropic::OWN_HEADERS,
    };
    for (name, value) in passed.iter().filter(|(name, _)| *name == IDEMPOTENCY_KEY || name.as_str().starts_with(own)) {
        headers.append(name, value.clone());
    }
    match kind {
        ProviderKind::OpenAi => {}
        ProviderKind::Anthropic => anthropic::complete(&mut headers),
    }
    if let Some((auth, key)) = key {
        let (name, value) = match auth {
            Auth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose())),
            Auth::Header(name) => (name.clone(), key.expose().to_owned()),
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
pub(super) fn response_headers(headers: &HeaderMap, secrets: &[Secret]) -> HeaderMap {
    let echoes = |value: &HeaderValue| {
        secrets.iter().any(|secret| String::from_utf8_lossy(value.as_bytes()).contains(secret.expose()))
    };
    readable(headers.iter().filter(|(_, value)| !echoes(value)).filter_map(|(name, value)| {
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
    fn of_the_callers_headers_each_api_gets_those_that_it_knows() {
        let mut sent = headers(&[
            ("authorization", b"Bearer k"),
            ("openai-beta", b"\xff"),
            ("openai-project", b"p"),
            ("anthropic-beta", b"a"),
            ("anthropic-workspace", b"w"),
            ("idempotency-key", b"i"),
        ]);
        sent.append("anthropic-beta", HeaderValue::from_static("b,c"));
        let passed = known(&sent);
        let key = Secret::new("k");
        let anthropic = Auth::Header(HeaderName::from_static("x-api-key"));
        let request = request_headers(ProviderKind::Anthropic, Some((&anthropic, &key)), &passed);
        assert_eq!(request.get_all("anthropic-beta").iter().collect::<Vec<_>>(), ["a", "b,c"]);
        assert_eq!(
            (&request["anthropic-workspace"], &request["idempotency-key"]),
            (&"w".parse().unwrap(), &"i".parse().unwrap())
        );
        assert_eq!(request["x-api-key"], "k");
        assert!(!request.contains_key("openai-project") && !request.contains_key("authorization"));
        let request = request_headers(ProviderKind::OpenAi, Some((&Auth::Bearer, &key)), &passed);
        let names: Vec<_> = request.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(
            (&request["openai-project"], &request["authorization"]),
            (&"p".parse().unwrap(), &"Bearer k".parse().unwrap())
        );
    }

    #[test]
    fn the_callers_query_follows_the_providers_own_without_credentials() {
        let own = Url::parse("http://h/d/chat/completions?api-version=1").unwrap();
        let plain = Url::parse("http://h/v1/messages").unwrap();
        let of = |base: &Url, query: &str| url(base, without_credentials(query).as_deref()).to_string();
        assert_eq!(of(&own, "beta=true&x=%20a"), format!("{own}&beta=true&x=%20a"));
        assert_eq!(of(&plain, "beta=true"), "http://h/v1/messages?beta=true");
        assert_eq!(of(&plain, "a&key=k&API_KEY=k&b=&t%6Fken=k&api-key&access_token=k"), "http://h/v1/messages?a&b=");
        assert_eq!(of(&plain, "key=k"), plain.to_string());
        assert_eq!(of(&own, ""), own.to_string());
    }

    #[test]
    fn of_a_providers_headers_those_pass_that_help_the_caller() {
        let sent = headers(&[
            ("server", b"x"),
            ("x-request-id", b"r"),
            ("x-should-retry", b"false"),
            ("x-ratelimit-remaining-tokens", b"7"),
            ("retry-after", b"\xff"),
        ]);
        let passed = response_headers(&sent, &[Secret::new("sk-echo")]);
        let expected = [
            ("x-upstream-request-id", &b"r"[..]),
            ("x-should-retry", b"false"),
            ("x-ratelimit-remaining-tokens", b"7"),
        ];
        assert_eq!(lines(&passed), expected);
    }
}
