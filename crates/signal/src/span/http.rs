//! The server span of an HTTP request.

use std::net::SocketAddr;

use opentelemetry::{KeyValue, Value, trace::TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{LEVEL_WARN, conventions, end, finish, recording};
use crate::{hook::Conventions, redact, route::Kind, target};

/// The server span of an inference request (target `mlx_manager::server::http`) or of any other traced
/// request (target `mlx_manager::http`), which may match no route. Health checks get [`Span::none`] from their caller
/// instead.
pub fn http_server(
    kind: Kind,
    method: &'static str,
    route: Option<&'static str>,
    peer: Option<SocketAddr>,
    request_id: &str,
) -> Span {
    // Before the span is there, since its name is part of it from the start.
    let name = Conventions::here().filter(|conventions| conventions.recording).map(|_| match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    });
    let otel_name = name.as_deref();
    let span = if kind == Kind::Inference {
        tracing::info_span!(target: target::SERVER_HTTP, "http", otel.name = otel_name, otel.kind = "server", request_id)
    } else {
        tracing::info_span!(target: target::HTTP, "http", otel.name = otel_name, otel.kind = "server", request_id)
    };
    if let Some(name) = name {
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
/// [`crate::propagate::extract`].
pub fn http_server_request<B>(span: &Span, route: Option<&'static str>, request: &http::Request<B>) {
    if conventions(span).is_none() {
        return;
    }
    let uri = request.uri();
    if path(route).is_none() {
        span.set_attribute("url.path", redact::text(redact::clipped(uri.path())).into_owned());
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
        span.set_attribute("user_agent.original", redact::text(redact::clipped(agent)).into_owned());
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

/// The path of a route that stands for no other.
fn path(route: Option<&'static str>) -> Option<&'static str> {
    route.filter(|route| !route.contains(['{', '*']))
}
