//! Calls through the daemon to simulated providers: what reaches the provider, what comes back, and what is recorded.

use std::time::Duration;

use serde_json::{Value, json};

use crate::peer::{
    daemon::Daemon,
    upstream::{
        CACHED_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, Piece, REASONING_TOKENS, Reply, Upstream, WORDS, anthropic_body,
        anthropic_frames, openai_body, openai_frames,
    },
    wire::Wire,
};

/// Every provider speaks HTTP/2, and what runs on the own machine HTTP/1.1: both wires carry the same.
macro_rules! over_both_wires {
    ($($name:ident),* $(,)?) => {
        mod over_http1 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Wire::Http1).await;
            })*
        }

        mod over_http2 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Wire::Http2 { streams: 100 }).await;
            })*
        }
    };
}

over_both_wires! {
    an_openai_call_passes_untouched_and_is_counted_exactly,
    usage_that_was_only_asked_for_by_us_never_reaches_the_caller,
    anthropic_usage_is_the_last_word_per_field_and_includes_the_cache,
    a_route_can_rename_the_model_and_fail_over,
    a_failure_before_the_first_byte_is_tried_again,
    what_the_caller_did_wrong_is_passed_on_and_not_tried_again,
    a_provider_that_is_off_names_the_key_to_set,
    a_silent_provider_is_a_first_token_timeout,
    a_provider_that_never_finishes_is_a_total_timeout,
    a_provider_that_pauses_is_an_idle_timeout_said_in_the_stream,
    an_answer_cut_off_in_the_middle_of_a_frame_is_an_upstream_error,
    an_answer_that_ends_without_its_end_is_an_upstream_error,
    rubbish_is_an_upstream_error_with_a_status,
    a_provider_that_is_down_is_an_upstream_error_and_opens_the_breaker,
    a_client_that_goes_away_closes_the_provider_and_leaves_its_record,
    the_other_dialect_is_refused_in_words,
}

const KEY: &str = "sk-very-secret-key";

/// A daemon without local models, whose `gpt-*` and `claude-*` go to the provider.
async fn gateway(upstream: &Upstream, more: &str) -> Daemon {
    Daemon::start_with(&config(upstream, more), |command| upstream.trust(command)).await
}

fn config(upstream: &Upstream, more: &str) -> String {
    format!(
        r#"
[cloud]
first_token_timeout = "2 s"
idle_timeout = "1 s"
total_timeout = "5 s"
{more}

[[providers]]
name = "up-openai"
kind = "openai"
base_url = "{}"
api_key = "{KEY}"

[[providers]]
name = "up-anthropic"
kind = "anthropic"
base_url = "{}"
api_key = "{KEY}"

[[providers]]
name = "off"
kind = "openai"
base_url = "{}"
api_key = "${{NO_SUCH_KEY:-}}"

[[routes]]
model = "gpt-renamed"
targets = ["up-openai/gpt-real"]

[[routes]]
model = "gpt-over"
targets = ["off", "up-openai"]

[[routes]]
model = "gpt-*"
targets = ["up-openai"]

[[routes]]
model = "claude-*"
targets = ["up-anthropic"]

[[routes]]
model = "off-*"
targets = ["off"]
"#,
        upstream.openai(),
        upstream.anthropic(),
        upstream.openai(),
    )
}

fn openai(stream: bool) -> Value {
    json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }], "stream": stream, "made_up": { "b": 1.0, "a": 2 } })
}

fn anthropic(stream: bool) -> Value {
    json!({ "model": "claude-x", "max_tokens": 64, "messages": [{ "role": "user", "content": "Hi" }], "stream": stream })
}

/// Stops the daemon, which writes the queue, and reads the audit rows.
async fn rows(daemon: &mut Daemon) -> Vec<Value> {
    assert!(daemon.stop().await.success());
    crate::serve::audit_rows(daemon.folder.path()).await
}

