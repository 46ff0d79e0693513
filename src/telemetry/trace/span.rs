//! The few spans there are. Each constructor has the constant target of the component it speaks for and gives the span
//! its OpenTelemetry name, kind and required attributes; each `…_finished` function sets what is known at the end.
//!
//! Attributes go to OpenTelemetry directly and not through fields of the `tracing` span: log lines show those fields, an
//! unsigned one would be exported as a string, and arrays have no field type. When nothing is recorded, none are made.

mod pull;

use std::{borrow::Cow, error::Error as StdError, net::SocketAddr, time::Duration};

use opentelemetry::{
    Array, KeyValue, StringValue, Value,
    trace::{SpanContext, SpanId, SpanKind, SpanRef, Status, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Conventions, pending::Pending};
use crate::{
    config::ProviderKind,
    llm::{Api, Chat, Error, Outcome, Record, Request, Usage},
    telemetry::{genai, redact},
};

pub use pull::{download, download_finished, pull, pull_finished, pull_resolved};

/// Logfire's number for a span in which all went well.
const LEVEL_INFO: i64 = 9;
/// Logfire's number for a request that its caller got wrong.
const LEVEL_WARN: i64 = 13;
/// Logfire's number for a span that failed.
const LEVEL_ERROR: i64 = 17;

/// The server span of an inference request (`inference`, target `mlx_manager::server::http`) or of any other traced
/// request (target `mlx_manager::http`), which may match no route. Health checks get [`Span::none`] from their caller
/// instead.
pub fn http_server(
    inference: bool,
    method: &'static str,
    route: Option<&'static str>,
    peer: Option<SocketAddr>,
    request_id: &str,
) -> Span {
    let name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
    let span = if inference {
        tracing::info_span!(target: "mlx_manager::server::http", "http", otel.name = name, otel.kind = "server", request_id)
    } else {
        tracing::info_span!(target: "mlx_manager::http", "http", otel.name = name, otel.kind = "server", request_id)
    };
    if conventions(&span).is_some() {
        // One by one, since a look at the span's context would start it, and its parent is yet to be extracted.
        span.set_attribute("http.request.method", method);
        if let Some(route) = route {
            span.set_attribute("http.route", route);
        }
        if let Some(path) = path(route) {
            span.set_attribute("url.path", path);
        }
        if let Some(peer) = peer {
            span.set_attribute("client.address", peer.ip().to_string());
            span.set_attribute("client.port", i64::from(peer.port()));
        }
        span.set_attribute("logfire.span_type", "span");
        let template = if route.is_some() { "{http.request.method} {http.route}" } else { "{http.request.method}" };
        span.set_attribute("logfire.msg_template", template);
        span.set_attribute("logfire.msg", name);
    }
    span
}

/// Adds to a server span what its constructor doesn't know: the address asked for and the kind of client. May come before
/// [`super::extract`].
pub fn http_server_request<B>(span: &Span, route: Option<&'static str>, request: &http::Request<B>) {
    if conventions(span).is_none() {
        return;
    }
    let uri = request.uri();
    if path(route).is_none() {
        span.set_attribute("url.path", redact::text(clipped(uri.path())).into_owned());
    }
    let version = match request.version() {
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    span.set_attribute("network.protocol.version", version);
    span.set_attribute("url.scheme", uri.scheme_str().unwrap_or("http").to_owned());
    let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    let authority = uri.authority().cloned().or_else(|| host.and_then(|host| host.parse().ok()));
    if let Some(authority) = authority {
        span.set_attribute("server.address", authority.host().to_owned());
        if let Some(port) = authority.port_u16() {
            span.set_attribute("server.port", i64::from(port));
        }
    }
    let agent = request.headers().get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    if let Some(agent) = agent {
        span.set_attribute("user_agent.original", redact::text(clipped(agent)).into_owned());
    }
}

/// Ends a server span: at the last byte or when the client went away, without a status if none had been sent by then. A status from 400 to
/// 499 is the client's error and not the span's; an answer that broke after its status was sent is an error.
pub fn http_server_finished(span: &Span, status: Option<u16>, error_type: Option<&'static str>) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let otel = context.span();
    let mut attributes = Vec::with_capacity(3);
    attributes.extend(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
    let failed = match status {
        None | Some(400..500) => None,
        Some(500..) => Some(error_type.map_or_else(|| Value::from(status.unwrap_or(500).to_string()), Value::from)),
        Some(_) => error_type.map(Value::from),
    };
    match status {
        Some(400..500) => {
            attributes.push(KeyValue::new("logfire.level_num", LEVEL_WARN));
            otel.set_attributes(attributes);
            otel.end();
        }
        _ => finish(&otel, attributes, failed.map(|failed| (failed, None))),
    }
}

/// The routing of a request; a child of `parent`.
pub fn route(parent: &Span, model: &str) -> Span {
    let model = &*shown(model);
    let name = format!("route {model}");
    let span = tracing::info_span!(target: "mlx_manager::server::dispatch", parent: parent, "route", otel.name = name);
    start(&span, "route {gen_ai.request.model}", name, |_| {
        vec![KeyValue::new("gen_ai.request.model", model.to_owned())]
    });
    span
}

/// Says which rule matched and which targets it names, in order.
pub fn route_finished(span: &Span, rule: &str, targets: &[String]) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let attributes =
        vec![KeyValue::new("mlx_manager.route.rule", rule.to_owned()), texts("mlx_manager.route.targets", targets)];
    finish(&context.span(), attributes, None);
}

/// Where an inference goes.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    /// The local engine.
    Local,
    /// A provider.
    Cloud {
        /// The `[[providers]]` name.
        provider: &'a str,
        /// Its dialect, from which `gen_ai.provider.name` follows.
        kind: ProviderKind,
        /// `server.address`
        address: &'a str,
        /// `server.port`
        port: u16,
    },
}

impl<'a> Destination<'a> {
    /// The `[[providers]]` name, or `mlx`.
    pub fn provider(self) -> &'a str {
        match self {
            Self::Local => "mlx",
            Self::Cloud { provider, .. } => provider,
        }
    }

    /// `gen_ai.provider.name`
    pub fn system(self) -> &'static str {
        match self {
            Self::Local => "mlx",
            Self::Cloud { kind, .. } => genai::system(kind),
        }
    }
}

