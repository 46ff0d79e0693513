//! Metrics, spans, log lines and audit rows of the same requests, held against each other.

use std::time::Duration;

use serde_json::{Value, json};

use crate::peer::{
    daemon::{Daemon, sum},
    otlp::Otlp,
    upstream::{OUTPUT_TOKENS, Piece, Reply, Upstream, WORDS, anthropic_frames, openai_frames},
};

/// How long `first` takes to fail.
const PAUSE: Duration = Duration::from_millis(300);

/// `gpt-over` goes to `first` and then to `second`, under another name.
async fn gateway(first: &Upstream, second: &Upstream, otlp: &Otlp) -> Daemon {
    let mut config = format!(
        "[cloud]\nretries = 1\n[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n",
        otlp.endpoint()
    );
    for (name, upstream) in [("first", first), ("second", second)] {
        let url = upstream.openai();
        config.push_str(&format!("[[providers]]\nname = \"{name}\"\nkind = \"openai\"\nbase_url = \"{url}\"\n"));
    }
    config.push_str("[[routes]]\nmodel = \"gpt-over\"\ntargets = [\"first\", \"second/gpt-real\"]\n");
    config.push_str("[[routes]]\nmodel = \"gpt-*\"\ntargets = [\"second\"]\n");
    Daemon::start(&config).await
}

fn question(model: &str, stream: bool) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "Hi" }], "stream": stream })
}

async fn rows(daemon: &mut Daemon) -> Vec<Value> {
    assert!(daemon.stop().await.success());
    crate::serve::audit_rows(daemon.folder.path()).await
}

