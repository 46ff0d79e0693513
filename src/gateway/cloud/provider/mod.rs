//! What differs between providers' HTTP APIs beside the bodies: one file each, with the same functions.

mod anthropic;
mod openai;

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
    request::Parts,
};
use mlx_manager_config::{Auth, ProviderKind, Secret};
use mlx_manager_signal::event::RateLimitSeen;
use percent_encoding::percent_decode_str;
use url::Url;

use super::dial::AGENT;

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
pub(super) fn uri(base: &Uri, query: Option<&str>) -> Uri {
    let Some(query) = query else { return base.clone() };
    let path = match base.query().filter(|own| !own.is_empty()) {
        Some(own) => format!("{}?{own}&{query}", base.path()),
        None => format!("{}?{query}", base.path()),
    };
    let mut parts = base.clone().into_parts();
    // A query that came in one request line can stand in another.
    parts.path_and_query = path.parse().ok().or(parts.path_and_query);
    Uri::from_parts(parts).unwrap_or_else(|_| base.clone())
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

/// The headers that every request has: content type, who asks, credentials. Those may also stand in a URL, from where a key
/// takes their place.
pub(super) fn own_headers(url: &Url, key: Option<(&Auth, &Secret)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    // Else any encoding would do, and each would have to be undone.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(USER_AGENT, AGENT);
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (name, password) = (plain(url.username()), plain(url.password().unwrap_or_default()));
    let has_name = !name.is_empty() || !password.is_empty();
    let basic = has_name.then(|| (AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))));
    let key = key.map(|(auth, key)| match auth {
        Auth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose())),
        Auth::Header(name) => (name.clone(), key.expose().to_owned()),
    });
    for (name, value) in basic.into_iter().chain(key) {
        // The key was checked when the provider was made.
        if let Ok(mut value) = HeaderValue::try_from(value) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}

/// The headers of a request: those that every one has, and the caller's own that this API knows.
pub(super) fn request_headers(kind: ProviderKind, own: &HeaderMap, passed: &HeaderMap) -> HeaderMap {
    let mut headers = own.clone();
    let prefix = match kind {
        ProviderKind::OpenAi => openai::OWN_HEADERS,
        ProviderKind::Anthropic => anthropic::OWN_HEADERS,
    };
    for (name, value) in passed.iter().filter(|(name, _)| *name == IDEMPOTENCY_KEY || name.as_str().starts_with(prefix))
    {
        headers.append(name, value.clone());
    }
    match kind {
        ProviderKind::OpenAi => {}
        ProviderKind::Anthropic => anthropic::complete(&mut headers),
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
        let url = Url::parse("https://h/v1").unwrap();
        let own = |auth| own_headers(&url, Some((auth, &key)));
        let request = request_headers(ProviderKind::Anthropic, &own(&anthropic), &passed);
        assert_eq!(request.get_all("anthropic-beta").iter().collect::<Vec<_>>(), ["a", "b,c"]);
        assert_eq!(
            (&request["anthropic-workspace"], &request["idempotency-key"]),
            (&"w".parse().unwrap(), &"i".parse().unwrap())
        );
        assert_eq!(request["x-api-key"], "k");
        assert!(!request.contains_key("openai-project") && !request.contains_key("authorization"));
        let request = request_headers(ProviderKind::OpenAi, &own(&Auth::Bearer), &passed);
        let names: Vec<_> = request.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 7, "{names:?}");
        assert_eq!(
            (&request["openai-project"], &request["authorization"]),
            (&"p".parse().unwrap(), &"Bearer k".parse().unwrap())
        );
    }

    #[test]
    fn credentials_of_a_url_are_sent_where_there_is_no_key() {
        let url = Url::parse("https://na%20me:p%C3%A4ss@h/v1").unwrap();
        let sent = |key| own_headers(&url, key)[AUTHORIZATION].to_str().unwrap().to_owned();
        assert_eq!(sent(None), "Basic bmEgbWU6cMOkc3M=");
        assert_eq!(sent(Some((&Auth::Bearer, &Secret::new("k")))), "Bearer k");
        assert!(!own_headers(&Url::parse("https://h/v1").unwrap(), None).contains_key(AUTHORIZATION));
    }

    #[test]
    fn the_callers_query_follows_the_providers_own_without_credentials() {
        let own = Uri::from_static("http://h/d/chat/completions?api-version=1");
        let plain = Uri::from_static("http://h/v1/messages");
        let of = |base: &Uri, query: &str| uri(base, without_credentials(query).as_deref()).to_string();
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