/// One call to one target: the only span with usage and cost. `model` is the name at the target. A fallback is a sibling.
pub fn inference(parent: &Span, request: &Request, model: &str, destination: Destination<'_>) -> Span {
    let model = &*shown(model);
    let operation = request.api.operation().as_str();
    let kind = match destination {
        Destination::Local => "internal",
        Destination::Cloud { .. } => "client",
    };
    let span = tracing::info_span!(
        target: "mlx_manager::server::dispatch", parent: parent, "inference",
        otel.name = format!("{operation} {model}"), otel.kind = kind
    );
    let (message, template) = match request.api {
        Api::ChatCompletions => ("Chat Completion", "Chat Completion with {request_data[model]!r}"),
        Api::Messages => ("Message", "Message with {request_data[model]!r}"),
    };
    start(&span, template, format!("{message} with '{model}'"), |conventions| {
        let provider = destination.system();
        let known = genai::Start { operation, provider, model, stream: request.stream, sampling: &request.sampling };
        let mut attributes = key_values(known.attributes(conventions.version));
        attributes.push(texts("logfire.tags", &["LLM".to_owned()]));
        attributes.push(KeyValue::new("mlx_manager.provider", destination.provider().to_owned()));
        if let Destination::Cloud { address, port, .. } = destination {
            attributes.extend([
                KeyValue::new("server.address", address.to_owned()),
                KeyValue::new("server.port", i64::from(port)),
            ]);
        }
        let data = genai::request_data(request, model, conventions.capture_content, conventions.version);
        attributes.extend(key_values(vec![("request_data", data)]));
        attributes.push(KeyValue::new("logfire.json_schema", genai::JSON_SCHEMA));
        if conventions.capture_content && matches!(destination, Destination::Cloud { .. }) {
            attributes.extend(key_values(genai::input(request, None)));
        }
        if let Some(pending) = Pending::of(&span) {
            let mut known = attributes.clone();
            known.push(KeyValue::new("logfire.msg_template", template));
            known.push(KeyValue::new("logfire.msg", format!("{message} with '{model}'")));
            let kind = match destination {
                Destination::Local => SpanKind::Internal,
                Destination::Cloud { .. } => SpanKind::Client,
            };
            pending.inference_started((&span, parent), format!("{operation} {model}"), kind, known);
        }
        attributes
    });
    span
}

/// Puts the prompts as the local engine understands them into its inference span, where those for a provider are from the
/// start; does nothing unless `traces.capture_content` is on.
pub fn capture_input(span: &Span, request: &Request, chat: &Chat) {
    if let Some((conventions, context)) = recording(span)
        && conventions.capture_content
    {
        context.span().set_attributes(key_values(genai::input(request, Some(chat))));
    }
}

/// Whether the content of an answer is wanted, so that nothing is gathered in vain.
pub fn captures_content() -> bool {
    tracing::dispatcher::get_default(|dispatch| {
        dispatch
            .downcast_ref::<Conventions>()
            .is_some_and(|conventions| conventions.recording && conventions.capture_content)
    })
}

