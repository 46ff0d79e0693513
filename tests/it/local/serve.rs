//! One completion of the built-in model, seen everywhere; and how the daemon starts and stops.

use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::{
    peer::{
        daemon::{Daemon, PATIENCE, sum},
        otlp::{Otlp, names},
    },
    serve::{audit_rows, run},
};

pub fn question(stream: bool) -> Value {
    json!({
        "model": "demo", "temperature": 0, "stream": stream,
        "messages": [{ "role": "user", "content": "What is 23 + 14?" }]
    })
}

pub const ANSWER: &str = "23 + 14 = 37.";

#[tokio::test]
async fn one_completion_is_seen_the_same_everywhere() {
    let otlp = Otlp::start().await;
    let config = format!("[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n", otlp.endpoint());
    // The level of the log must not touch spans or metrics.
    let mut daemon = Daemon::start_with(&config, |command| {
        command.env("LOG_LEVEL", "info");
    })
    .await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let response = daemon
        .client
        .post(daemon.url("/v1/chat/completions"))
        .header("traceparent", traceparent)
        .header("x-request-id", "my-own-id")
        .json(&question(false))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-request-id"], "my-own-id");
    assert!(response.headers()["traceparent"].to_str().unwrap().contains("0af7651916cd43dd8448eb211c80319c"));
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], ANSWER);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let (input, output) =
        (answer["usage"]["prompt_tokens"].as_u64().unwrap(), answer["usage"]["completion_tokens"].as_u64().unwrap());
    assert!(input > 5 && output > 5);

    // The metric.
    let page = daemon.scrape().await;
    let tokens =
        |kind: &str| sum(&page, "mlx_manager_tokens_total", &[("provider", "mlx"), ("model", "demo"), ("type", kind)]);
    assert_eq!((tokens("input") as u64, tokens("output") as u64), (input, output));
    assert_eq!(sum(&page, "mlx_manager_requests_total", &[("model", "demo"), ("outcome", "ok")]), 1.0);
    assert_eq!(sum(&page, "gen_ai_server_time_to_first_token_seconds_count", &[]), 1.0);
    assert_eq!(sum(&page, "http_server_active_requests", &[("route", "/v1/chat/completions")]), 0.0);

    // The span, and its place in the caller's trace.
    let server = otlp.span(|span| span.span.name == "POST /v1/chat/completions").await;
    assert_eq!(server.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(server.parent_id(), "b7ad6b7169203331");
    assert_eq!(server.service, "mlx-server");
    let chat = otlp.span(|span| span.span.name == "chat demo").await;
    assert_eq!(chat.parent_id(), server.id());
    assert_eq!(chat.integer("gen_ai.usage.input_tokens"), Some(input as i64));
    assert_eq!(chat.integer("gen_ai.usage.output_tokens"), Some(output as i64));
    assert_eq!(chat.text("gen_ai.provider.name").as_deref(), Some("mlx"));
    for child in ["queue", "prefill", "decode"] {
        assert_eq!(otlp.span(|span| span.span.name == child).await.parent_id(), chat.id());
    }
    otlp.span(|span| span.span.name == "route demo" && span.parent_id() == server.id()).await;
    let insert = otlp.span(|span| span.span.name == "INSERT requests").await;
    assert_eq!(insert.service, "mlx-manager");
    let linked = insert.trace_id() == server.trace_id()
        || insert.span.links.iter().any(|link| link.trace_id == server.span.trace_id);
    assert!(linked, "the statement belongs to the request's trace");

    // The audit row.
    assert!(daemon.stop().await.success());
    let rows = audit_rows(daemon.folder.path()).await;
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(input), &json!(output)));
    assert_eq!(
        (&row["request_id"], &row["trace_id"]),
        (&json!("my-own-id"), &json!("0af7651916cd43dd8448eb211c80319c"))
    );
    assert_eq!(
        (&row["provider"], &row["api"], &row["outcome"]),
        (&json!("mlx"), &json!("chat_completions"), &json!("ok"))
    );

    // The two log files, split by component.
    let (server_log, manager_log) = (daemon.read("logs/mlx-server.log"), daemon.read("logs/mlx-manager.log"));
    let line =
        server_log.lines().find(|line| line.contains("my-own-id") && line.contains(&format!("output_tokens={output}")));
    assert!(line.is_some_and(|line| line.contains("mlx_manager::server::dispatch")), "{server_log}");
    assert!(
        manager_log.contains("mlx-manager is serving") && !manager_log.contains("mlx_manager::server::"),
        "{manager_log}"
    );
    assert!(!format!("{server_log}{manager_log}").contains("23 + 14"), "content in a log");
    assert!(otlp.spans().iter().all(|span| !span.span.name.contains("/v1/traces")), "{:?}", names(&otlp.spans()));
}

