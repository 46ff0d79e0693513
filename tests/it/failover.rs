//! Where a request goes after a failure: to whom, when, and what the caller is told.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::peer::{
    daemon::Daemon,
    upstream::{OUTPUT_TOKENS, Piece, Reply, Upstream, WORDS, anthropic_frames, openai_body, openai_frames},
};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "sk-very-secret-key";
/// As good as never, where a test would have to wait that long for a fault.
const LONG: &str = "20";

/// `gpt-both*` goes to `first` and then to `second`, `gpt-alone*` to `first` only, and `claude-*` to an Anthropic provider.
async fn gateway(first: &Upstream, second: &Upstream, cloud: &str) -> Daemon {
    let mut config = format!("[cloud]\n{cloud}\n");
    for (name, kind, url) in [
        ("first", "openai", first.openai()),
        ("second", "openai", second.openai()),
        ("claude", "anthropic", first.anthropic()),
    ] {
        config.push_str(&format!(
            "[[providers]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\napi_key = \"{KEY}\"\n"
        ));
    }
    for (model, targets) in [
        ("gpt-both*", r#"["first", "second"]"#),
        ("gpt-alone*", r#"["first"]"#),
        ("gpt-other-api", r#"["claude", "second"]"#),
        ("claude-*", r#"["claude"]"#),
    ] {
        config.push_str(&format!("[[routes]]\nmodel = \"{model}\"\ntargets = {targets}\n"));
    }
    Daemon::start(&config).await
}

async fn pair() -> (Upstream, Upstream) {
    (Upstream::start().await, Upstream::start().await)
}

fn question(model: &str, stream: bool) -> Value {
    json!({ "model": model, "max_tokens": 9, "messages": [{ "role": "user", "content": "Hi" }], "stream": stream })
}

async fn rows(daemon: &mut Daemon) -> Vec<Value> {
    assert!(daemon.stop().await.success());
    crate::serve::audit_rows(daemon.folder.path()).await
}

fn outcomes(rows: &[Value]) -> Vec<(&str, Option<&str>)> {
    rows.iter().map(|row| (row["outcome"].as_str().unwrap(), row["error_kind"].as_str())).collect()
}

fn refusal(status: u16, more: &[(&'static str, &str)], error: Value) -> Reply {
    let headers = more.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Reply::Status(status, headers, json!({ "error": error }).to_string())
}

fn stream(frames: &[&str]) -> Reply {
    Reply::Stream(vec![Piece::Text(frames.concat())])
}

#[tokio::test]
async fn the_next_target_is_asked_before_anyone_waits() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "").await;
    for (index, reply) in [
        refusal(429, &[("retry-after", LONG)], json!({ "message": "slow" })),
        refusal(503, &[("retry-after", LONG)], json!({ "message": "busy" })),
        refusal(402, &[], json!({ "message": "poor" })),
        refusal(403, &[], json!({ "message": "not here" })),
        refusal(401, &[], json!({ "message": "no key" })),
        refusal(404, &[], json!({ "message": "no such model" })),
        refusal(413, &[], json!({ "message": "too large" })),
        refusal(400, &[], json!({ "message": "Your credit balance is too low" })),
        refusal(400, &[], json!({ "message": "too long", "code": "context_length_exceeded" })),
        refusal(400, &[], json!({ "message": "this model does not support images" })),
        refusal(200, &[], json!({ "message": "no quota", "code": "insufficient_quota" })),
        Reply::Status(200, vec![], "<html>Log in</html>".to_owned()),
        Reply::Status(302, vec![("location", "https://example.org/login".to_owned())], String::new()),
    ]
    .into_iter()
    .enumerate()
    {
        first.script([reply.clone()]);
        // Each with a model of its own, so that none is left alone for what another did.
        let response = daemon.post(CHAT, &question(&format!("gpt-both-{index}"), false)).await;
        assert_eq!(response.status(), 200, "{reply:?}");
        assert_eq!((first.received().len(), second.received().len()), (index + 1, index + 1), "{reply:?}");
    }
    let rows = rows(&mut daemon).await;
    assert!(rows.iter().all(|row| row["provider"] == "second" && row["outcome"] == "ok"), "{rows:?}");
}

#[tokio::test]
async fn what_the_caller_did_wrong_goes_nowhere_else() {
    let (first, second) = pair().await;
    let daemon = gateway(&first, &second, "").await;
    for (status, body) in [
        (400, json!({ "error": { "message": "messages[0] is odd", "type": "invalid_request_error" } })),
        (422, json!({ "detail": [{ "loc": ["body", "n"], "msg": "too many" }] })),
    ] {
        first.script([Reply::Status(status, vec![], body.to_string())]);
        assert_eq!(daemon.post(CHAT, &question("gpt-both", false)).await.status(), status);
    }
    assert_eq!((first.received().len(), second.received().len()), (2, 0));
}

#[tokio::test]
async fn a_target_of_another_api_is_passed_over() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "").await;
    assert_eq!(daemon.post(CHAT, &question("gpt-other-api", false)).await.status(), 200);
    // Where nobody else is left, the first says why.
    let refused = daemon.post(CHAT, &question("claude-x", false)).await;
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.unwrap().contains("does not speak the API of /v1/chat/completions"));
    assert!(first.received().is_empty());
    assert_eq!(outcomes(&rows(&mut daemon).await), [("ok", None), ("invalid_request", Some("invalid_request"))]);
}

#[tokio::test]
async fn a_limited_rate_pauses_its_model_and_no_other() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "retries = 0\nbreaker = { failures = 1, open = \"1 h\" }").await;
    first.script([refusal(429, &[("retry-after", LONG)], json!({ "message": "slow" }))]);
    for _ in 0..3 {
        let response = daemon.post(CHAT, &question("gpt-alone-a", false)).await;
        let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(response.status() == 429 && (15..=20).contains(&wait), "{response:?}");
    }
    assert_eq!(first.received().len(), 1, "it isn't asked before its time");
    assert_eq!(daemon.post(CHAT, &question("gpt-alone-b", false)).await.status(), 200);
    assert_eq!(daemon.metric("mlx_manager_breaker_state", &[("provider", "first")]).await, 0.0);
    // A pause that is over in a moment is waited out.
    first.script([refusal(429, &[("retry-after-ms", "50")], json!({ "message": "slow" }))]);
    assert_eq!(daemon.post(CHAT, &question("gpt-both-c", false)).await.status(), 200);
    let limited = ("rate_limited", Some("rate_limited"));
    assert_eq!(outcomes(&rows(&mut daemon).await), [limited, limited, limited, ("ok", None), ("ok", None)]);
}