/// How an inference that answered the caller ended.
#[derive(Debug)]
pub struct InferenceEnd<'a> {
    /// The numbers.
    pub record: &'a Record,
    /// The provider's id of the answer.
    pub response_id: Option<&'a str>,
    /// The provider's first and last report of the usage, as it wrote them.
    pub reported_usage: [Option<&'a str>; 2],
    /// The answer; looked at only if `traces.capture_content` is on.
    pub content: Option<genai::Answer<'a>>,
    /// Why it failed.
    pub error: Option<&'a Error>,
}

/// Ends an inference span that answered the caller.
pub fn inference_finished(span: &Span, end: &InferenceEnd<'_>) {
    let Some((conventions, context)) = recording(span) else { return self::end(span) };
    let record = end.record;
    let inference = record.inference.as_ref();
    let known = genai::End {
        id: end.response_id,
        // One that never answered is named by what was asked of it, as Logfire's own clients do.
        model: record.response_model.as_deref().or(inference.map(|inference| inference.model.as_str())),
        finish_reason: record.finish_reason,
        usage: &record.usage,
        reported_usage: end.reported_usage,
        cost: record.cost_usd,
        time_to_first_chunk: inference.and_then(|inference| inference.time_to_first_token).filter(|_| record.stream),
    };
    let mut attributes = key_values(known.attributes(conventions.version));
    attributes.push(KeyValue::new("mlx_manager.outcome", record.outcome.as_str()));
    if let Some(content) = end.content.as_ref().filter(|_| conventions.capture_content) {
        attributes.extend(key_values(content.attributes(&known, conventions.version)));
    }
    let kind = match (record.outcome, record.error_kind) {
        // A client that goes away is nobody's failure: the status stays unset.
        (Outcome::Ok | Outcome::ClientAbort, _) => None,
        (outcome, kind) => Some(kind.unwrap_or_else(|| outcome.as_str())),
    };
    let failure = kind.map(|kind| {
        let message = record.error_message.as_deref().unwrap_or(record.outcome.as_str());
        let causes = end.error.and_then(StdError::source);
        let provider = record.provider.as_deref().unwrap_or_default();
        attributes.push(KeyValue::new("logfire.exception.fingerprint", fingerprint(kind, provider)));
        (kind.into(), Some(Failure::new(kind, message, causes)))
    });
    finish(&context.span(), attributes, failure);
}

/// By which Logfire tells issues apart: what failed where, and not in which words.
fn fingerprint(kind: &str, provider: &str) -> String {
    let source = format!("mlx-manager inference {provider} {kind}");
    let digest = ring::digest::digest(&ring::digest::SHA256, source.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ends an inference span whose target failed while another is tried. `model` is the one asked of it.
pub fn inference_failed_over(span: &Span, model: &str, error: &Error) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let kind = error.kind.as_str();
    let failure = Failure::new(kind, &error.message, error.source());
    let attributes = vec![KeyValue::new("gen_ai.response.model", shown(model).into_owned())];
    finish(&context.span(), attributes, Some((kind.into(), Some(failure))));
}

/// One physical HTTP call; a child of an inference span. `resend` is 0 for the first.
pub fn attempt(parent: &Span, url: &reqwest::Url, resend: u32) -> Span {
    let span = tracing::info_span!(
        target: "mlx_manager::server::cloud", parent: parent, "attempt", otel.name = "POST", otel.kind = "client"
    );
    start_call(&span, "POST", url, resend);
    span
}

fn start_call(span: &Span, method: &'static str, url: &reqwest::Url, resend: u32) {
    let host = url.host_str().unwrap_or_default();
    let template = match method {
        "GET" => "GET {server.address}{url.path}",
        _ => "POST {server.address}{url.path}",
    };
    start(span, template, format!("{method} {host}{}", url.path()), |_| {
        let port = url.port_or_known_default();
        // Neither user info nor query: either may hold a key.
        let explicit_port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let full = format!("{}://{host}{explicit_port}{}", url.scheme(), url.path());
        let mut attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.full", full),
            KeyValue::new("url.path", url.path().to_owned()),
            KeyValue::new("url.scheme", url.scheme().to_owned()),
            KeyValue::new("server.address", host.to_owned()),
        ];
        attributes.extend(port.map(|port| KeyValue::new("server.port", i64::from(port))));
        attributes.extend((resend > 0).then(|| KeyValue::new("http.request.resend_count", i64::from(resend))));
        attributes
    });
}