async fn an_openai_call_passes_untouched_and_is_counted_exactly(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let response = daemon.post("/v1/chat/completions", &openai(false)).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.text().await.unwrap(), openai_body("gpt-x").to_string());

    let received = upstream.received().remove(0);
    assert_eq!(received.body, openai(false).to_string(), "the body is forwarded as it came");
    assert_eq!(received.headers["authorization"], format!("Bearer {KEY}"));

    let labels = [("provider", "up-openai"), ("type", "input")];
    assert_eq!(daemon.metric("mlx_manager_tokens_total", &labels).await as u64, INPUT_TOKENS);
    let rows = rows(&mut daemon).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["input_tokens"], INPUT_TOKENS);
    assert_eq!(rows[0]["output_tokens"], OUTPUT_TOKENS);
    assert_eq!(rows[0]["cache_read_tokens"], CACHED_TOKENS);
    assert_eq!(rows[0]["reasoning_tokens"], REASONING_TOKENS);
    assert_eq!(rows[0]["usage_source"], "provider");
    assert_eq!(rows[0]["outcome"], "ok");
    assert_eq!(rows[0]["response_model"], "gpt-x-2026");
    assert_eq!(rows[0]["cost_usd"], Value::Null, "an unknown model has no cost");
}

async fn usage_that_was_only_asked_for_by_us_never_reaches_the_caller(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let text = daemon.post("/v1/chat/completions", &openai(true)).await.text().await.unwrap();
    assert_eq!(text, openai_frames("gpt-x", false).concat());
    assert_eq!(upstream.received()[0].json()["stream_options"], json!({ "include_usage": true }));

    let mut asking = openai(true);
    asking["stream_options"] = json!({ "include_usage": true });
    let text = daemon.post("/v1/chat/completions", &asking).await.text().await.unwrap();
    assert_eq!(text, openai_frames("gpt-x", true).concat());

    let rows = rows(&mut daemon).await;
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["output_tokens"], OUTPUT_TOKENS);
        assert_eq!(row["stream"], 1);
        assert!(row["ttft_ms"].is_number());
    }
}

async fn anthropic_usage_is_the_last_word_per_field_and_includes_the_cache(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let response = daemon
        .client
        .post(daemon.url("/v1/messages"))
        .header("anthropic-beta", "tools-2026")
        .header("x-api-key", "the-callers-own")
        .json(&anthropic(true))
        .send()
        .await
        .unwrap();
    assert_eq!(response.text().await.unwrap(), anthropic_frames("claude-x").concat());
    let response = daemon.post("/v1/messages", &anthropic(false)).await;
    assert_eq!(response.headers()["request-id"], "req_upstream");
    assert_eq!(response.text().await.unwrap(), anthropic_body("claude-x").to_string());

    let received = upstream.received();
    assert_eq!(received[0].headers["x-api-key"], KEY, "the caller's key stays with us");
    assert_eq!(received[0].headers["anthropic-beta"], "tools-2026");
    assert_eq!(received[0].headers["anthropic-version"], "2023-06-01");
    let rows = rows(&mut daemon).await;
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["api"], "messages");
        assert_eq!(row["input_tokens"], INPUT_TOKENS);
        assert_eq!(row["cache_read_tokens"], CACHED_TOKENS);
        assert_eq!(row["output_tokens"], OUTPUT_TOKENS);
    }
}

async fn a_route_can_rename_the_model_and_fail_over(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let mut request = openai(false);
    request["model"] = json!("gpt-renamed");
    assert_eq!(daemon.post("/v1/chat/completions", &request).await.status(), 200);
    assert_eq!(upstream.received()[0].json()["model"], "gpt-real");
    request["model"] = json!("gpt-over");
    assert_eq!(daemon.post("/v1/chat/completions", &request).await.status(), 200);
    assert_eq!(daemon.metric("mlx_manager_fallbacks_total", &[("from", "off"), ("to", "up-openai")]).await, 1.0);
    let rows = rows(&mut daemon).await;
    assert_eq!(rows.len(), 2, "one row per request, whatever was tried");
    assert_eq!(rows[1]["provider"], "up-openai");
}