#[tokio::test]
async fn logfire_gets_all_three_signals_with_its_token() {
    let otlp = Otlp::start().await;
    let mut daemon = Daemon::start_with("[telemetry]\nenvironment = \"testing\"\n", |command| {
        command.env("LOGFIRE_TOKEN", "pylf_v1_us_secret").env("LOGFIRE_BASE_URL", otlp.endpoint());
    })
    .await;
    assert_eq!(daemon.post("/v1/chat/completions", &question(false)).await.status(), 200);
    assert!(daemon.stop().await.success());
    let chat = otlp.span(|span| span.span.name == "chat demo").await;
    assert_eq!(chat.text("logfire.msg").as_deref(), Some("Chat Completion with 'demo'"));
    assert_eq!(chat.resource["deployment.environment.name"], Attribute::StringValue("testing".to_owned()));
    assert!(chat.resource.contains_key("service.version"));
    assert!(otlp.logs().iter().any(|record| record.trace_id == chat.span.trace_id), "the log lines of the request");
    assert!(otlp.metrics().iter().any(|metric| metric.name == "mlx_manager.tokens"), "the token counts");
    let tokens = otlp.authorizations();
    assert!(!tokens.is_empty() && tokens.iter().all(|token| token == "pylf_v1_us_secret"), "{tokens:?}");
    assert!(!daemon.read("logs/mlx-manager.log").contains("pylf_v1"));
}

#[tokio::test]
async fn a_log_level_of_error_changes_no_span_and_no_metric() {
    let otlp = Otlp::start().await;
    let config = format!("[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n", otlp.endpoint());
    let daemon = Daemon::start_with(&config, |command| {
        command.env("MLX_MANAGER_LOG_LEVEL", "info,mlx_manager::server=error").env("LOG_LEVEL", "trace");
    })
    .await;
    assert_eq!(daemon.post("/v1/chat/completions", &question(false)).await.status(), 200);
    for name in
        ["POST /v1/chat/completions", "chat demo", "route demo", "queue", "prefill", "decode", "INSERT requests"]
    {
        otlp.span(|span| span.span.name == name).await;
    }
    assert_eq!(daemon.metric("mlx_manager_requests_total", &[("outcome", "ok")]).await, 1.0);
    assert_eq!(daemon.read("logs/mlx-server.log"), "");
}

#[tokio::test]
async fn a_stream_says_the_same_and_a_client_that_leaves_stops_the_work() {
    let mut daemon = Daemon::start("").await;
    let text = daemon.post("/v1/chat/completions", &question(true)).await.text().await.unwrap();
    let said: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str::<Value>(data).unwrap())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(ToOwned::to_owned))
        .collect();
    assert_eq!(said, ANSWER);
    assert!(text.ends_with("data: [DONE]\n\n"));

    let mut long = question(true);
    long["messages"][0]["content"] = json!("Tell me a story.");
    long["temperature"] = json!(1.5);
    long["max_tokens"] = json!(4000);
    let mut response = daemon.post("/v1/chat/completions", &long).await;
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    let patience = tokio::time::Instant::now() + PATIENCE;
    while daemon.metric("mlx_manager_requests_total", &[]).await < 2.0 {
        assert!(tokio::time::Instant::now() < patience, "the record of the aborted request");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(daemon.stop().await.success());
    let rows = audit_rows(daemon.folder.path()).await;
    assert_eq!(rows[0]["outcome"], "ok");
    assert!(["client_abort", "ok"].contains(&rows[1]["outcome"].as_str().unwrap()));
    assert!(rows[1]["output_tokens"].as_u64().unwrap() < 4000);
}