/// Ends an attempt: with its status, or with the kind of failure.
pub fn attempt_finished(span: &Span, status: Option<u16>, error_type: Option<&str>) {
    finish_call(span, status, error_type, Vec::new());
}

fn finish_call(span: &Span, status: Option<u16>, error_type: Option<&str>, mut attributes: Vec<KeyValue>) {
    let Some((_, context)) = recording(span) else { return end(span) };
    attributes.extend(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
    // To a client, a refusal is a failure too.
    let refused = status.filter(|&status| status >= 400).map(|status| status.to_string());
    let failed = error_type.map(str::to_owned).or(refused).map(|kind| (kind.into(), None));
    finish(&context.span(), attributes, failed);
}

/// Waiting for the local engine; a child of an inference span.
pub fn queue(parent: &Span) -> Span {
    let span = tracing::info_span!(target: "mlx_manager::server::engine", parent: parent, "queue");
    start(&span, "queue", "queue".to_owned(), |_| Vec::new());
    span
}

/// Computing a prompt; a child of an inference span.
pub fn prefill(parent: &Span, tokens: u64, cached: u64) -> Span {
    let span = tracing::info_span!(target: "mlx_manager::server::engine", parent: parent, "prefill");
    start(&span, "prefill of {mlx_manager.tokens} tokens", format!("prefill of {tokens} tokens"), |_| {
        vec![count("mlx_manager.tokens", tokens), count("mlx_manager.cached_tokens", cached)]
    });
    span
}

/// Generating; a child of an inference span.
pub fn decode(parent: &Span) -> Span {
    let span = tracing::info_span!(target: "mlx_manager::server::engine", parent: parent, "decode");
    start(&span, "decode", "decode".to_owned(), |_| Vec::new());
    span
}

/// Ends a decode span.
pub fn decode_finished(span: &Span, usage: &Usage, duration: Duration) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let mut attributes = Vec::new();
    if let Some(tokens) = usage.output {
        attributes.push(count("mlx_manager.tokens", tokens));
        let seconds = duration.as_secs_f64();
        if seconds > 0.0 {
            attributes.push(KeyValue::new("mlx_manager.tokens_per_second", tokens as f64 / seconds));
        }
    }
    finish(&context.span(), attributes, None);
}

/// A statement for the database.
#[derive(Debug)]
pub struct Statement<'a> {
    /// `db.system.name`
    pub system: &'static str,
    /// Where the database is, unless in a file.
    pub server: Option<Server<'a>>,
    /// `INSERT`
    pub operation: &'static str,
    /// `requests`
    pub table: &'static str,
}

/// A database server.
#[derive(Debug)]
pub struct Server<'a> {
    /// `server.address`
    pub address: &'a str,
    /// `server.port`
    pub port: u16,
    /// `db.namespace`
    pub database: &'a str,
}

/// A database statement (`INSERT requests`) about these records: a single one's server span is its parent, several are
/// linked.
pub fn database(statement: Statement<'_>, records: &[Record]) -> Span {
    let Statement { system, server, operation, table } = statement;
    let name = format!("{operation} {table}");
    let span = tracing::info_span!(
        target: "mlx_manager::store", parent: None, "database", otel.name = name, otel.kind = "client"
    );
    if conventions(&span).is_some() {
        // The requests are over and their spans with them, so only their ids are at hand.
        match records {
            [only] => {
                if let Some(parent) = server_span(only) {
                    let parent = opentelemetry::Context::new().with_remote_span_context(parent);
                    // The error says that the span is disabled, so that it has no trace to be part of.
                    span.set_parent(parent).unwrap_or_default();
                }
            }
            several => several.iter().filter_map(server_span).for_each(|link| span.add_link(link)),
        }
    }
    start(&span, "{db.operation.name} {db.collection.name}", name.clone(), |_| {
        let mut attributes = vec![
            KeyValue::new("db.system.name", system),
            KeyValue::new("db.operation.name", operation),
            KeyValue::new("db.collection.name", table),
            KeyValue::new("db.query.summary", name.clone()),
        ];
        if let Some(Server { address, port, database }) = server {
            attributes.extend([
                KeyValue::new("server.address", address.to_owned()),
                KeyValue::new("server.port", i64::from(port)),
                KeyValue::new("db.namespace", database.to_owned()),
            ]);
        }
        attributes
    });
    span
}

fn server_span(record: &Record) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(record.trace_id.as_deref()?).ok()?;
    let span_id = SpanId::from_hex(record.span_id.as_deref()?).ok()?;
    let flags = TraceFlags::default().with_sampled(record.sampled);
    Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
}

