//! `[cloud]` and `[[providers]]`

use std::time::Duration;

use http::{HeaderName, header};
use strum::VariantNames;

use super::{
    Secret,
    decode::Decoder,
    prices::{self, Price},
    routes::{self, LOCAL, Route},
    schema::{Key, Table},
    section::Section,
    setting::{Choice, Count, DurationOrZero, ProviderUrl, Raw, Setting},
};

/// What is said of requests, whoever answers them.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// From a request to the head of its streamed answer, which then begins without content and stays alive by pings; a
    /// failure can still lead to the next target until content came. Zero sends the head at once.
    pub stream_commit_after: Duration,
    /// The first that matches wins; without a match it is a local model of that name, else 404.
    pub routes: Vec<Route>,
}

/// A cloud provider.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Unique name; a metric label and the audit row's `provider`.
    pub name: String,
    /// The dialect it speaks.
    pub kind: ProviderKind,
    /// Base URL, its path without a trailing slash; an OpenAI one includes `/v1`. It may have a query.
    pub base_url: String,
    /// `None`: it needs no key. Empty: the provider is off.
    pub api_key: Option<Secret>,
    /// How the key is sent.
    pub auth: Auth,
    /// Where the key comes from, for the message that names it: its place in the file, and the variable that it is read
    /// from if there is one (`providers[0].api_key (OPENAI_API_KEY)`).
    pub api_key_path: String,
    /// Whether our trace context is sent along; by default only to hosts on the operator's own network.
    pub send_trace_context: bool,
    /// Timeouts, retries and breaker: `[cloud]` with this provider's own values over it.
    pub calls: Calls,
}

/// The dialect a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI-compatible.
    OpenAi,
    /// Anthropic-compatible.
    Anthropic,
}

/// How a provider is sent its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// As `Authorization: Bearer KEY`.
    Bearer,
    /// As it is, in a header of this name.
    Header(HeaderName),
}

impl Setting for Auth {
    fn allowed() -> String {
        "\"bearer\", \"x-api-key\", \"api-key\", or \"header:NAME\" for a header of another name".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or(None)?.trim().to_ascii_lowercase();
        let name = match text.as_str() {
            "bearer" => return Ok(Self::Bearer),
            "x-api-key" | "api-key" => text.as_str(),
            _ => text.strip_prefix("header:").map(str::trim).ok_or(None)?,
        };
        let name = HeaderName::try_from(name).map_err(|_| None)?;
        // What these say belongs to the message, and a key in their place would break it.
        let taken = [
            header::HOST,
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::CONNECTION,
            header::TRANSFER_ENCODING,
            header::TE,
            header::UPGRADE,
        ];
        if taken.contains(&name) { Err(None) } else { Ok(Self::Header(name)) }
    }
}

/// How a provider is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// To connect.
    pub connect_timeout: Duration,
    /// Silence before the first generated content; a ping or a comment ends it, since it proves life.
    pub first_token_timeout: Duration,
    /// Silence between two chunks.
    pub idle_timeout: Duration,
    /// From the request to the end of the answer, over all its attempts and targets.
    pub total_timeout: Duration,
    /// Attempts beyond the first, before content reaches the client.
    pub retries: u32,
    /// When a failing provider is left alone.
    pub breaker: Breaker,
}

/// A circuit breaker.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open before one probe is let through.
    pub open: Duration,
}

const NAME: Key = Key::bare("name", "unique; a metric label and the audit's `provider`");
const KIND: Key = Key::bare("kind", "openai | anthropic: the dialect it speaks");
const BASE_URL: Key = Key::bare("base_url", "for openai with its /v1; a query goes along with every call");
const API_KEY: Key = Key::bare("api_key", "empty: the provider is off; left out: it needs no key");
const AUTH: Key =
    Key::bare("auth", "bearer | x-api-key | api-key | header:NAME: how the key is sent; by default as the kind has it")
        .sample("\"bearer\"");
const SEND_TRACE_CONTEXT: Key =
    Key::bare("send_trace_context", "traceparent to the provider; by default only to hosts on the own network")
        .sample("true");

pub(super) const PROVIDERS: Table = Table::array(
    "providers",
    "",
    &[
        NAME,
        KIND,
        BASE_URL,
        API_KEY,
        AUTH,
        SEND_TRACE_CONTEXT,
        CONNECT_TIMEOUT.inherited(),
        FIRST_TOKEN_TIMEOUT.inherited(),
        IDLE_TIMEOUT.inherited(),
        TOTAL_TIMEOUT.inherited(),
        RETRIES.inherited(),
        BREAKER.inherited(),
    ],
    &[
        &[
            (NAME, "\"openai\""),
            (KIND, "\"openai\""),
            (BASE_URL, "\"https://api.openai.com/v1\""),
            (API_KEY, "\"${OPENAI_API_KEY:-}\""),
        ],
        &[
            (NAME, "\"anthropic\""),
            (KIND, "\"anthropic\""),
            (BASE_URL, "\"https://api.anthropic.com\""),
            (API_KEY, "\"${ANTHROPIC_API_KEY:-}\""),
        ],
    ],
);