#[tokio::test]
async fn an_anthropic_client_may_use_a_local_model() {
    let daemon = Daemon::start("").await;
    let body = json!({ "model": "demo", "max_tokens": 50, "temperature": 0, "messages": [{ "role": "user", "content": "What is 23 + 14?" }] });
    let answer: Value = daemon.post("/v1/messages", &body).await.json().await.unwrap();
    assert_eq!(answer["content"][0]["text"], ANSWER);
    assert_eq!(answer["stop_reason"], "end_turn");
    assert!(answer["usage"]["input_tokens"].as_u64().unwrap() > 5);
}

#[tokio::test]
async fn every_refusal_is_said_in_the_callers_dialect_and_leaves_a_row() {
    let mut daemon = Daemon::start("").await;
    let with = |name: &str, value: Value| {
        let mut body = question(false);
        body[name] = value;
        body
    };
    let long = json!([{ "role": "user", "content": "word ".repeat(20_000) }]);
    let cases = [
        (with("model", json!("nobody")), 404, "not_found", "model"),
        (with("messages", json!("text")), 400, "invalid_request", "messages"),
        (with("temperature", json!("hot")), 400, "invalid_request", "temperature"),
        (with("n", json!(2)), 400, "invalid_request", "n"),
        (with("logprobs", json!(true)), 400, "invalid_request", "logprobs"),
        (with("response_format", json!({ "type": "json_object" })), 400, "invalid_request", "response_format"),
        (with("messages", long), 400, "invalid_request", "messages"),
    ];
    for (body, status, _, param) in &cases {
        let response = daemon.post("/v1/chat/completions", body).await;
        assert_eq!(response.status(), *status, "{param}");
        let error: Value = response.json().await.unwrap();
        assert!(error["error"]["param"].as_str().unwrap().starts_with(param), "{error}");
        assert!(!error.to_string().contains("word word"), "content in an error");
    }
    let response = daemon.client.post(daemon.url("/v1/messages")).body("{\"model\": ").send().await.unwrap();
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));

    let oversized =
        daemon.client.post(daemon.url("/v1/chat/completions")).body(vec![b' '; 33 << 20]).send().await.unwrap();
    assert_eq!(oversized.status(), 413);

    assert!(daemon.stop().await.success());
    let rows = audit_rows(daemon.folder.path()).await;
    let outcomes: Vec<_> = rows.iter().map(|row| row["outcome"].as_str().unwrap()).collect();
    let expected: Vec<_> = cases.iter().map(|case| case.2).chain(["invalid_request", "invalid_request"]).collect();
    assert_eq!(outcomes, expected);
    assert_eq!(rows.last().unwrap()["status"], 413);
    assert_eq!(rows[1]["requested_model"], "demo", "what could be read of a refused body is kept");
}

