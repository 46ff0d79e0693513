//! `[[otlp]]`

use std::{path::PathBuf, time::Duration};

use strum::{EnumCount, VariantNames};

use super::{
    Secret,
    decode::Decoder,
    overlay::Overlay,
    problem::Place,
    schema::{Key, Table},
    section::{Refusal, Section},
    setting::{BaseUrl, Choice, Raw, Size},
};

/// One destination of telemetry.
#[derive(Debug, Clone)]
pub struct OtlpConfig {
    /// Unique name; a metric label.
    pub name: String,
    /// What kind of endpoint it is.
    pub kind: OtlpKind,
    /// Base URL, without `/v1/traces`. For Logfire it is worked out from the token or LOGFIRE_BASE_URL.
    pub endpoint: String,
    /// How batches travel; always HTTP to Logfire.
    pub protocol: Protocol,
    /// Logfire's write token; empty when there is none.
    pub token: Secret,
    /// Further request headers (a collector's credentials); metadata of each call with gRPC.
    pub headers: Vec<(String, Secret)>,
    /// Whether to send.
    pub send: Send,
    /// What to send.
    pub signals: Vec<Signal>,
    /// How long one export may take.
    pub timeout: Duration,
    /// Where batches wait while the endpoint is away or slow; `None` keeps in memory what fits there, for minutes at most.
    pub spool: Option<Spool>,
}

impl OtlpConfig {
    /// Whether anything is to be sent there at all.
    pub fn is_active(&self) -> bool {
        match self.send {
            Send::Always => true,
            Send::Never => false,
            Send::IfTokenPresent => !self.token.is_empty(),
        }
    }
}

/// What kind of endpoint it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpKind {
    /// Pydantic Logfire.
    Logfire,
    /// Any OpenTelemetry collector.
    Otlp,
}

/// How batches travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A POST per batch, to a path per signal.
    HttpProtobuf,
    /// A unary gRPC call per batch.
    Grpc,
}

/// Whether to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Send {
    /// In any case.
    Always,
    /// Not at all.
    Never,
    /// When there is a token.
    IfTokenPresent,
}

/// A kind of telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumCount, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Log records.
    Logs,
}

/// A folder for batches that could not be sent.
#[derive(Debug, Clone)]
pub struct Spool {
    /// The folder, already joined with its base.
    pub dir: PathBuf,
    /// Its size limit in bytes; the oldest batches are dropped first.
    pub size: u64,
}

const NAME: Key = Key::bare("name", "unique; a metric label");
const KIND: Key = Key::bare("kind", "logfire | otlp (any OpenTelemetry collector)");
const TOKEN: Key =
    Key::new("token", "\"${LOGFIRE_TOKEN:-}\"", "the write token; its prefix says which region it is for")
        .only("logfire");
const SEND: Key = Key::bare("send", "always | never | if-token-present; LOGFIRE_SEND_TO_LOGFIRE");
const ENDPOINT: Key = Key::bare("endpoint", "without /v1/traces; Logfire's follows from the token or LOGFIRE_BASE_URL")
    .sample("\"https://logfire-eu.pydantic.dev\"");
const PROTOCOL: Key = Key::new("protocol", "\"http/protobuf\"", "http/protobuf | grpc, which Logfire doesn't take");
const HEADERS: Key = Key::bare("headers", "further request headers; with gRPC its metadata")
    .sample("{ Authorization = \"Basic ${COLLECTOR_LOGIN}\" }");
const SIGNALS: Key = Key::new("signals", "[\"traces\", \"metrics\", \"logs\"]", "");
const TIMEOUT: Key = Key::new("timeout", "\"10 s\"", "of one export");
pub(super) const SPOOL: Key = Key::bare(
    "spool",
    "where batches wait while the endpoint is away; left out: in memory, where a busy minute fills the room",
);