const CONNECT_TIMEOUT: Key = Key::new("connect_timeout", "\"10 s\"", "");
const FIRST_TOKEN_TIMEOUT: Key = Key::new(
    "first_token_timeout",
    "\"12 min\"",
    "silence before the first generated content: pings and comments prove life",
);
const IDLE_TIMEOUT: Key = Key::new("idle_timeout", "\"12 min\"", "silence between two chunks");
const TOTAL_TIMEOUT: Key = Key::new("total_timeout", "\"1 h\"", "of a request, over all its attempts and targets");
const RETRIES: Key = Key::new("retries", "2", "beyond the first attempt, before content reaches the client");
const BREAKER: Key =
    Key::new("breaker", "{ failures = 5, open = \"30 s\" }", "failures in a row, and how long it then stays open");

const STREAM_COMMIT_AFTER: Key = Key::new(
    "stream_commit_after",
    "\"10 s\"",
    "a streamed answer that has no content by then begins with its head and pings; failover stays possible until content came",
);

pub(super) const TABLE: Table = Table::single(
    "cloud",
    "How providers are called. Each [[providers]] entry may have any of these keys but the last for itself.",
    &[CONNECT_TIMEOUT, FIRST_TOKEN_TIMEOUT, IDLE_TIMEOUT, TOTAL_TIMEOUT, RETRIES, BREAKER, STREAM_COMMIT_AFTER],
);

const FAILURES: Key = Key::new("failures", "5", "");
const OPEN: Key = Key::new("open", "\"30 s\"", "");

const BREAKER_KEYS: &[Key] = &[FAILURES, OPEN];
const OWN_BREAKER_KEYS: &[Key] = &[FAILURES.inherited(), OPEN.inherited()];

/// Names that routes, the audit and metrics have a use for.
const RESERVED: [(&str, &str); 4] = [
    (LOCAL, "that name stands for this machine's own models"),
    ("mlx", "that name stands for this machine's own models"),
    ("_none", "that name stands for requests that reached no provider"),
    ("_other", "that name stands for all that have none"),
];

impl ProviderKind {
    /// The names of all kinds.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// The name in the configuration, and of the kind in telemetry.
    pub const fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// How the vendor itself is sent its key.
    const fn auth(self) -> Auth {
        match self {
            Self::OpenAi => Auth::Bearer,
            Self::Anthropic => Auth::Header(HeaderName::from_static("x-api-key")),
        }
    }
}

impl Choice for ProviderKind {
    const CHOICES: &'static [(&'static str, Self)] =
        &[(Self::OpenAi.as_str(), Self::OpenAi), (Self::Anthropic.as_str(), Self::Anthropic)];
}

/// `[[providers]]` and what refers to them.
type Decoded = (Option<Vec<Provider>>, Option<CloudConfig>, Option<Vec<Price>>);

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Decoded {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let calls = decode_calls(decoder, &section, None);
    let stream_commit_after = decoder.get::<DurationOrZero>(&section, &STREAM_COMMIT_AFTER);
    let mut names = Vec::new();
    let mut providers = Vec::new();
    for section in decoder.entries(&PROVIDERS) {
        providers.push(decode_provider(decoder, &section, calls.as_ref(), &mut names));
    }
    let routes = routes::decode(decoder, &names);
    let cloud = stream_commit_after.zip(routes);
    let cloud = cloud.map(|(DurationOrZero(stream_commit_after), routes)| CloudConfig { stream_commit_after, routes });
    let prices = prices::decode(decoder, &names);
    (calls.and(providers.into_iter().collect()), cloud, prices)
}