#[tokio::test]
async fn models_health_and_readiness() {
    let daemon = Daemon::start("").await;
    assert_eq!(daemon.get("/health").await.status(), 200);
    let models: Value = daemon.get("/v1/models").await.json().await.unwrap();
    assert!(models["data"].as_array().unwrap().iter().any(|model| model["id"] == "demo"), "{models}");
    assert_eq!(daemon.get("/v1/models/demo").await.status(), 200);
    assert_eq!(daemon.get("/v1/models/nobody").await.status(), 404);
    assert_eq!(daemon.get("/nowhere").await.status(), 404);
    assert_eq!(daemon.get("/v1/chat/completions").await.status(), 405);
    let patience = tokio::time::Instant::now() + PATIENCE;
    while daemon.get("/ready").await.status() != 200 {
        assert!(tokio::time::Instant::now() < patience, "never ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_missing_or_damaged_model_costs_its_requests_only() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("broken")).unwrap();
    std::fs::write(folder.path().join("broken/config.json"), "{ \"model_type\": \"qwen3\"").unwrap();
    let config = r#"
[local]
default_model = "demo"
[[local.models]]
name = "demo"
path = "builtin:demo"
[[local.models]]
name = "missing"
path = "nowhere"
[[local.models]]
name = "broken"
path = "broken"
"#;
    let mut daemon = Daemon::start_in(folder, config, |_| {}).await;
    for (model, status) in [("missing", 404), ("broken", 503), ("demo", 200)] {
        let mut body = question(false);
        body["model"] = json!(model);
        let response = daemon.post("/v1/chat/completions", &body).await;
        let (answered, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(answered, status, "{model}: {text}");
    }
    assert!(daemon.stop().await.success());
    assert_eq!(audit_rows(daemon.folder.path()).await.len(), 3);
}

#[tokio::test]
async fn open_streams_finish_before_the_daemon_ends_and_more_signals_change_nothing() {
    let mut daemon = Daemon::start("").await;
    let mut body = question(true);
    body["messages"][0]["content"] = json!("Tell me a story.");
    let mut response = daemon.post("/v1/chat/completions", &body).await;
    let mut text = String::from_utf8(response.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    daemon.signal("TERM");
    daemon.signal("TERM");
    daemon.signal("INT");
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(daemon.wait().await.success());
    assert!(daemon.read("logs/mlx-manager.log").contains("mlx-manager has stopped"), "the last line is on disk");
    assert_eq!(audit_rows(daemon.folder.path()).await[0]["outcome"], "ok");
}

#[tokio::test]
async fn a_collector_and_a_database_that_are_away_cost_only_what_they_would_have_kept() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = format!(
        "[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"http://{dead}\"\n[database]\nurl = \"sqlite:no/such/folder/audit.db\"\n"
    );
    let mut daemon = Daemon::start(&config).await;
    std::fs::write(daemon.folder.path().join("no"), "in the way").unwrap();
    assert_eq!(daemon.post("/v1/chat/completions", &question(false)).await.status(), 200);
    assert_eq!(daemon.get("/health").await.status(), 200);
    let patience = tokio::time::Instant::now() + PATIENCE;
    while daemon.metric("mlx_manager_audit_write_errors_total", &[]).await == 0.0 {
        assert!(tokio::time::Instant::now() < patience, "nobody counts the failed writes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(daemon.stop().await.success());
    let log = daemon.read("logs/mlx-manager.log");
    assert!(log.contains("audit rows") && log.contains("rows=1"), "the loss is said: {log}");
}

#[tokio::test]
async fn usage_and_check_answer_on_stdout() {
    let mut daemon = Daemon::start("").await;
    assert_eq!(daemon.post("/v1/chat/completions", &question(false)).await.status(), 200);
    assert!(daemon.stop().await.success());
    let (code, table, _) = run(daemon.folder.path(), &["usage"]).await;
    assert_eq!(code, 0);
    assert!(table.contains("mlx/demo"), "{table}");
    let (_, rows, _) = run(daemon.folder.path(), &["usage", "--json", "--by", "provider"]).await;
    assert_eq!(serde_json::from_str::<Value>(&rows).unwrap()[0]["requests"], 1);
    let (code, shown, _) = run(daemon.folder.path(), &["check", "--show"]).await;
    assert_eq!(code, 0);
    assert!(shown.contains("server.listen") && shown.contains("config.toml:2"), "{shown}");
    let (code, _, _) = run(daemon.folder.path(), &["no-such-command"]).await;
    assert_eq!(code, 2);
}