#[tokio::test]
async fn a_breaker_is_of_one_model_and_hears_how_streams_end() {
    let (first, second) = pair().await;
    let daemon = gateway(&first, &second, "retries = 0\nbreaker = { failures = 2, open = \"1 h\" }").await;
    let begun = openai_frames("gpt-x", false)[..2].concat();
    for dies in [Piece::Cut, Piece::Text("data: {\"error\":{\"message\":\"died\"}}\n\n".to_owned())] {
        first.script([Reply::Stream(vec![Piece::Text(begun.clone()), dies])]);
        let response = daemon.post(CHAT, &question("gpt-alone-a", true)).await;
        assert_eq!(response.status(), 200);
        drop(response.bytes().await);
    }
    assert_eq!(daemon.post(CHAT, &question("gpt-alone-a", true)).await.status(), 503);
    assert_eq!(daemon.post(CHAT, &question("gpt-alone-b", true)).await.status(), 200, "another model");
    assert_eq!(daemon.metric("mlx_manager_breaker_state", &[("provider", "first")]).await, 2.0);
    assert!(daemon.read("logs/mlx-server.log").contains("circuit breaker provider=first model=gpt-alone-a state=open"));
}

#[tokio::test]
async fn retries_are_counted_over_all_targets_and_a_provider_may_forbid_or_ask_for_them() {
    let (first, second) = pair().await;
    let daemon = gateway(&first, &second, "retries = 1").await;
    let soon = [("retry-after-ms", "5")];
    let broken = || refusal(500, &soon, json!({ "message": "broken" }));
    first.script([broken(), broken()]);
    second.script([broken(), broken()]);
    assert_eq!(daemon.post(CHAT, &question("gpt-both-a", false)).await.status(), 500);
    assert_eq!((first.received().len(), second.received().len()), (2, 1), "each once, and one retry");

    let (first, second) = pair().await;
    let daemon = gateway(&first, &second, "").await;
    first.script([refusal(500, &[("x-should-retry", "false")], json!({ "message": "broken" }))]);
    let response = daemon.post(CHAT, &question("gpt-alone", false)).await;
    assert_eq!((response.status().as_u16(), response.headers()["x-should-retry"].to_str().unwrap()), (500, "false"));
    assert_eq!(first.received().len(), 1);
    first.script([refusal(400, &[("x-should-retry", "true"), ("retry-after-ms", "5")], json!({ "message": "odd" }))]);
    assert_eq!(daemon.post(CHAT, &question("gpt-alone", false)).await.status(), 200);
}