/// The lines about the ends of requests.
fn ends(daemon: &Daemon) -> Vec<String> {
    let log = daemon.read("logs/mlx-server.log");
    log.lines().filter(|line| line.contains(" - request finished ")).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn each_target_has_its_own_time_under_the_names_of_its_span() {
    let (first, second, otlp) = (Upstream::start().await, Upstream::start().await, Otlp::start().await);
    let mut daemon = gateway(&first, &second, &otlp).await;
    let broken = "data: {\"error\":{\"message\":\"overloaded\",\"code\":503}}\n\n";
    first.script([Reply::Stream(vec![Piece::Wait(PAUSE), Piece::Text(broken.to_owned())])]);
    assert_eq!(daemon.post("/v1/chat/completions", &question("gpt-over", true)).await.status(), 200);
    let rows = rows(&mut daemon).await;
    let whole = rows[0]["duration_ms"].as_f64().unwrap() / 1e3;

    let mut durations = Vec::new();
    for (provider, model, error) in [("first", "gpt-over", Some("upstream_error")), ("second", "gpt-real", None)] {
        let span = otlp.span(|span| span.text("mlx_manager.provider").as_deref() == Some(provider)).await;
        assert_eq!(span.text("gen_ai.provider.name").as_deref(), Some("openai"));
        assert_eq!(span.text("gen_ai.request.model").as_deref(), Some(model));
        assert_eq!(span.text("error.type").as_deref(), error);
        durations.push(seconds_by_otlp(&otlp, "gen_ai.client.operation.duration", provider, model, error));
    }
    let [failed, answered] = durations[..] else { panic!("{durations:?}") };
    assert!(failed >= PAUSE.as_secs_f64(), "{failed} s");
    // One after the other within the request, to the nanosecond that floating-point sums keep.
    assert!(failed + answered <= whole + 1e-6, "{failed} s and {answered} s of {whole} s");
    let first_chunk = seconds_by_otlp(&otlp, "gen_ai.client.operation.time_to_first_chunk", "second", "gpt-real", None);
    assert!(first_chunk <= answered, "{first_chunk} s of {answered} s");

    assert!(rows[0]["ttft_ms"].as_f64().unwrap() >= PAUSE.as_secs_f64() * 1e3, "a row has the request's total");
    assert_eq!(rows[0]["requested_model"], "gpt-over");
    let ends = ends(&daemon);
    assert!(ends.len() == 1 && ends[0].contains(" retries=0 "), "{ends:?}");
}

/// The sum of a histogram's one series with these attributes, as it was exported last.
fn seconds_by_otlp(otlp: &Otlp, name: &str, provider: &str, model: &str, error: Option<&str>) -> f64 {
    use opentelemetry_proto::tonic::{common::v1::any_value::Value, metrics::v1::metric::Data};
    let metrics = otlp.metrics();
    let metric = metrics.iter().rfind(|metric| metric.name == name).expect(name);
    let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{name} is no histogram") };
    let points: Vec<_> = histogram
        .data_points
        .iter()
        .filter(|point| {
            let text = |key: &str| {
                let value = point.attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value?;
                let Value::StringValue(text) = value else { return None };
                Some(text)
            };
            text("mlx_manager.provider").as_deref() == Some(provider)
                && text("gen_ai.provider.name").as_deref() == Some("openai")
                && text("gen_ai.request.model").as_deref() == Some(model)
                && text("error.type").as_deref() == error
        })
        .collect();
    assert_eq!(points.len(), 1, "{name} of {provider}: {:?}", histogram.data_points);
    assert_eq!(points[0].count, 1);
    points[0].sum.unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_has_the_status_that_was_sent_and_no_other() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let mut daemon = gateway(&upstream, &upstream, &otlp).await;
    let begun = openai_frames("gpt-x", false)[..2].concat();
    // One leaves in the middle of a stream, one before an answer that is not streamed.
    upstream.script([Reply::Stream(vec![Piece::Text(begun), Piece::Hang])]);
    let mut response = daemon.post("/v1/chat/completions", &question("gpt-x", true)).await;
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    upstream.disconnected(1).await;
    upstream.script([Reply::Hang]);
    {
        let body = question("gpt-x", false);
        let call = daemon.post("/v1/chat/completions", &body);
        let arrived = async {
            while upstream.received().len() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            response = call => panic!("answered: {response:?}"),
            () = arrived => {}
        }
    }
    let aborted = [("outcome", "client_abort")];
    let patience = tokio::time::Instant::now() + Duration::from_secs(20);
    let durations = "http_server_request_duration_seconds_count";
    let of = |page: &str, more: &[(&str, &str)]| {
        sum(page, durations, &[&[("method", "POST"), ("route", "/v1/chat/completions")], more].concat())
    };
    let mut page = daemon.scrape().await;
    while sum(&page, "mlx_manager_requests_total", &aborted) < 2.0 || of(&page, &[]) < 2.0 {
        assert!(tokio::time::Instant::now() < patience, "the records of those who left");
        tokio::time::sleep(Duration::from_millis(20)).await;
        page = daemon.scrape().await;
    }
    assert_eq!((of(&page, &[]), of(&page, &[("status_code", "200")])), (2.0, 1.0));

    let rows = rows(&mut daemon).await;
    let status =
        |streamed: bool| rows.iter().find(|row| row["stream"] == json!(i64::from(streamed))).unwrap()["status"].clone();
    assert_eq!((status(true), status(false)), (json!(200), json!(0)));
    let ends = ends(&daemon);
    let status = |stream: &str| ends.iter().find(|line| line.contains(stream)).unwrap().contains(" status=200 ");
    assert!(status(" stream=true ") && !status(" stream=false "), "{ends:?}");
    assert_eq!(ends.iter().filter(|line| line.contains(" status=")).count(), 1, "{ends:?}");
    let mut statuses: Vec<_> = otlp
        .spans()
        .iter()
        .filter(|span| span.span.name == "POST /v1/chat/completions")
        .map(|span| (span.integer("http.response.status_code"), span.text("error.type")))
        .collect();
    statuses.sort();
    assert_eq!(statuses, [(None, None), (Some(200), None)]);
}

#[tokio::test]
async fn a_name_that_deceives_or_looks_like_a_key_is_shown_nowhere() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let mut daemon = gateway(&upstream, &upstream, &otlp).await;
    let (deceiving, secret) = ("gpt-\u{1b}[31mred", "gpt-x\nsk-MODELKEYMODELKEYMODELKEY");
    for model in [deceiving, secret] {
        assert_eq!(daemon.post("/v1/chat/completions", &question(model, false)).await.status(), 200);
        assert_eq!(upstream.received().last().unwrap().json()["model"], model, "the provider gets it as it came");
    }
    // One for which there is no route is told so in an error.
    let unknown = daemon.post("/v1/chat/completions", &question("no-sk-MODELKEYMODELKEYMODELKEY", false)).await;
    assert_eq!(unknown.status(), 404);
    assert!(!unknown.text().await.unwrap().contains("MODELKEY"));
    let page = daemon.scrape().await;
    assert!(!page.contains(['\u{1b}', '\0']) && !page.contains("MODELKEY"));
    assert_eq!(sum(&page, "mlx_manager_requests_total", &[("model", "_other"), ("outcome", "ok")]), 2.0);

    let rows = rows(&mut daemon).await;
    let names: Vec<_> = rows.iter().map(|row| row["requested_model"].as_str().unwrap()).collect();
    let scrubbed = "[Scrubbed due to 'token']";
    assert_eq!(names, ["gpt-\\u{1b}[31mred", scrubbed, scrubbed]);
    let spans = format!("{:?}", otlp.spans());
    assert!(spans.contains("red") && spans.contains("Scrubbed"));
    for said in [format!("{rows:?}"), spans, daemon.read("logs/mlx-server.log"), daemon.read("logs/mlx-manager.log")] {
        assert!(!said.contains("MODELKEY") && !said.contains('\u{1b}'), "{said}");
    }
}