pub(super) const TABLE: Table = Table {
    header: "otlp",
    doc: "Where traces, metrics and logs are sent.",
    keys: &[NAME, KIND, TOKEN, SEND, ENDPOINT, PROTOCOL, HEADERS, SIGNALS, TIMEOUT, SPOOL],
    entries: Some(&[&[
        (NAME, "\"logfire\""),
        (KIND, "\"logfire\""),
        (TOKEN, "\"${LOGFIRE_TOKEN:-}\""),
        (SEND, "\"if-token-present\""),
        (SIGNALS, "[\"traces\", \"metrics\", \"logs\"]"),
        (TIMEOUT, "\"10 s\""),
        (SPOOL, "{ dir = \"spool\", size = \"256 MB\" }"),
    ]]),
    suggestions: &[&[
        (NAME, "\"collector\""),
        (KIND, "\"otlp\""),
        (ENDPOINT, "\"http://127.0.0.1:4318\""),
        (PROTOCOL, "\"http/protobuf\""),
        (SPOOL, "{ dir = \"spool\", size = \"256 MB\" }"),
    ]],
};

pub(super) const DIR: Key = Key::new("dir", "\"spool\"", "");
const SIZE: Key = Key::new("size", "\"256 MB\"", "");

const SPOOL_KEYS: &[Key] = &[DIR, SIZE];

const US: &str = "https://logfire-us.pydantic.dev";
const EU: &str = "https://logfire-eu.pydantic.dev";

impl Choice for OtlpKind {
    const CHOICES: &'static [(&'static str, Self)] = &[("logfire", Self::Logfire), ("otlp", Self::Otlp)];
}

impl Choice for Send {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("always", Self::Always), ("never", Self::Never), ("if-token-present", Self::IfTokenPresent)];
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; <Self as EnumCount>::COUNT] = [Self::Traces, Self::Metrics, Self::Logs];

    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// The name in the configuration, in labels and on disk.
    pub const fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl Choice for Signal {
    const CHOICES: &'static [(&'static str, Self)] = &[
        (Self::Traces.as_str(), Self::Traces),
        (Self::Metrics.as_str(), Self::Metrics),
        (Self::Logs.as_str(), Self::Logs),
    ];
}

impl Choice for Protocol {
    const CHOICES: &'static [(&'static str, Self)] = &[("http/protobuf", Self::HttpProtobuf), ("grpc", Self::Grpc)];
}

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<Vec<OtlpConfig>> {
    let mut names = Vec::new();
    let mut destinations = Vec::new();
    for section in decoder.entries(&TABLE) {
        destinations.push(decode_destination(decoder, &section, &mut names));
    }
    destinations.into_iter().collect()
}

fn decode_destination<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    names: &mut Vec<String>,
) -> Option<OtlpConfig> {
    decoder.check_keys(section, &[]);
    let name = decoder.unique_name(section, &NAME, names);
    let kind = decoder.required::<OtlpKind>(section, &KIND);
    let protocol = decode_protocol(decoder, section, kind);
    let headers = decode_headers(decoder, section, protocol);
    let signals = decoder.list::<Signal>(section, &SIGNALS).map(|found| unique(found.into_iter().map(|pair| pair.0)));
    let timeout = decoder.get(section, &TIMEOUT);
    let spool = decode_spool(decoder, section);
    let Destination { token, send, endpoint } = match kind? {
        OtlpKind::Logfire => decode_logfire(decoder, section),
        OtlpKind::Otlp => decode_collector(decoder, section, protocol),
    };
    if let (Some(protocol), Some(endpoint)) = (protocol, &endpoint) {
        warn_of_port(decoder, section, protocol, endpoint);
    }
    Some(OtlpConfig {
        name: name?,
        kind: kind?,
        endpoint: endpoint?,
        protocol: protocol?,
        token: token?,
        headers: headers?,
        send: send?,
        signals: signals?,
        timeout: timeout?,
        spool: spool?,
    })
}

fn decode_protocol<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, kind: Option<OtlpKind>) -> Option<Protocol> {
    let found = decoder.find(section, &PROTOCOL).ok().flatten()?;
    let protocol = decoder.read(&found)?;
    if protocol == Protocol::Grpc && kind == Some(OtlpKind::Logfire) {
        let hint = Some("leave it out; a collector is kind = \"otlp\"".to_owned());
        decoder.refuse(
            &found,
            Refusal { allowed: "\"http/protobuf\", the only protocol that Logfire takes", hint, secret: false },
        );
        return None;
    }
    Some(protocol)
}

