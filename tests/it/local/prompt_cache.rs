//! What the local engine's prefix cache spares, as everybody who reports it says.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    peer::{
        daemon::Daemon,
        otlp::{Otlp, ReceivedSpan},
    },
    serve::audit_rows,
    spool::eventually,
};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// A greedy question to the demo model, which both APIs understand.
fn asking(messages: &Value, stream: bool) -> Value {
    json!({ "model": "demo", "temperature": 0, "max_tokens": 32, "messages": messages, "stream": stream })
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// What an answer says of its prompt.
#[derive(Debug, PartialEq)]
struct Prompt {
    text: String,
    /// Cached tokens included.
    input: i64,
    cached: i64,
}

fn of_chat(text: &str, usage: &Value) -> Prompt {
    Prompt {
        text: text.to_owned(),
        input: usage["prompt_tokens"].as_i64().unwrap(),
        cached: usage["prompt_tokens_details"]["cached_tokens"].as_i64().unwrap(),
    }
}

/// Anthropic's `input_tokens` are those that no cache took part in.
fn of_message(text: &str, usage: &Value) -> Prompt {
    let cached = usage["cache_read_input_tokens"].as_i64().unwrap();
    Prompt { text: text.to_owned(), input: usage["input_tokens"].as_i64().unwrap() + cached, cached }
}

/// Asks, and gives what the answer says and the trace it left.
async fn ask(daemon: &Daemon, path: &str, messages: &Value, stream: bool) -> (Prompt, String) {
    let mut body = asking(messages, stream);
    if path == CHAT && stream {
        body["stream_options"] = json!({ "include_usage": true });
    }
    let response = daemon.post(path, &body).await;
    assert_eq!(response.status(), 200);
    let trace = response.headers()["traceparent"].to_str().unwrap().split('-').nth(1).unwrap().to_owned();
    let explained = response.headers()["x-mlx-manager-cache"].to_str().unwrap().to_owned();
    let text = response.text().await.unwrap();
    let frames: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let said = |pointer: &str| frames.iter().filter_map(|frame| frame.pointer(pointer)?.as_str()).collect::<String>();
    let prompt = match (path, stream) {
        (CHAT, false) => {
            let answer: Value = serde_json::from_str(&text).unwrap();
            of_chat(answer["choices"][0]["message"]["content"].as_str().unwrap(), &answer["usage"])
        }
        (CHAT, true) => of_chat(&said("/choices/0/delta/content"), &frames.last().unwrap()["usage"]),
        (_, false) => {
            let answer: Value = serde_json::from_str(&text).unwrap();
            of_message(answer["content"][0]["text"].as_str().unwrap(), &answer["usage"])
        }
        // Clients read these counts from the first frame.
        (_, true) => of_message(&said("/delta/text"), &frames[0]["message"]["usage"]),
    };
    let (restored, input) = (format!("; restored={}; reason=\"", prompt.cached), format!("/{}; ", prompt.input));
    assert!(explained.starts_with("matched=") && explained.contains(&restored), "{explained} of {prompt:?}");
    assert!(explained.contains(&input), "{explained} of {prompt:?}");
    (prompt, trace)
}

/// The header that says how much of a prompt was computed before.
async fn explained(daemon: &Daemon, path: &str, messages: &Value, stream: bool) -> String {
    let response = daemon.post(path, &asking(messages, stream)).await;
    let header = response.headers()["x-mlx-manager-cache"].to_str().unwrap().to_owned();
    response.text().await.unwrap();
    header
}

#[tokio::test]
async fn both_apis_the_metrics_the_spans_and_the_audit_agree_on_what_was_cached() {
    let otlp = Otlp::start().await;
    let collector = format!("[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n", otlp.endpoint());
    let mut daemon = Daemon::start(&collector).await;
    let page = daemon.scrape().await;
    for name in ["lookups", "hits", "queried_tokens", "hit_tokens"] {
        let series = format!("mlx_manager_prefix_cache_{name}_total{{model=\"demo\"}} 0");
        assert!(page.contains(&series), "{series} is missing at the start");
    }

    let question = json!([user("What is 23 + 14?")]);
    let mut asked = Vec::new();
    for (path, stream) in [(CHAT, false), (CHAT, false), (MESSAGES, false), (CHAT, true), (MESSAGES, true)] {
        asked.push(ask(&daemon, path, &question, stream).await);
    }
    let first = &asked[0].0;
    assert_eq!(first.cached, 0);
    for (again, _) in &asked[1..] {
        let expected = Prompt { text: first.text.clone(), cached: first.input - 1, input: first.input };
        assert_eq!(*again, expected, "all but the last token is cached, and the answer is the same");
    }
    let answer = json!({ "role": "assistant", "content": first.text });
    let turn = json!([user("What is 23 + 14?"), answer, user("What is the capital of France?")]);
    let second_turn = ask(&daemon, CHAT, &turn, false).await;
    // The template writes an answered turn without the mark that the model need not think, so the first turn is shared up to there.
    assert!((first.input / 2..first.input).contains(&second_turn.0.cached), "{second_turn:?}");
    asked.push(second_turn);

    // A request is counted when the stream of its answer is dropped, which the client can't see.
    let counted = async || daemon.metric("mlx_manager_requests_total", &[("outcome", "ok")]).await;
    eventually("every request is counted", async || counted().await == 6.0).await;
    let total = |count: fn(&Prompt) -> i64| asked.iter().map(|(prompt, _)| count(prompt)).sum::<i64>() as f64;
    let (input, cached) = (total(|prompt| prompt.input), total(|prompt| prompt.cached));
    let tokens = async |kind| daemon.metric("mlx_manager_tokens_total", &[("provider", "mlx"), ("type", kind)]).await;
    assert_eq!((tokens("input").await, tokens("cache_read").await), (input, cached));
    assert_eq!(daemon.metric("mlx_manager_prefix_cache_lookups_total", &[("model", "demo")]).await, 6.0);
    assert_eq!(daemon.metric("mlx_manager_prefix_cache_hits_total", &[("model", "demo")]).await, 5.0);
    let looked_up = async |name: &str| {
        daemon.metric(&format!("mlx_manager_prefix_cache_{name}_tokens_total"), &[("model", "demo")]).await
    };
    assert_eq!((looked_up("queried").await, looked_up("hit").await), (input, cached));
    assert!(daemon.metric("mlx_manager_kv_cache_bytes", &[("model", "demo")]).await > 0.0, "what is kept takes memory");
    assert_eq!(daemon.metric("mlx_manager_cost_usd_total", &[("provider", "mlx")]).await, 0.0);

    assert!(daemon.stop().await.success());
    let rows = audit_rows(daemon.folder.path()).await;
    assert_eq!(rows.len(), asked.len());
    // On a slow machine spans are announced before they end.
    let mut spans = otlp.spans();
    spans.retain(|span| span.text("logfire.span_type").as_deref() == Some("span"));
    for (prompt, trace) in &asked {
        let row = rows.iter().find(|row| row["trace_id"] == *trace).unwrap();
        assert_eq!((&row["input_tokens"], &row["cache_read_tokens"]), (&json!(prompt.input), &json!(prompt.cached)));
        assert_eq!(row["cost_usd"], Value::Null);
        let span = |name: &str| -> &ReceivedSpan {
            spans.iter().find(|span| span.trace_id() == *trace && span.span.name == name).unwrap()
        };
        let usage = |name: &str| span("chat demo").integer(&format!("gen_ai.usage.{name}")).unwrap();
        assert_eq!((usage("input_tokens"), usage("cache_read.input_tokens")), (prompt.input, prompt.cached));
        let prefill = |name: &str| span("prefill").integer(&format!("mlx_manager.{name}")).unwrap();
        assert_eq!((prefill("tokens"), prefill("cached_tokens")), (prompt.input, prompt.cached));
        let lookup = span("cache lookup");
        let found = |name: &str| lookup.integer(&format!("mlx_manager.{name}")).unwrap();
        assert_eq!((found("tokens"), found("cached_tokens")), (prompt.input, prompt.cached));
        assert!(found("matched_tokens") >= prompt.cached && lookup.text("mlx_manager.reason").is_some());
    }
}

#[tokio::test]
async fn every_answer_says_why_no_more_of_its_prompt_was_cached() {
    let daemon = Daemon::start("").await;
    let asked = "What is 23 + 14? Say the sum of the two numbers, and nothing else at all.";
    let question = json!([user(asked)]);
    let first = explained(&daemon, CHAT, &question, false).await;
    let tokens: usize =
        first.strip_prefix("matched=0/").and_then(|rest| rest.split(';').next()).unwrap().parse().unwrap();
    assert_eq!(first, format!("matched=0/{tokens}; restored=0; reason=\"nothing alike\""));
    for (path, stream) in [(CHAT, false), (CHAT, true), (MESSAGES, false), (MESSAGES, true)] {
        let again = explained(&daemon, path, &question, stream).await;
        assert_eq!(again, format!("matched={tokens}/{tokens}; restored={}; reason=\"whole prompt\"", tokens - 1));
    }
    let other = explained(&daemon, MESSAGES, &json!([user(&format!("{asked} Or do."))]), true).await;
    assert!(other.contains("reason=\"diverges at token "), "{other}");
    // A refusal was never looked up.
    let refused = daemon.post(CHAT, &json!({ "model": "demo", "messages": [] })).await;
    assert!(!refused.headers().contains_key("x-mlx-manager-cache"));
}

#[tokio::test]
async fn without_room_for_it_nothing_is_looked_up() {
    let daemon = Daemon::start("[local]\nprefix_cache = \"0 B\"\n").await;
    let question = json!([user("What is 23 + 14?")]);
    let (first, _) = ask(&daemon, CHAT, &question, false).await;
    let (second, _) = ask(&daemon, CHAT, &question, false).await;
    assert_eq!(first, second);
    assert_eq!(second.cached, 0);
    assert!(explained(&daemon, CHAT, &question, true).await.ends_with("restored=0; reason=\"cache off\""));
    assert_eq!(daemon.metric("mlx_manager_prefix_cache_lookups_total", &[("model", "demo")]).await, 0.0);
}

#[tokio::test]
async fn what_gives_way_in_memory_comes_back_from_disk() {
    let folder = TempDir::new().unwrap();
    let config = "[local]\nprefix_cache = \"300 KB\"\nprefix_disk = \"50 MB\"\n";
    let daemon = Daemon::start_in(folder, config, |_| {}).await;
    let sum = |number: u32| json!([user(&format!("What is {number} + 14? Say the sum, and nothing else at all."))]);
    let first = ask(&daemon, CHAT, &sum(23), false).await.0;
    let written = async || daemon.metric("mlx_manager_prefix_disk_writes_total", &[("model", "demo")]).await;
    for number in 30..80 {
        ask(&daemon, CHAT, &sum(number), false).await;
        if written().await > 0.0 {
            break;
        }
    }
    // It was used for longest before the others, so that it was the first to give way.
    let again = explained(&daemon, CHAT, &sum(23), false).await;
    assert!(again.contains("; disk="), "{again}");
    assert_eq!(ask(&daemon, CHAT, &sum(23), false).await.0.text, first.text);
    let read = daemon.metric("mlx_manager_prefix_disk_reads_total", &[("model", "demo")]).await;
    assert!(read >= 1.0 && daemon.metric("mlx_manager_prefix_disk_bytes", &[]).await > 0.0);
}