#[tokio::test]
async fn a_database_that_is_away_shows_in_the_metrics_and_once_in_the_log() {
    let url = "[database]\nurl = \"sqlite:missing/audit.db\"\n";
    let daemon = Daemon::start(url).await;
    for _ in 0..3 {
        assert_eq!(daemon.post("/v1/chat/completions", &question("nobody", false)).await.status(), 404);
    }
    let patience = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut page = daemon.scrape().await;
    while sum(&page, "mlx_manager_audit_write_errors_total", &[]) < 3.0 {
        assert!(tokio::time::Instant::now() < patience, "each failed try is counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
        page = daemon.scrape().await;
    }
    assert_eq!(sum(&page, "mlx_manager_audit_queue_depth", &[]), 3.0);
    let log = daemon.read("logs/mlx-manager.log");
    assert_eq!(log.matches("audit write failed").count(), 1, "{log}");
}

/// A fault by the body that each dialect has for it.
struct Fault {
    status: u16,
    /// The outcome, and the kind of error.
    outcome: (&'static str, &'static str),
    openai: &'static str,
    anthropic: &'static str,
}

const FAULTS: [Fault; 5] = [
    Fault {
        status: 429,
        outcome: ("rate_limited", "rate_limited"),
        openai: r#"{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}"#,
        anthropic: r#"{"type":"error","error":{"type":"rate_limit_error","message":"Number of requests"}}"#,
    },
    Fault {
        status: 529,
        outcome: ("upstream_error", "upstream_error"),
        openai: r#"{"error":{"message":"Overloaded","type":"overloaded_error"}}"#,
        anthropic: r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
    },
    Fault {
        status: 400,
        outcome: ("invalid_request", "context_length_exceeded"),
        openai: r#"{"error":{"message":"maximum context length is 8","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
        anthropic: r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
    },
    Fault {
        status: 402,
        outcome: ("upstream_error", "insufficient_quota"),
        openai: r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
        anthropic: r#"{"type":"error","error":{"type":"billing_error","message":"Your credit balance is too low"}}"#,
    },
    Fault {
        status: 403,
        outcome: ("forbidden", "forbidden"),
        openai: r#"{"error":{"message":"Not in your country","type":"permission_error"}}"#,
        anthropic: r#"{"type":"error","error":{"type":"permission_error","message":"Not for this key"}}"#,
    },
];

#[tokio::test]
async fn a_fault_is_the_same_in_whichever_way_it_is_told() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let config = format!(
        "[cloud]\nretries = 0\nbreaker = {{ failures = 1000, open = \"1 s\" }}\n[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n\
         [[providers]]\nname = \"gpt\"\nkind = \"openai\"\nbase_url = \"{}\"\n[[providers]]\nname = \"claude\"\nkind = \"anthropic\"\nbase_url = \"{}\"\n\
         [[routes]]\nmodel = \"gpt-x\"\ntargets = [\"gpt\"]\n[[routes]]\nmodel = \"claude-x\"\ntargets = [\"claude\"]\n",
        otlp.endpoint(),
        upstream.openai(),
        upstream.anthropic()
    );
    let mut daemon = Daemon::start(&config).await;
    let mut expected = Vec::new();
    for fault in &FAULTS {
        for (model, path, body, begun) in [
            ("gpt-x", "/v1/chat/completions", fault.openai, openai_frames("gpt-x", false)),
            ("claude-x", "/v1/messages", fault.anthropic, anthropic_frames("claude-x")),
        ] {
            let frame = format!("event: error\ndata: {body}\n\n");
            let later = [begun[..4].concat(), frame.clone()].map(Piece::Text);
            for reply in [
                Reply::Status(fault.status, Vec::new(), body.to_owned()),
                Reply::Status(200, Vec::new(), body.to_owned()),
                Reply::Stream(vec![Piece::Text(frame)]),
                Reply::Stream(later.to_vec()),
            ] {
                expected.push((model, fault.outcome, format!("{reply:?}")));
                upstream.script([reply]);
                let mut question = question(model, true);
                question["max_tokens"] = json!(64);
                let said = daemon.post(path, &question).await.text().await.unwrap();
                assert!(said.contains("error"), "{said}");
            }
        }
    }
    let page = daemon.scrape().await;
    let rows = rows(&mut daemon).await;
    let ends = ends(&daemon);
    assert_eq!((rows.len(), ends.len()), (expected.len(), expected.len()));
    for (((model, (outcome, kind), reply), row), end) in expected.iter().zip(&rows).zip(&ends) {
        assert_eq!((&row["outcome"], &row["error_kind"]), (&json!(outcome), &json!(kind)), "{model}: {reply}");
        assert!(
            end.contains(&format!(" outcome={outcome} ")) && end.contains(&format!(" error_kind={kind} ")),
            "{end}"
        );
        let trace = row["trace_id"].as_str();
        let spans = otlp.spans();
        let span = spans
            .iter()
            .find(|span| Some(span.trace_id().as_str()) == trace && span.attribute("mlx_manager.outcome").is_some());
        let span = span.expect("an inference has its span");
        assert_eq!(span.text("mlx_manager.outcome").as_deref(), Some(*outcome), "{model}: {reply}");
        assert_eq!(span.text("error.type").as_deref(), Some(*kind), "{model}: {reply}");
        let alike = expected.iter().filter(|(other, (its, _), _)| (other, its) == (model, outcome)).count();
        let counted = sum(&page, "mlx_manager_requests_total", &[("model", model), ("outcome", outcome)]);
        assert_eq!(counted, alike as f64, "{model}: {outcome}");
        let alike = expected.iter().filter(|(other, (_, its), _)| (other, its) == (model, kind)).count();
        let labels = [("gen_ai_request_model", *model), ("error_type", *kind)];
        assert_eq!(
            sum(&page, "gen_ai_client_operation_duration_seconds_count", &labels),
            alike as f64,
            "{model}: {kind}"
        );
    }
}

