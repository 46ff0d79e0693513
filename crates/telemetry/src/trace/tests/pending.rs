//! What Logfire is told of requests that are not over yet.

use mlx_manager_signal::redact::ModelLabel;
use opentelemetry_proto::tonic::trace::v1::{Span as WireSpan, span::SpanKind};

use super::{
    collector::{eventually, strings},
    spans::{cloud, ended, record, start_inference},
    *,
};

fn announced(collector: &Collector) -> Vec<WireSpan> {
    let spans = collector.spans().into_iter().map(|(_, span)| span);
    spans.filter(|span| attribute(&span.attributes, "logfire.span_type") == string("pending_span")).collect()
}

#[test]
fn a_long_request_and_its_inference_are_announced_and_then_end_as_usual() {
    let collector = Collector::start();
    let elsewhere = Collector::start();
    let plain =
        OtlpConfig { kind: OtlpKind::Otlp, send: Send::Always, name: "plain".to_owned(), ..logfire(&elsewhere) };
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector), plain]);
    within(&dispatch, || {
        let server = server_span();
        let mut headers = HeaderMap::new();
        headers
            .insert("traceparent", HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        extract(&server, &headers);
        span::route_finished(&span::route(&server, &ModelLabel::new("gpt-4o")), "gpt-*", &[]);
        let inference = start_inference(&server, "gpt-4o", cloud("openai"));
        let attempt = span::attempt(&inference, &"http://127.0.0.1/".parse().unwrap(), 0);
        eventually("both announcements", || announced(&collector).len() >= 2);
        span::attempt_finished(&attempt, Some(200), None);
        span::inference_finished(&inference, &ended(&record()));
        span::http_server_finished(&server, Some(200), None);
    });
    assert!(handle.flush(LONG));

    let pending = announced(&collector);
    assert_eq!(pending.len(), 2, "not the attempt: {pending:#?}");
    for (name, kind, parent) in [
        ("POST /v1/chat/completions", SpanKind::Server, "b7ad6b7169203331".to_owned()),
        ("chat gpt-4o", SpanKind::Client, String::new()),
    ] {
        let real = collector.spans().into_iter().map(|(_, span)| span).rfind(|span| span.name == name).unwrap();
        let parent = if parent.is_empty() { hex(&real.parent_span_id) } else { parent };
        let pending = pending.iter().find(|span| span.name == name).unwrap();
        assert_eq!((&pending.trace_id, &pending.parent_span_id), (&real.trace_id, &real.span_id));
        assert_ne!(pending.span_id, real.span_id);
        assert_eq!(pending.end_time_unix_nano, pending.start_time_unix_nano, "no duration");
        assert!(pending.start_time_unix_nano < real.end_time_unix_nano);
        assert_eq!((pending.kind(), real.kind()), (kind, kind));
        assert_eq!(attribute(&pending.attributes, "logfire.pending_parent_id"), string(&parent));
        assert_eq!(attribute(&real.attributes, "logfire.span_type"), string("span"));
        for key in ["logfire.msg", "logfire.msg_template", "logfire.tags", "request_data", "server.address", "target"] {
            assert_eq!(attribute(&pending.attributes, key), attribute(&real.attributes, key), "{name}: {key}");
        }
        assert_eq!(attribute(&pending.attributes, "http.response.status_code"), None, "nobody knows yet");
    }
    let chat = pending.iter().find(|span| span.name == "chat gpt-4o").unwrap();
    assert_eq!(attribute(&chat.attributes, "logfire.tags"), strings(&["LLM"]));
    assert_eq!(collector.spans().len(), 6);
    assert_eq!(elsewhere.spans().len(), 4, "only Logfire knows what a pending span is");
    assert!(announced(&elsewhere).is_empty());
}

#[test]
fn a_trace_that_may_be_dropped_is_not_announced() {
    let collector = Collector::start();
    let config = TracesConfig { sample_ratio: 0.0, keep_slower_than: Duration::from_millis(1), ..traces() };
    let (dispatch, handle, _) = subscriber(&config, &[logfire(&collector)]);
    within(&dispatch, || {
        let undecided = server_span();
        let inference = start_inference(&undecided, "undecided", cloud("openai"));
        // Started later, so that it is announced after the others would have been.
        let sampled = server_span();
        let mut headers = HeaderMap::new();
        headers
            .insert("traceparent", HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        extract(&sampled, &headers);
        let known = start_inference(&sampled, "known", cloud("openai"));
        eventually("the announcements of the sampled one", || announced(&collector).len() >= 2);
        for (server, inference) in [(undecided, inference), (sampled, known)] {
            span::inference_finished(&inference, &ended(&record()));
            span::http_server_finished(&server, Some(200), None);
        }
    });
    assert!(handle.flush(LONG));
    let mut names: Vec<_> = announced(&collector).into_iter().map(|span| span.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["POST /v1/chat/completions", "chat known"]);
    assert_eq!(collector.spans().len(), 6, "the slow one was kept in the end");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