#[tokio::test]
async fn a_route_has_only_so_many_retries() {
    let (first, second) = pair().await;
    let config = format!(
        "[cloud]\nbreaker = {{ failures = 1000, open = \"1 s\" }}\n[[providers]]\nname = \"first\"\nkind = \"openai\"\nbase_url = \"{}\"\n\
         [[routes]]\nmodel = \"*\"\ntargets = [\"first\"]\nretry_budget = {{ ratio = \"0%\", min_per_minute = 2 }}\n",
        first.openai()
    );
    let daemon = Daemon::start(&config).await;
    drop(second);
    let broken = refusal(500, &[("retry-after-ms", "1")], json!({ "message": "broken" }));
    first.script(vec![broken; 50]);
    for _ in 0..5 {
        assert_eq!(daemon.post(CHAT, &question("gpt-x", false)).await.status(), 500);
    }
    assert_eq!(first.received().len(), 7, "five requests and two retries");
    assert!(daemon.read("logs/mlx-server.log").contains("the route's retry_budget is spent"));
}

#[tokio::test]
async fn one_deadline_holds_for_all_attempts() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "total_timeout = \"2 s\"\nfirst_token_timeout = \"1500 ms\"").await;
    first.script([Reply::Hang]);
    second.script([Reply::Hang]);
    let began = Instant::now();
    assert_eq!(daemon.post(CHAT, &question("gpt-both", true)).await.status(), 504);
    // Twice the time of one would be four seconds.
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
    assert_eq!((first.received().len(), second.received().len()), (1, 1));
    assert_eq!(outcomes(&rows(&mut daemon).await), [("timeout_total", Some("timeout_total"))]);
}

#[tokio::test]
async fn the_head_goes_out_in_time_and_another_target_may_yet_answer() {
    let (first, second) = pair().await;
    let cloud = "stream_commit_after = \"100 ms\"\nfirst_token_timeout = \"1 s\"\nretries = 0";
    let mut daemon = gateway(&first, &second, cloud).await;
    first.script([Reply::Hang]);
    let mut response = daemon.post(CHAT, &question("gpt-both", true)).await;
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert!(second.received().is_empty(), "nobody else was asked by then");
    let mut text = String::from_utf8(response.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(text, ": keep-alive\n\n", "a sign of life at once");
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.replace(": keep-alive\n\n", "") == openai_frames("gpt-both", false).concat(), "{text}");
    // Where nobody answers, the stream says so.
    first.script([Reply::Hang]);
    let response = daemon.post(CHAT, &question("gpt-alone", true)).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    assert!(text.ends_with("\n\n") && text.contains("data: {\"error\":"), "{text}");
    let rows = rows(&mut daemon).await;
    assert_eq!(outcomes(&rows), [("ok", None), ("timeout_first_token", Some("timeout_first_token"))]);
    assert!(rows.iter().all(|row| row["status"] == 200), "{rows:?}");
}