#[tokio::test]
async fn a_target_of_the_other_api_is_passed_by_within_one_request() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let config = format!(
        "[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n[[providers]]\nname = \"other\"\nkind = \"anthropic\"\nbase_url = \"{}\"\n\
         [[providers]]\nname = \"same\"\nkind = \"openai\"\nbase_url = \"{}\"\n[[routes]]\nmodel = \"gpt-4o\"\ntargets = [\"other\", \"same\"]\n",
        otlp.endpoint(),
        upstream.anthropic(),
        upstream.openai()
    );
    let mut daemon = Daemon::start(&config).await;
    let said = daemon.post("/v1/chat/completions", &question("gpt-4o", true)).await.text().await.unwrap();
    assert_eq!(said, openai_frames("gpt-4o", false).concat());
    let moved = [("from", "other"), ("to", "same")];
    assert_eq!(daemon.metric("mlx_manager_fallbacks_total", &moved).await, 1.0);
    assert_eq!(daemon.metric("mlx_manager_requests_total", &[("provider", "same"), ("outcome", "ok")]).await, 1.0);
    assert_eq!(daemon.metric("mlx_manager_requests_total", &[]).await, 1.0);
    assert_eq!(upstream.received().len(), 1, "who speaks another API is not asked");

    let rows = rows(&mut daemon).await;
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["provider"], &rows[0]["outcome"]), (&json!("same"), &json!("ok")));
    let ends = ends(&daemon);
    assert!(ends.len() == 1 && ends[0].contains(" retries=0 ") && ends[0].contains(" provider=same "), "{ends:?}");
    let spans: Vec<_> = otlp.spans().into_iter().filter(|span| span.span.name == "chat gpt-4o").collect();
    let of = |provider: &str| {
        let of = spans.iter().filter(|span| span.text("mlx_manager.provider").as_deref() == Some(provider));
        let [span] = of.collect::<Vec<_>>()[..] else { panic!("{provider}: {spans:?}") };
        span
    };
    let (passed, answered) = (of("other"), of("same"));
    assert_eq!(
        (passed.parent_id(), passed.trace_id()),
        (answered.parent_id(), answered.trace_id()),
        "they are siblings"
    );
    assert_eq!(passed.text("error.type").as_deref(), Some("invalid_request"));
    let told = |span: &crate::peer::otlp::ReceivedSpan| {
        (span.text("mlx_manager.outcome"), span.integer("gen_ai.usage.output_tokens"))
    };
    assert_eq!(told(passed), (None, None));
    assert_eq!(told(answered), (Some("ok".to_owned()), Some(OUTPUT_TOKENS as i64)));
}

