//! Who waits for the local engine, who goes first, and who is refused.

use std::sync::{Arc, Mutex};

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::endless_model;
use crate::{
    peer::{daemon::Daemon, otlp::Otlp},
    serve::audit_rows,
    spool::eventually,
};

const CHAT: &str = "/v1/chat/completions";
const PRIORITY: &str = "x-mlx-manager-priority";

/// A folder with a model whose answers end by their length alone.
fn endless() -> TempDir {
    let root = TempDir::new().unwrap();
    endless_model(&root.path().join("models/endless"));
    root
}

fn asking(daemon: &Daemon, path: &str, model: &str, max_tokens: u32, priority: Option<&str>) -> RequestBuilder {
    let body = json!({
        "model": model, "temperature": 0, "max_tokens": max_tokens, "stream": true,
        "messages": [{ "role": "user", "content": "Tell me a story about a fox." }]
    });
    let request = daemon.client.post(daemon.url(path)).json(&body);
    match priority {
        Some(priority) => request.header(PRIORITY, priority),
        None => request,
    }
}

/// An answer that has begun and won't end by itself.
async fn running(daemon: &Daemon, priority: &str) -> Response {
    let mut response = asking(daemon, CHAT, "endless", 1_000_000, Some(priority)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.chunk().await.unwrap().is_some());
    response
}

async fn until_waiting(daemon: &Daemon, requests: usize) {
    let waiting = async || daemon.metric("mlx_manager_queue_depth", &[]).await;
    eventually("they wait", async || waiting().await == requests as f64).await;
}

/// What an error answer says, and when to come back.
async fn refusal(request: RequestBuilder) -> (u16, Option<u64>, Value) {
    let response = request.send().await.unwrap();
    let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().parse().unwrap());
    (response.status().as_u16(), after, response.json().await.unwrap())
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back_in_the_callers_dialect() {
    for (key, bounds) in [("local.queue = 1", "queue = 1"), ("local.queue_tokens = 20", "queue_tokens = 20")] {
        let mut daemon = Daemon::start_in(endless(), &format!("[local]\nmax_batch = 1\n{bounds}\n"), |_| {}).await;
        let first = running(&daemon, "normal").await;
        let mut waiting = JoinSet::new();
        waiting.spawn(asking(&daemon, CHAT, "endless", 3, None).send());
        until_waiting(&daemon, 1).await;
        for path in [CHAT, "/v1/messages"] {
            // A better class doesn't get past the bound.
            let (status, after, body) = refusal(asking(&daemon, path, "endless", 3, Some("interactive"))).await;
            assert_eq!(status, 503, "{body}");
            assert!((1..=600).contains(&after.unwrap()), "{after:?}");
            let message = body["error"]["message"].as_str().unwrap();
            assert!(message.contains("waiting: 1,") && message.contains(key), "{message}");
            assert_eq!(body["type"] == "error", path != CHAT, "{body}");
        }
        drop(first);
        let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        drop(answer);
        assert!(daemon.stop().await.success());
        let rows = audit_rows(daemon.folder.path()).await;
        assert_eq!(rows.iter().filter(|row| row["outcome"] == "shed").count(), 2);
    }
}