async fn a_failure_before_the_first_byte_is_tried_again(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let soon = || vec![("retry-after-ms", "5".to_owned())];
    upstream.script([Reply::Status(429, soon(), "{}".to_owned()), Reply::Status(503, soon(), "oops".to_owned())]);
    let text = daemon.post("/v1/chat/completions", &openai(true)).await.text().await.unwrap();
    assert_eq!(text, openai_frames("gpt-x", false).concat());
    assert_eq!(upstream.received().len(), 3);
    assert_eq!(daemon.metric("mlx_manager_retries_total", &[("reason", "rate_limited")]).await, 1.0);
    assert_eq!(daemon.metric("mlx_manager_retries_total", &[("reason", "server_error")]).await, 1.0);
    assert_eq!(rows(&mut daemon).await[0]["outcome"], "ok");
}

async fn what_the_caller_did_wrong_is_passed_on_and_not_tried_again(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let body = json!({ "error": { "message": format!("bad {KEY} field"), "type": "invalid_request_error", "param": "x", "code": null } });
    upstream.script([Reply::Status(422, vec![("retry-after", "7".to_owned())], body.to_string())]);
    let response = daemon.post("/v1/chat/completions", &openai(false)).await;
    assert_eq!(response.status(), 422);
    assert_eq!(response.headers()["retry-after"], "7");
    let text = response.text().await.unwrap();
    assert_eq!(text, body.to_string().replace(KEY, "***"));
    assert_eq!(upstream.received().len(), 1);
    let rows = rows(&mut daemon).await;
    assert_eq!((rows[0]["outcome"].clone(), rows[0]["status"].clone()), (json!("invalid_request"), json!(422)));
    let everything = format!(
        "{rows:?}{:?}{}{}",
        daemon.stderr(),
        daemon.read("logs/mlx-server.log"),
        daemon.read("logs/mlx-manager.log")
    );
    assert!(!everything.contains(KEY), "the key leaked");
}

async fn a_provider_that_is_off_names_the_key_to_set(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let mut request = openai(false);
    request["model"] = json!("off-model");
    let response = daemon.post("/v1/chat/completions", &request).await;
    assert_eq!(response.status(), 503);
    let error: Value = response.json().await.unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("providers[2].api_key"), "{error}");
    assert!(upstream.received().is_empty());
    assert_eq!(rows(&mut daemon).await[0]["outcome"], "unavailable");
}

/// A provider that misbehaves, and what becomes of it: status, outcome, and how often it was asked.
async fn misbehaving(wire: Wire, reply: Reply, stream: bool) -> (u16, String, Vec<Value>) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "retries = 0").await;
    upstream.script([reply]);
    let response = daemon.post("/v1/chat/completions", &openai(stream)).await;
    let status = response.status().as_u16();
    let text = response.text().await.unwrap_or_else(|error| format!("broken: {error}"));
    let rows = rows(&mut daemon).await;
    assert_eq!(rows.len(), 1);
    (status, text, rows)
}

async fn a_silent_provider_is_a_first_token_timeout(wire: Wire) {
    let (status, _, rows) = misbehaving(wire, Reply::Hang, true).await;
    assert_eq!((status, &rows[0]["outcome"]), (504, &json!("timeout_first_token")));
}

async fn a_provider_that_never_finishes_is_a_total_timeout(wire: Wire) {
    let (status, _, rows) = misbehaving(wire, Reply::Hang, false).await;
    assert_eq!((status, &rows[0]["outcome"]), (504, &json!("timeout_total")));
}

