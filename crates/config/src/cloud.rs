//! `[cloud]`, `[[providers]]` and `[[routes]]`

use std::time::Duration;

use http::{HeaderName, header};
use mlx_manager_llm::Priority;
use strum::VariantNames;

use super::{
    Secret,
    decode::Decoder,
    schema::{Key, Table},
    section::Section,
    setting::{Choice, Count, Filled, ProviderUrl, Raw, Setting, nearest},
};

/// Routing.
#[derive(Debug, Clone)]
pub struct CloudConfig {
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
    /// From the request to the first generated content.
    pub first_token_timeout: Duration,
    /// Between two chunks.
    pub idle_timeout: Duration,
    /// From the request to the end of the answer.
    pub total_timeout: Duration,
    /// Attempts beyond the first, before the first byte reaches the client.
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

/// The provider of a target that is the local engine.
pub const LOCAL: &str = "local";

/// Which targets serve a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Exact name or glob.
    pub model: String,
    /// Tried in order.
    pub targets: Vec<Target>,
    /// Of its requests, where the local engine has them wait; `None` leaves that to `local.priority`.
    pub priority: Option<Priority>,
}

impl Route {
    /// The model, if the rule names one and is no glob.
    pub fn named_model(&self) -> Option<&str> {
        (!self.model.contains(['*', '?', '[', ']', '{', '}', '\\'])).then_some(self.model.as_str())
    }
}

/// A provider, and the model's name there if it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The `[[providers]]` name, or `local`.
    pub provider: String,
    /// The model's name there; `None` keeps the caller's.
    pub model: Option<String>,
}

impl Target {
    /// Whether it is the local engine.
    pub fn is_local(&self) -> bool {
        self.provider == LOCAL
    }
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
const FIRST_TOKEN_TIMEOUT: Key =
    Key::new("first_token_timeout", "\"60 s\"", "from the request to the first generated content");
const IDLE_TIMEOUT: Key = Key::new("idle_timeout", "\"60 s\"", "between two chunks");
const TOTAL_TIMEOUT: Key = Key::new("total_timeout", "\"15 min\"", "");
const RETRIES: Key = Key::new("retries", "2", "beyond the first attempt, before the first byte reaches the client");
const BREAKER: Key =
    Key::new("breaker", "{ failures = 5, open = \"30 s\" }", "failures in a row, and how long it then stays open");

pub(super) const TABLE: Table = Table::single(
    "cloud",
    "How providers are called. Each [[providers]] entry may have any of these keys for itself.",
    &[CONNECT_TIMEOUT, FIRST_TOKEN_TIMEOUT, IDLE_TIMEOUT, TOTAL_TIMEOUT, RETRIES, BREAKER],
);

const MODEL: Key = Key::bare("model", "exact, or a glob");
const TARGETS: Key =
    Key::bare("targets", "tried in order; \"provider/other-model\" renames; \"local\" is this machine");

const PRIORITY: Key =
    Key::bare("priority", "interactive | normal | batch: who goes first on this machine, in place of local.priority")
        .sample("\"batch\"");

pub(super) const ROUTES: Table = Table::array(
    "routes",
    "The first that matches wins; without a match: a local model of that name, else 404.",
    &[MODEL, TARGETS, PRIORITY],
    &[&[(MODEL, "\"gpt-*\""), (TARGETS, "[\"openai\"]")], &[(MODEL, "\"claude-*\""), (TARGETS, "[\"anthropic\"]")]],
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

pub(super) fn decode(decoder: &mut Decoder<'_>) -> (Option<Vec<Provider>>, Option<CloudConfig>) {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let calls = decode_calls(decoder, &section, None);
    let mut names = Vec::new();
    let mut providers = Vec::new();
    for section in decoder.entries(&PROVIDERS) {
        providers.push(decode_provider(decoder, &section, calls.as_ref(), &mut names));
    }
    let mut routes: Vec<Option<Route>> = Vec::new();
    for section in decoder.entries(&ROUTES) {
        // A default route to a provider that the user's own list leaves out is nothing the user asked for.
        if !section.is_from_user() && !default_route_stands(&section, &names) {
            continue;
        }
        let route = decode_route(decoder, &section, &names);
        if let Some(route) = &route {
            warn_if_shadowed(decoder, &section, route, &routes);
        }
        routes.push(route);
    }
    let routes: Option<Vec<Route>> = routes.into_iter().collect();
    (calls.and(providers.into_iter().collect()), routes.map(|routes| CloudConfig { routes }))
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

fn decode_route<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, providers: &[String]) -> Option<Route> {
    decoder.check_keys(section, &[]);
    let model = decoder.required::<Filled>(section, &MODEL).map(|model| model.0);
    if let Some(Err(error)) = model.as_deref().map(globset::Glob::new) {
        let key = section.path_of(&MODEL);
        let place = decoder.place_of(&key);
        decoder.report(&key, place, "isn't a glob", &format!("{}; \\ escapes", error.kind()));
        return None;
    }
    if !decoder.given(section, &TARGETS) {
        decoder.required::<Filled>(section, &TARGETS);
        return None;
    }
    let targets = decoder.list::<Filled>(section, &TARGETS)?;
    if targets.is_empty() {
        let key = section.path_of(&TARGETS);
        let place = decoder.place_of(&key);
        decoder.report(&key, place, "is empty", "allowed: names of [[providers]], or \"local\"");
    }
    let mut checked = Vec::new();
    for (text, found) in targets {
        let (provider, model) = match text.0.split_once('/') {
            Some((provider, model)) => (provider, Some(model)),
            None => (text.0.as_str(), None),
        };
        let known = || providers.iter().map(String::as_str).chain([LOCAL]);
        if !known().any(|name| name == provider) {
            let hint = nearest(provider, known()).map_or_else(
                || format!("known providers: {}", known().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("names a provider \"{provider}\" that isn't configured");
            decoder.report_relation(&found.path, found.place, &message, &hint);
        } else if model == Some("") {
            let hint = "write \"provider\", or \"provider/other-model\"";
            decoder.report_relation(&found.path, found.place, "has no model after the slash", hint);
        }
        checked.push(Target { provider: provider.to_owned(), model: model.map(str::to_owned) });
    }
    let priority = decoder.get(section, &PRIORITY);
    if priority.is_some() && !checked.iter().any(Target::is_local) {
        let key = section.path_of(&PRIORITY);
        decoder.warn(&key, "has no effect: no target is \"local\"", "providers are not told; leave it out");
    }
    Some(Route { model: model?, targets: checked, priority })
}

/// Whether the providers of a default route are all there.
fn default_route_stands(section: &Section<'_>, providers: &[String]) -> bool {
    section.strings(&TARGETS).all(|target| providers.iter().any(|provider| provider == target))
}

fn warn_if_shadowed(decoder: &mut Decoder<'_>, section: &Section<'_>, route: &Route, earlier: &[Option<Route>]) {
    let covers = |other: &&Route| {
        let glob = globset::Glob::new(&other.model).map(|glob| glob.compile_matcher());
        other.model == route.model || other.model == "*" || glob.is_ok_and(|glob| glob.is_match(&route.model))
    };
    if let Some(other) = earlier.iter().flatten().find(covers) {
        let key = section.path_of(&MODEL);
        let message = format!("never matches: an earlier route takes \"{}\"", other.model);
        decoder.warn(&key, &message, "the first match wins; put the narrower route first");
    }
}