#[tokio::test]
async fn a_stream_that_waited_says_within_it_what_came_too_late_for_its_headers() {
    let mut daemon = Daemon::start_in(endless(), "[local]\nmax_batch = 1\n", |_| {}).await;
    let first = running(&daemon, "normal").await;
    let mut waiting = JoinSet::new();
    for path in [CHAT, "/v1/messages"] {
        waiting.spawn(asking(&daemon, path, "endless", 3, None).send());
    }
    let mut begun = Vec::new();
    while let Some(response) = waiting.join_next().await {
        let response = response.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("x-mlx-manager-cache"), "nobody knows it yet");
        begun.push(response);
    }
    drop(first);
    for response in begun {
        let text = response.text().await.unwrap();
        let comment = text.lines().find(|line| line.starts_with(": x-mlx-manager-cache: matched="));
        assert!(comment.is_some_and(|line| line.contains("reason=")), "{text}");
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_header_comes_before_the_route_and_that_before_the_default() {
    let otlp = Otlp::start().await;
    let config = format!(
        "[local]\nmax_batch = 1\npriority = \"normal\"\n\
         [[routes]]\nmodel = \"bulk\"\ntargets = [\"local/endless\"]\npriority = \"batch\"\n\
         [[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n",
        otlp.endpoint()
    );
    let mut daemon = Daemon::start_in(endless(), &config, |_| {}).await;
    let first = running(&daemon, "interactive").await;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = JoinSet::new();
    let who = [("route", "bulk", None), ("default", "endless", None), ("header", "bulk", Some("interactive"))];
    for (number, (who, model, priority)) in (1..).zip(who) {
        let (request, answered) = (asking(&daemon, CHAT, model, 2, priority), Arc::clone(&answered));
        waiting.spawn(async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            let text = response.text().await.unwrap();
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            answered.lock().unwrap().push(who);
        });
        until_waiting(&daemon, number).await;
    }
    drop(first);
    while let Some(ended) = waiting.join_next().await {
        ended.unwrap();
    }
    assert_eq!(*answered.lock().unwrap(), ["header", "default", "route"]);

    assert!(daemon.stop().await.success());
    let mut spans = otlp.spans();
    spans.retain(|span| span.span.name == "queue" && span.text("logfire.span_type").as_deref() == Some("span"));
    let mut classes: Vec<_> = spans.iter().map(|span| span.text("mlx_manager.priority").unwrap()).collect();
    classes.sort_unstable();
    assert_eq!(classes, ["batch", "interactive", "interactive", "normal"]);
}

#[tokio::test]
async fn a_better_one_takes_the_place_of_a_worse_one_which_then_goes_on() {
    let daemon = Daemon::start_in(endless(), "[local]\nmax_batch = 1\nprompt_cache = \"0 B\"\n", |_| {}).await;
    let batch = |tokens| asking(&daemon, CHAT, "endless", tokens, Some("batch"));
    let alone = batch(2_000).send().await.unwrap().text().await.unwrap();
    let mut worse = batch(2_000).send().await.unwrap();
    let mut text = String::from_utf8(worse.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    let better = asking(&daemon, CHAT, "endless", 3, Some("interactive")).send().await.unwrap();
    assert!(better.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    text.push_str(&worse.text().await.unwrap());
    assert_eq!(said(&text), said(&alone));
    assert!(said(&text).len() > 1_000);
}

/// The text of a streamed answer.
fn said(text: &str) -> String {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let frames = data.map(|data| serde_json::from_str::<Value>(data).unwrap());
    frames.filter_map(|frame| frame["choices"][0]["delta"]["content"].as_str().map(ToOwned::to_owned)).collect()
}

#[tokio::test]
async fn a_class_that_there_is_not_is_refused_in_the_callers_dialect() {
    let mut daemon = Daemon::start("").await;
    for (path, said) in [(CHAT, "urgent"), ("/v1/messages", "Batch"), (CHAT, "")] {
        let (status, _, body) = refusal(asking(&daemon, path, "demo", 3, Some(said))).await;
        assert_eq!(status, 400, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        for part in [PRIORITY, &format!("{said:?}"), "interactive, normal, batch"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(body["type"] == "error", path != CHAT, "{body}");
    }
    let twice = asking(&daemon, CHAT, "demo", 3, Some("batch")).header(PRIORITY, "normal");
    assert_eq!(refusal(twice).await.0, 400);
    assert!(daemon.stop().await.success());
    let rows = audit_rows(daemon.folder.path()).await;
    assert!(rows.iter().all(|row| row["outcome"] == "invalid_request" && row["requested_model"] == "demo"), "{rows:?}");
}