/// Timeouts, retries and breaker; what is absent comes from `base`, or from the keys' defaults.
fn decode_calls<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, base: Option<&Calls>) -> Option<Calls> {
    let connect = decode_duration(decoder, section, &CONNECT_TIMEOUT, base.map(|base| base.connect_timeout));
    let first = decode_duration(decoder, section, &FIRST_TOKEN_TIMEOUT, base.map(|base| base.first_token_timeout));
    let idle = decode_duration(decoder, section, &IDLE_TIMEOUT, base.map(|base| base.idle_timeout));
    let total = decode_duration(decoder, section, &TOTAL_TIMEOUT, base.map(|base| base.total_timeout));
    let retries = match base {
        Some(base) if !decoder.given(section, &RETRIES) => Some(base.retries),
        _ => decoder.get::<Count<0, 20>>(section, &RETRIES).map(|count| count.0),
    };
    let breaker = match base {
        Some(base) if !decoder.given(section, &BREAKER) => Some(base.breaker.clone()),
        _ => decode_breaker(decoder, section, base.map(|base| &base.breaker)),
    };
    Some(Calls {
        connect_timeout: connect?,
        first_token_timeout: first?,
        idle_timeout: idle?,
        total_timeout: total?,
        retries: retries?,
        breaker: breaker?,
    })
}

fn decode_duration<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    key: &Key,
    base: Option<Duration>,
) -> Option<Duration> {
    match base {
        Some(base) if !decoder.given(section, key) => Some(base),
        _ => decoder.get(section, key),
    }
}

fn decode_breaker<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, base: Option<&Breaker>) -> Option<Breaker> {
    let keys = if base.is_some() { OWN_BREAKER_KEYS } else { BREAKER_KEYS };
    let breaker = decoder.nested(section, &BREAKER, keys)?;
    decoder.check_keys(&breaker, &[]);
    let failures = match base {
        Some(base) if !decoder.given(&breaker, &FAILURES) => Some(base.failures),
        _ => decoder.get::<Count<1, 1_000_000>>(&breaker, &FAILURES).map(|count| count.0),
    };
    let open = decode_duration(decoder, &breaker, &OPEN, base.map(|base| base.open));
    Some(Breaker { failures: failures?, open: open? })
}

fn decode_provider<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    calls: Option<&Calls>,
    names: &mut Vec<String>,
) -> Option<Provider> {
    decoder.check_keys(section, &[]);
    let name = decoder.unique_name(section, &NAME, names);
    if let Some((reserved, meaning)) = RESERVED.iter().find(|(reserved, _)| name.as_deref() == Some(reserved)) {
        let key = section.path_of(&NAME);
        decoder.report(&key, decoder.place_of(&key), &format!("can't be \"{reserved}\""), meaning);
    }
    let kind = decoder.required(section, &KIND);
    let base_url = decoder.required::<ProviderUrl>(section, &BASE_URL).map(|url| url.0);
    let key = decoder.find(section, &API_KEY);
    let variable = key.as_ref().ok().and_then(|found| found.as_ref()?.lone_variable.clone());
    let variable = variable.map(|name| format!(" ({name})")).unwrap_or_default();
    let api_key = match key {
        Ok(Some(found)) => decoder.read::<Secret>(&found).map(Some),
        Ok(None) => Some(None),
        Err(_) => None,
    };
    let auth = decoder.get::<Auth>(section, &AUTH);
    let trace_context = decoder.get::<bool>(section, &SEND_TRACE_CONTEXT);
    // Without [cloud]'s own values there is nothing to lay these over, but they are still read for their problems.
    let defaults = calls.cloned().unwrap_or(Calls {
        connect_timeout: Duration::MAX,
        first_token_timeout: Duration::MAX,
        idle_timeout: Duration::MAX,
        total_timeout: Duration::MAX,
        retries: 0,
        breaker: Breaker { failures: 1, open: Duration::MAX },
    });
    let calls = decode_calls(decoder, section, Some(&defaults));
    if let (Some(ProviderKind::Anthropic), Some(url)) = (&kind, &base_url)
        && url.split('?').next().is_some_and(|url| url.ends_with("/v1"))
    {
        let key = section.path_of(&BASE_URL);
        decoder.warn(&key, "ends with /v1, which is added for kind = \"anthropic\"", "leave out the /v1");
    }
    let base_url = base_url?;
    let kind: ProviderKind = kind?;
    Some(Provider {
        name: name?,
        kind,
        auth: auth.unwrap_or_else(|| kind.auth()),
        send_trace_context: trace_context.unwrap_or_else(|| is_own_network(&base_url)),
        base_url,
        api_key: api_key?,
        api_key_path: format!("{}{variable}", section.path_of(&API_KEY)),
        calls: calls?,
    })
}

/// Whether a URL's host is this machine or on a private network: a loopback, private or link-local address, a name
/// without a dot, or one under a suffix that public DNS doesn't have.
fn is_own_network(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
    match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => address.is_loopback() || address.is_private() || address.is_link_local(),
        Ok(std::net::IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
        Err(_) => {
            let suffixes = [".localhost", ".local", ".internal", ".lan", ".home.arpa"];
            !host.contains('.') || suffixes.iter().any(|suffix| host.ends_with(suffix))
        }
    }
}
