//! One physical HTTP call to a provider, and what all outgoing calls have in common.

use opentelemetry::{KeyValue, trace::TraceContextExt};
use tracing::Span;
use url::Url;

use super::{Start, end, finish, recording, start};
use crate::target;

/// One physical HTTP call; a child of an inference span. `resend` is 0 for the first.
pub fn attempt(parent: &Span, url: &Url, resend: u32) -> Span {
    let span = tracing::info_span!(target: target::SERVER_CLOUD, parent: parent, "attempt", otel.kind = "client");
    start_call(&span, "POST", url, resend);
    span
}

pub(super) fn start_call(span: &Span, method: &'static str, url: &Url, resend: u32) {
    start(span, |_| {
        let host = url.host_str().unwrap_or_default();
        let template = match method {
            "GET" => "GET {server.address}{url.path}",
            _ => "POST {server.address}{url.path}",
        };
        let message = format!("{method} {host}{}", url.path());
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
        Start { name: Some(method.into()), template, message, attributes }
    });
}

/// Ends an attempt: with its status, or with the kind of failure.
pub fn attempt_finished(span: &Span, status: Option<u16>, error_type: Option<&str>) {
    finish_call(span, status, error_type, Vec::new());
}

pub(super) fn finish_call(span: &Span, status: Option<u16>, error_type: Option<&str>, mut attributes: Vec<KeyValue>) {
    let Some((_, context)) = recording(span) else { return end(span) };
    attributes.extend(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
    // To a client, a refusal is a failure too.
    let refused = status.filter(|&status| status >= 400).map(|status| status.to_string());
    let failed = error_type.map(str::to_owned).or(refused).map(|kind| (kind.into(), None));
    finish(&context.span(), attributes, failed);
}
