//! What of the daemon's work is traced, and what is kept of it.

use opentelemetry_proto::tonic::{
    common::v1::any_value::Value as Attribute,
    metrics::v1::{AggregationTemporality, metric::Data},
};
use serde_json::{Value, json};

use crate::peer::{
    daemon::Daemon,
    otlp::{Otlp, ReceivedSpan, hex, names},
    upstream::{Piece, Reply, Upstream, openai_frames},
};

fn provider(upstream: &Upstream) -> String {
    format!(
        "[cloud]\nretries = 0\n[[providers]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"{}\"\n[[routes]]\nmodel = \"gpt-*\"\ntargets = [\"up\"]\n",
        upstream.openai()
    )
}

fn question() -> Value {
    json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }] })
}

fn collector(otlp: &Otlp) -> String {
    format!("[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n", otlp.endpoint())
}

#[tokio::test]
async fn health_checks_scrapes_and_exports_are_not_traced() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let mut daemon = Daemon::start(&format!("{}{}", collector(&otlp), provider(&upstream))).await;
    for path in ["/health", "/ready"] {
        assert!(!daemon.get(path).await.headers().contains_key("traceparent"));
        daemon.scrape().await;
    }
    assert_eq!(daemon.post("/v1/chat/completions", &question()).await.status(), 200);
    // Spans were exported by then, so that a trace of their export would be under way itself.
    otlp.span(|span| span.span.name == "INSERT requests").await;
    for path in ["/health", "/ready"] {
        daemon.get(path).await;
        daemon.scrape().await;
    }
    assert!(daemon.stop().await.success());
    let spans = otlp.spans();
    let mut traced: Vec<_> =
        spans.iter().map(|span| span.span.name.as_str()).filter(|name| !name.ends_with(" requests")).collect();
    traced.sort_unstable();
    assert_eq!(traced, ["POST", "POST /v1/chat/completions", "chat gpt-x", "route gpt-x"], "{:?}", names(&spans));
    let attempt = spans.iter().find(|span| span.span.name == "POST").unwrap();
    assert_eq!(attempt.text("url.full").unwrap(), format!("{}/chat/completions", upstream.openai()));
    assert_eq!(attempt.integer("http.response.status_code"), Some(200));
    let version = format!("{:?}", attempt.resource["service.version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[tokio::test]
async fn of_traces_that_are_not_sampled_those_with_an_error_are_kept_whole() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let sampling = "[traces]\nsample_ratio = 0.0\nkeep_slower_than = \"1 hour\"\n";
    let mut daemon = Daemon::start(&format!("{}{}{sampling}", collector(&otlp), provider(&upstream))).await;
    let mut failed = Vec::new();
    for status in [200, 500, 200, 503] {
        if status != 200 {
            upstream.script([Reply::Status(status, vec![], "{}".to_owned())]);
        }
        let response = daemon.post("/v1/chat/completions", &question()).await;
        let trace = response.headers()["traceparent"].to_str().unwrap().split('-').nth(1).unwrap().to_owned();
        if response.status() != 200 {
            failed.push(trace);
        }
    }
    assert!(daemon.stop().await.success());
    let spans = otlp.spans();
    let of = |trace: &str| {
        let mut names: Vec<_> =
            spans.iter().filter(|span| span.trace_id() == trace).map(|span| span.span.name.as_str()).collect();
        names.sort_unstable();
        names.retain(|name| !name.ends_with(" requests"));
        names
    };
    for trace in &failed {
        assert_eq!(of(trace), ["POST", "POST /v1/chat/completions", "chat gpt-x", "route gpt-x"]);
    }
    // A statement for several rows is linked to the traces that it is part of.
    let failed_id = |id: &[u8]| failed.iter().any(|trace| *trace == hex(id));
    let others: Vec<&ReceivedSpan> = spans
        .iter()
        .filter(|span| !failed_id(&span.span.trace_id) && !span.span.links.iter().any(|link| failed_id(&link.trace_id)))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(failed.len(), 2);
}

#[tokio::test]
async fn logfire_gets_deltas_and_a_collector_totals() {
    for (kind, token, wanted) in [
        ("logfire", "token = \"pylf_v1_us_metrics\"\n", AggregationTemporality::Delta),
        ("otlp", "", AggregationTemporality::Cumulative),
    ] {
        let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
        let destination = format!(
            "[[otlp]]\nname = \"{kind}\"\nkind = \"{kind}\"\n{token}endpoint = \"{}\"\nsignals = [\"metrics\"]\n",
            otlp.endpoint()
        );
        let mut daemon = Daemon::start(&format!("{destination}{}", provider(&upstream))).await;
        assert_eq!(daemon.post("/v1/chat/completions", &question()).await.status(), 200);
        assert!(daemon.stop().await.success());
        let (mut sums, mut histograms) = (0, 0);
        for metric in otlp.metrics() {
            match metric.data.unwrap() {
                Data::Sum(sum) if sum.is_monotonic => {
                    assert_eq!(sum.aggregation_temporality(), wanted, "{}", metric.name);
                    sums += 1;
                }
                Data::Histogram(histogram) => {
                    assert_eq!(histogram.aggregation_temporality(), wanted, "{}", metric.name);
                    histograms += 1;
                }
                Data::Summary(_) => panic!("{} is a summary", metric.name),
                _ => {}
            }
        }
        assert!(sums > 5 && histograms > 3, "{sums} sums and {histograms} histograms");
    }
}

#[tokio::test]
async fn log_records_carry_the_request_they_belong_to() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let mut daemon = Daemon::start(&format!("{}{}", collector(&otlp), provider(&upstream))).await;
    assert_eq!(daemon.post("/v1/chat/completions", &question()).await.status(), 200);
    assert!(daemon.stop().await.success());
    let server = otlp.span(|span| span.span.name == "POST /v1/chat/completions").await;
    let logs = otlp.logs();
    let said = |text: &str| {
        let is = |record: &&opentelemetry_proto::tonic::logs::v1::LogRecord| {
            record.body.as_ref().and_then(|body| body.value.clone()) == Some(Attribute::StringValue(text.to_owned()))
        };
        logs.iter().find(is).unwrap_or_else(|| panic!("{text:?} is not among {logs:?}"))
    };
    let finished = said("request finished");
    assert_eq!((&finished.trace_id, &finished.span_id), (&server.span.trace_id, &server.span.span_id));
    assert_eq!((finished.severity_number, finished.severity_text.as_str()), (9, "INFO"));
    let tokens = finished.attributes.iter().find(|attribute| attribute.key == "input_tokens").unwrap();
    assert!(matches!(tokens.value.as_ref().unwrap().value, Some(Attribute::IntValue(_))), "{tokens:?}");
    assert!(said("mlx-manager is serving").trace_id.is_empty());
}