#[tokio::test]
async fn pings_and_comments_prove_life() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "first_token_timeout = \"400 ms\"\nretries = 0").await;
    let beat = |beat: &str| vec![Piece::Text(beat.to_owned()), Piece::Wait(Duration::from_millis(200))];
    let slow = |beats: &str, frames: Vec<String>| {
        let beats = std::iter::repeat_n(beat(beats), 5).flatten();
        Reply::Stream(beats.chain([Piece::Text(frames.concat())]).collect())
    };
    first.script([slow(": still here\n\n", openai_frames("gpt-x", true))]);
    let text = daemon.post(CHAT, &question("gpt-alone", true)).await.text().await.unwrap();
    assert!(text.starts_with(": still here\n\n") && text.ends_with("data: [DONE]\n\n"), "{text}");
    first.script([slow("event: ping\ndata: {\"type\":\"ping\"}\n\n", anthropic_frames("claude-x"))]);
    let text = daemon.post("/v1/messages", &question("claude-x", true)).await.text().await.unwrap();
    assert!(text.contains(WORDS[0]) && text.contains("message_stop"), "{text}");
    assert_eq!(outcomes(&rows(&mut daemon).await), [("ok", None), ("ok", None)]);
}

#[tokio::test]
async fn the_same_fault_is_told_the_same_wherever_it_comes() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "retries = 0\nbreaker = { failures = 99, open = \"1 s\" }").await;
    let words = format!("the account is empty {KEY}");
    let error = json!({ "error": { "message": words, "type": "insufficient_quota", "code": 402 } }).to_string();
    let (begun, frame) = (openai_frames("gpt-x", false)[..2].concat(), format!("data: {error}\n\n"));
    let replies = [
        (Reply::Status(402, vec![], error.clone()), 402),
        (Reply::Status(200, vec![], error), 402),
        (stream(&[&frame]), 402),
        (stream(&[": hello\n\n", &frame, "data: [DONE]\n\n"]), 402),
        (stream(&[&begun, &frame]), 200),
    ];
    for (index, (reply, status)) in replies.into_iter().enumerate() {
        first.script([reply.clone()]);
        let response = daemon.post(CHAT, &question("gpt-alone", true)).await;
        assert_eq!(response.status(), status, "{reply:?}");
        let text = response.text().await.unwrap();
        assert!(text.contains("the account is empty ***") && !text.contains(KEY), "{reply:?}: {text}");
        assert_eq!(first.received().len(), index + 1, "{reply:?}");
    }
    let rows = rows(&mut daemon).await;
    assert_eq!(outcomes(&rows), [("upstream_error", Some("insufficient_quota")); 5]);
}

#[tokio::test]
async fn a_whole_answer_to_a_streamed_request_is_bought_once() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "").await;
    first.script([Reply::Status(200, vec![], openai_body("gpt-x").to_string())]);
    let text = daemon.post(CHAT, &question("gpt-alone", true)).await.text().await.unwrap();
    assert!(text.contains(&WORDS.concat()) && text.ends_with("data: [DONE]\n\n") && !text.contains("usage"), "{text}");
    // And the other way round.
    first.script([stream(&[&openai_frames("gpt-x", true).concat()])]);
    let body: Value = daemon.post(CHAT, &question("gpt-alone", false)).await.json().await.unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], WORDS.concat());
    assert_eq!(first.received().len(), 2);
    let rows = rows(&mut daemon).await;
    assert!(rows.iter().all(|row| row["outcome"] == "ok" && row["output_tokens"] == OUTPUT_TOKENS), "{rows:?}");
}

#[tokio::test]
async fn usage_that_a_provider_won_t_be_asked_for_is_not_asked_for_again() {
    let (first, second) = pair().await;
    let mut daemon = gateway(&first, &second, "").await;
    let refused = json!({ "detail": [{ "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted" }] });
    let refused = Reply::Status(422, vec![], refused.to_string());
    first.script([refused.clone()]);
    for _ in 0..2 {
        let text = daemon.post(CHAT, &question("gpt-alone", true)).await.text().await.unwrap();
        assert_eq!(text, openai_frames("gpt-alone", false).concat());
    }
    let asked: Vec<_> = first.received().iter().map(|call| call.json()["stream_options"].clone()).collect();
    assert_eq!(asked, [json!({ "include_usage": true }), Value::Null, Value::Null]);
    // A caller who asks hears what the provider has against it.
    first.script([refused]);
    let mut asking = question("gpt-alone", true);
    asking["stream_options"] = json!({ "include_usage": true });
    assert_eq!(daemon.post(CHAT, &asking).await.status(), 422);
    let rows = rows(&mut daemon).await;
    assert!(rows[..2].iter().all(|row| row["usage_source"] == "estimated" && row["output_tokens"] == 3), "{rows:?}");
}