async fn a_provider_that_pauses_is_an_idle_timeout_said_in_the_stream(wire: Wire) {
    let frames = openai_frames("gpt-x", false);
    let (status, text, rows) =
        misbehaving(wire, Reply::Stream(vec![Piece::Text(frames[..2].concat()), Piece::Hang]), true).await;
    assert_eq!((status, &rows[0]["outcome"]), (200, &json!("timeout_idle")));
    assert!(text.contains(WORDS[0]) && text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    assert_eq!(rows[0]["usage_source"], "estimated");
}

async fn an_answer_cut_off_in_the_middle_of_a_frame_is_an_upstream_error(wire: Wire) {
    let frames = openai_frames("gpt-x", false).concat();
    let half = frames[..frames.len() / 2].to_owned();
    let (status, text, rows) = misbehaving(wire, Reply::Stream(vec![Piece::Text(half), Piece::Cut]), true).await;
    assert_eq!((status, &rows[0]["outcome"]), (200, &json!("upstream_error")));
    assert!(text.contains("\"error\""), "{text}");
}

async fn an_answer_that_ends_without_its_end_is_an_upstream_error(wire: Wire) {
    let frames = openai_frames("gpt-x", false);
    let (_, _, rows) = misbehaving(wire, Reply::Stream(vec![Piece::Text(frames[..3].concat())]), true).await;
    assert_eq!(rows[0]["outcome"], "upstream_error");
}

async fn rubbish_is_an_upstream_error_with_a_status(wire: Wire) {
    let rubbish = Reply::Stream(vec![Piece::Text("data: {not json\n\n".to_owned())]);
    let (status, _, rows) = misbehaving(wire, rubbish, true).await;
    assert_eq!((status, &rows[0]["outcome"]), (502, &json!("upstream_error")));
    let (status, _, rows) = misbehaving(wire, Reply::Status(200, vec![], "<html>".to_owned()), false).await;
    assert_eq!((status, &rows[0]["outcome"]), (502, &json!("upstream_error")));
}

async fn a_provider_that_is_down_is_an_upstream_error_and_opens_the_breaker(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "retries = 0\nbreaker = { failures = 2, open = \"30 s\" }").await;
    upstream.script(vec![Reply::Status(500, vec![], "{}".to_owned()); 2]);
    for expected in [502, 502, 503] {
        assert_eq!(daemon.post("/v1/chat/completions", &openai(false)).await.status(), expected);
    }
    assert_eq!(upstream.received().len(), 2, "the third call was not made");
    let outcomes: Vec<_> = rows(&mut daemon).await.into_iter().map(|row| row["outcome"].clone()).collect();
    assert_eq!(outcomes, ["upstream_error", "upstream_error", "unavailable"]);
}

async fn a_client_that_goes_away_closes_the_provider_and_leaves_its_record(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    let frames = anthropic_frames("claude-x");
    upstream.script([Reply::Stream(vec![
        Piece::Text(frames[..5].concat()),
        Piece::Wait(Duration::from_millis(600)),
        Piece::Text(frames[5].clone()),
        Piece::Hang,
    ])]);
    let mut response = daemon.post("/v1/messages", &anthropic(true)).await;
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    upstream.disconnected(1).await;
    let rows = rows(&mut daemon).await;
    // The first event told one token of output, and more than one went by.
    assert_eq!((&rows[0]["outcome"], &rows[0]["usage_source"]), (&json!("client_abort"), &json!("estimated")));
    assert!(rows[0]["output_tokens"].as_u64().unwrap() > 1, "{rows:?}");
    assert_eq!(rows[0]["input_tokens"], INPUT_TOKENS, "the first event told the input");
}

async fn the_other_dialect_is_refused_in_words(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let daemon = gateway(&upstream, "").await;
    let mut request = anthropic(false);
    request["model"] = json!("gpt-x");
    let response = daemon.post("/v1/messages", &request).await;
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["type"], "error");
    assert!(error["error"]["message"].as_str().unwrap().contains("/v1/messages"), "{error}");
}