/// Collectors listen for each protocol on a port of its own, and what the other one says there is noise to them.
fn warn_of_port(decoder: &mut Decoder<'_>, section: &Section<'_>, protocol: Protocol, endpoint: &str) {
    let port = endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.port_u16());
    let (message, hint) = match (protocol, port) {
        (Protocol::HttpProtobuf, Some(4317)) => (
            "has the port that collectors take gRPC on, and `protocol` is \"http/protobuf\"",
            "protocol = \"grpc\", or port 4318",
        ),
        (Protocol::Grpc, Some(4318)) => (
            "has the port that collectors take HTTP on, and `protocol` is \"grpc\"",
            "protocol = \"http/protobuf\", or port 4317",
        ),
        _ => return,
    };
    decoder.warn(&section.path_of(&ENDPOINT), message, hint);
}

/// What depends on the kind of destination; `None` for what was reported.
struct Destination {
    token: Option<Secret>,
    send: Option<Send>,
    endpoint: Option<String>,
}

fn decode_logfire<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>) -> Destination {
    overlay(decoder, section, &ENDPOINT, "LOGFIRE_BASE_URL");
    overlay(decoder, section, &SEND, "LOGFIRE_SEND_TO_LOGFIRE");
    let found = decoder.find(section, &TOKEN).ok().flatten();
    let token = found.as_ref().and_then(|found| decoder.read::<Secret>(found));
    let send = decode_send(decoder, section, Send::IfTokenPresent);
    let endpoint = decode_endpoint(decoder, section, None);
    let region = token.as_ref().and_then(|token| region(token.expose()));
    let sends = send != Some(Send::Never) && token.as_ref().is_some_and(|token| !token.is_empty());
    if sends && region.is_none() && endpoint == Some(None) {
        let variable = found.and_then(|found| found.lone_variable).map(|name| format!("({name}) ")).unwrap_or_default();
        let message = format!(
            "{variable}starts with neither of the known prefixes pylf_v1_us_ and pylf_v1_eu_, so the US region is assumed"
        );
        let hint = "check that it is a whole write token, or name the region by `endpoint`";
        decoder.warn(&section.path_of(&TOKEN), &message, hint);
    }
    let endpoint = endpoint.map(|endpoint| endpoint.unwrap_or_else(|| region.unwrap_or(US).to_owned()));
    if send == Some(Send::Always) && token.as_ref().is_some_and(Secret::is_empty) {
        let hint = "set LOGFIRE_TOKEN, or send = \"if-token-present\"";
        decoder.warn(&section.path_of(&SEND), "is \"always\", but there is no token", hint);
    }
    Destination { token, send, endpoint }
}

/// The endpoint of the region that a token's prefix names.
fn region(token: &str) -> Option<&'static str> {
    let rest = token.strip_prefix("pylf_v")?.trim_start_matches(|character: char| character.is_ascii_digit());
    [("_us_", US), ("_eu_", EU)].into_iter().find_map(|(name, endpoint)| rest.starts_with(name).then_some(endpoint))
}

fn decode_collector<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, protocol: Option<Protocol>) -> Destination {
    decoder.check_kind(section, "otlp");
    let send = decode_send(decoder, section, Send::Always);
    if send == Some(Send::IfTokenPresent) {
        let key = section.path_of(&SEND);
        let place = decoder.place_of(&key);
        decoder.report(
            &key,
            place,
            "can't be \"if-token-present\"",
            "a collector has no token; allowed: always, never",
        );
    }
    if !decoder.given(section, &ENDPOINT) {
        decoder.required::<BaseUrl>(section, &ENDPOINT);
        return Destination { token: Some(Secret::default()), send, endpoint: None };
    }
    let endpoint = decode_endpoint(decoder, section, protocol).flatten();
    Destination { token: Some(Secret::default()), send, endpoint }
}