#[tokio::test]
async fn the_estimate_of_a_stream_that_was_left_is_the_same_everywhere() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let mut daemon = gateway(&upstream, &upstream, &otlp).await;
    // A role and three words, of which the last is read before the client leaves.
    let begun = openai_frames("gpt-4o", false)[..4].concat().replace("gpt-4o-2026", "gpt-4o");
    upstream.script([Reply::Stream(vec![Piece::Text(begun), Piece::Hang])]);
    let mut response = daemon.post("/v1/chat/completions", &question("gpt-4o", true)).await;
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(WORDS[2]) {
        read.extend_from_slice(&response.chunk().await.unwrap().expect("more of it"));
    }
    drop(response);
    upstream.disconnected(1).await;
    let patience = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut page = daemon.scrape().await;
    while sum(&page, "mlx_manager_overhead_seconds_count", &[("phase", "record")]) < 1.0 {
        assert!(tokio::time::Instant::now() < patience, "the record of who left");
        tokio::time::sleep(Duration::from_millis(20)).await;
        page = daemon.scrape().await;
    }

    let rows = rows(&mut daemon).await;
    let row = &rows[0];
    assert_eq!((&row["outcome"], &row["usage_source"]), (&json!("client_abort"), &json!("estimated")));
    // Three chunks, or a token for each four bytes, whichever is more; nobody counted the prompt.
    let words: usize = WORDS.iter().map(|word| word.len()).sum();
    let output = WORDS.len().max(words / 4);
    assert_eq!(row["output_tokens"], output);
    let input = row["input_tokens"].as_u64().unwrap();
    assert!(input > 0);
    let cost = row["cost_usd"].as_f64().unwrap();
    assert!((cost - (input as f64 * 2.5 + output as f64 * 10.0) / 1e6).abs() < 1e-12, "{cost}");
    for (kind, tokens) in [("input", input), ("output", output as u64)] {
        let labels = [("provider", "second"), ("type", kind)];
        assert_eq!(sum(&page, "mlx_manager_tokens_total", &labels), tokens as f64);
        let name = format!("gen_ai_client_inference_usage_{kind}_tokens_total");
        assert_eq!(sum(&page, &name, &[("mlx_manager_provider", "second")]), tokens as f64);
    }
    assert_eq!(sum(&page, "mlx_manager_cost_usd_total", &[("provider", "second")]), cost);
    let ends = ends(&daemon);
    for said in [
        "outcome=client_abort",
        "usage_source=estimated",
        &format!("output_tokens={output}"),
        &format!("cost_usd={cost}"),
    ] {
        assert!(ends[0].contains(&format!(" {said} ")), "{said}: {ends:?}");
    }
    let span = otlp.span(|span| span.attribute("mlx_manager.outcome").is_some()).await;
    assert_eq!(span.text("mlx_manager.outcome").as_deref(), Some("client_abort"));
    assert_eq!(span.integer("gen_ai.usage.input_tokens"), i64::try_from(input).ok());
    assert_eq!(span.integer("gen_ai.usage.output_tokens"), i64::try_from(output).ok());
    let costs = opentelemetry_proto::tonic::common::v1::any_value::Value::DoubleValue(cost);
    assert_eq!(span.attribute("operation.cost"), Some(costs));
}