#[tokio::test]
async fn capturing_content_counts_nothing_twice() {
    for capture in [true, false] {
        let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
        let traces = format!("[traces]\ncapture_content = {capture}\n");
        let mut daemon = Daemon::start(&format!("{}{}{traces}", collector(&otlp), provider(&upstream))).await;
        // The role, two words, and no end: the tokens are estimated from what came.
        upstream.script([Reply::Stream(vec![Piece::Text(openai_frames("gpt-x", false)[..3].concat())])]);
        let mut streamed = question();
        streamed["stream"] = json!(true);
        daemon.post("/v1/chat/completions", &streamed).await.text().await.unwrap();
        assert!(daemon.stop().await.success());
        let chat = otlp.span(|span| span.span.name == "chat gpt-x").await;
        assert_eq!(chat.integer("gen_ai.usage.output_tokens"), Some(2), "capture_content = {capture}");
        assert_eq!(chat.text("gen_ai.output.messages").is_some(), capture);
        let causes = &chat.span.events[0];
        assert_eq!(causes.name, "exception");
    }
}

#[tokio::test]
async fn prompts_are_captured_in_the_conventions_shape_and_redacted() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let traces = "[traces]\ncapture_content = true\n";
    let mut daemon = Daemon::start(&format!("{}{}{traces}", collector(&otlp), provider(&upstream))).await;
    let body = json!({ "model": "gpt-x", "messages": [
        { "role": "user", "content": [
            { "type": "text", "text": "my password is hunter2" },
            { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
        ] },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"city\":\"Rome\"}" } },
        ] },
        { "role": "tool", "tool_call_id": "1", "content": "sunny" },
    ] });
    assert_eq!(daemon.post("/v1/chat/completions", &body).await.status(), 200);
    assert!(daemon.stop().await.success());
    let chat = otlp.span(|span| span.span.name == "chat gpt-x").await;
    assert_eq!(
        chat.text("gen_ai.input.messages").unwrap(),
        r#"[{"role":"user","parts":[{"type":"text","content":"[Scrubbed due to 'password']"},{"type":"image_url"}]},{"role":"assistant","parts":[{"type":"tool_call","id":"1","name":"f","arguments":{"city":"Rome"}}]},{"role":"tool","parts":[{"type":"tool_call_response","id":"1","response":"sunny"}]}]"#
    );
    assert_eq!(
        chat.text("request_data").unwrap(),
        r#"{"model":"gpt-x","messages":[{"role":"user","content":[{"type":"text","text":"[Scrubbed due to 'password']"},{"type":"image_url","image_url":{"url":"[media]"}}]},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"city\":\"Rome\"}"}}]},{"role":"tool","tool_call_id":"1","content":"sunny"}]}"#
    );
}