/// A value that Logfire's own variables set for every destination of its kind.
fn overlay<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, key: &Key, variable: &str) {
    let path = section.path_of(key);
    if decoder.overlays.contains_key(&path) {
        return;
    }
    if let Some(text) = decoder.environment.set(variable) {
        let overlay = Overlay { text, place: Place::Environment(variable.to_owned()) };
        decoder.overlays.insert(path, overlay);
    }
}

/// The endpoint without a trailing slash; `Some(None)` when it is left out.
fn decode_endpoint<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    protocol: Option<Protocol>,
) -> Option<Option<String>> {
    let Some(found) = decoder.find(section, &ENDPOINT).ok()? else { return Some(None) };
    let url = decoder.read::<BaseUrl>(&found)?.0;
    if protocol == Some(Protocol::Grpc)
        && let Some(path) = url.parse::<http::Uri>().ok().map(|uri| uri.path().to_owned()).filter(|path| path != "/")
    {
        let hint = Some(format!("leave out {path}: a gRPC call's path is the name of its service"));
        decoder.refuse(&found, Refusal { allowed: "scheme, host and port", hint, secret: false });
        return None;
    }
    if Signal::ALL.iter().any(|signal| url.ends_with(&format!("/v1/{}", signal.as_str()))) {
        let hint = Some("leave out /v1/…: each signal adds its own path".to_owned());
        decoder.refuse(&found, Refusal { allowed: "the base URL of the endpoint", hint, secret: false });
        return None;
    }
    Some(Some(url))
}

fn decode_send<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, default: Send) -> Option<Send> {
    let Some(mut found) = decoder.find(section, &SEND).ok()? else { return Some(default) };
    if let (Place::Environment(_), Raw::Text { text, .. }) = (&found.place, &mut found.raw) {
        // Logfire's SDKs write it as a boolean.
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => *text = "always".to_owned(),
            "false" | "0" => *text = "never".to_owned(),
            _ => {}
        }
    }
    decoder.read(&found)
}

/// Names of HTTP/2 and gRPC themselves, which a call can't carry for us. All of `grpc-…` is reserved too.
const PROTOCOL_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header can be metadata of a gRPC call. What ends in `-bin` would have to be binary.
fn is_metadata(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    plain && !name.starts_with("grpc-") && !name.ends_with("-bin") && !PROTOCOL_HEADERS.contains(&name.as_str())
}

fn decode_headers<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    protocol: Option<Protocol>,
) -> Option<Vec<(String, Secret)>> {
    if !decoder.given(section, &HEADERS) {
        return Some(Vec::new());
    }
    let table = decoder.nested(section, &HEADERS, &[])?;
    let mut names: Vec<String> = table.written().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in decoder.overlaid(&table) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut headers = Vec::new();
    for name in names {
        if name.parse::<http::HeaderName>().is_err() {
            let message = "isn't the name of a header";
            decoder.report(&table.path_of_name(&name), table.place.clone(), message, "allowed: letters, digits, `-`");
            continue;
        }
        if protocol == Some(Protocol::Grpc) && !is_metadata(&name) {
            decoder.report(
                &table.path_of_name(&name),
                table.place.clone(),
                "can't be metadata of a gRPC call",
                "allowed: letters, digits, `-`, `_`, `.`, but no header of the protocol itself and nothing in `-bin`",
            );
            continue;
        }
        let value = decoder.get_named::<Secret>(&table, &name);
        headers.push(value.map(|value| (name, value)));
    }
    headers.into_iter().collect()
}

fn decode_spool<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>) -> Option<Option<Spool>> {
    if !decoder.given(section, &SPOOL) {
        return Some(None);
    }
    let spool = decoder.nested(section, &SPOOL, SPOOL_KEYS)?;
    decoder.check_keys(&spool, &[]);
    let dir = decoder.path(&spool, &DIR);
    let size = decoder.get::<Size>(&spool, &SIZE);
    Some(Some(Spool { dir: dir?, size: size?.0 }))
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}