/// Ends a database span; `code` is the database system's own for the error.
pub fn database_finished(span: &Span, rows: u64, error: Option<&(dyn StdError + 'static)>, code: Option<&str>) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let mut attributes = vec![count("mlx_manager.rows", rows)];
    attributes.extend(code.map(|code| KeyValue::new("db.response.status_code", code.to_owned())));
    let failed = error.map(|error| {
        let kind = code.map_or_else(|| "_OTHER".into(), |code| code.to_owned().into());
        (kind, Some(Failure::new("_OTHER", &error.to_string(), error.source())))
    });
    finish(&context.span(), attributes, failed);
}

/// How to speak about a span, if anybody records it.
fn conventions(span: &Span) -> Option<Conventions> {
    span.with_subscriber(|(_, dispatch)| dispatch.downcast_ref::<Conventions>().copied())
        .flatten()
        .filter(|conventions| conventions.recording)
}

/// The OpenTelemetry context of a span that is recorded; starts it.
fn recording(span: &Span) -> Option<(Conventions, opentelemetry::Context)> {
    let conventions = conventions(span)?;
    let context = span.context();
    let recording = context.span().is_recording();
    recording.then_some((conventions, context))
}

/// Ends a span now, though somebody may hold on to its handle for longer.
fn end(span: &Span) {
    if conventions(span).is_some() {
        span.context().span().end();
    }
}

fn start(span: &Span, template: &'static str, message: String, attributes: impl FnOnce(&Conventions) -> Vec<KeyValue>) {
    if let Some((conventions, context)) = recording(span) {
        let mut attributes = attributes(&conventions);
        attributes.extend([
            KeyValue::new("logfire.span_type", "span"),
            KeyValue::new("logfire.msg_template", template),
            KeyValue::new("logfire.msg", message),
        ]);
        context.span().set_attributes(attributes);
    }
}

/// What an exception event says.
struct Failure {
    kind: &'static str,
    message: String,
    /// The error and under it its causes, as a stack trace ends in other languages.
    trace: String,
}

impl Failure {
    /// Takes down an error with all its causes, redacted.
    fn new(kind: &'static str, message: &str, mut cause: Option<&(dyn StdError + 'static)>) -> Self {
        let message = redact::text(message).into_owned();
        let mut trace = format!("{kind}: {message}\n");
        while let Some(error) = cause {
            trace.push_str("caused by: ");
            trace.push_str(&redact::text(&error.to_string()));
            trace.push('\n');
            cause = error.source();
        }
        Self { kind, message, trace }
    }
}

/// Sets the last attributes, the level and, with a failure, status and exception; then ends the span. Each attribute is
/// set but once, since the SDK would export both.
fn finish(span: &SpanRef<'_>, mut attributes: Vec<KeyValue>, failed: Option<(Value, Option<Failure>)>) {
    match failed {
        None => attributes.push(KeyValue::new("logfire.level_num", LEVEL_INFO)),
        Some((kind, failure)) => {
            attributes.push(KeyValue::new("logfire.level_num", LEVEL_ERROR));
            attributes.push(KeyValue::new("error.type", kind));
            let description = failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default();
            span.set_status(Status::error(description));
            if let Some(Failure { kind, message, trace }) = failure {
                let event = vec![
                    KeyValue::new("exception.type", kind),
                    KeyValue::new("exception.message", message),
                    KeyValue::new("exception.stacktrace", trace),
                    // A text, as the Python SDK has it.
                    KeyValue::new("exception.escaped", "True"),
                ];
                span.add_event("exception", event);
            }
        }
    }
    span.set_attributes(attributes);
    span.end();
}

/// The path of a route that stands for no other.
fn path(route: Option<&'static str>) -> Option<&'static str> {
    route.filter(|route| !route.contains(['{', '*']))
}

/// What a client chose, cut to a length that a name may have.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(256)]
}

/// A model's name as it may be shown.
fn shown(model: &str) -> Cow<'_, str> {
    redact::name(clipped(model))
}

/// A count as the integer it is.
fn count(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

fn texts(name: &'static str, values: &[String]) -> KeyValue {
    KeyValue::new(name, Value::Array(Array::String(values.iter().cloned().map(StringValue::from).collect())))
}

fn key_values(attributes: genai::Attributes) -> Vec<KeyValue> {
    attributes
        .into_iter()
        .map(|(name, value)| match value {
            genai::Value::Text(text) => KeyValue::new(name, text),
            genai::Value::Integer(integer) => KeyValue::new(name, integer),
            genai::Value::Float(float) => KeyValue::new(name, float),
            genai::Value::Bool(switch) => KeyValue::new(name, switch),
            genai::Value::Texts(values) => texts(name, &values),
        })
        .collect()
}
