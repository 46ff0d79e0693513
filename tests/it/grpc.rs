//! Telemetry by gRPC: the same as over HTTP, whatever the collector says.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::Code;

use crate::peer::{
    daemon::{Daemon, PATIENCE},
    otlp::{Otlp, ReceivedSpan},
    upstream::Upstream,
};

const SECRET: &str = "Basic bWx4OnRvcC1zZWNyZXQ=";
const SPOOL: &str = "spool = { dir = \"spool\", size = \"100 MB\" }\n";

fn provider(upstream: &Upstream) -> String {
    format!(
        "[[providers]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"{}\"\n[[routes]]\nmodel = \"gpt-*\"\ntargets = [\"up\"]\n",
        upstream.openai()
    )
}

/// A destination; its time limit is one that a busy machine keeps, because what it doesn't keep is sent again.
fn destination(otlp: &Otlp, rest: &str) -> String {
    format!("[[otlp]]\nname = \"collector\"\nendpoint = \"{}\"\ntimeout = \"1 min\"\n{rest}\n", otlp.endpoint())
}

fn grpc(otlp: &Otlp, rest: &str) -> String {
    destination(otlp, &format!("kind = \"otlp\"\nprotocol = \"grpc\"\n{rest}"))
}

/// Calls the daemon that often, one after the other, and returns the trace of each request.
async fn chat(daemon: &Daemon, times: usize) -> Vec<String> {
    let mut traces = Vec::new();
    for _ in 0..times {
        let body = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }] });
        let response = daemon.post("/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 200);
        let traceparent = response.headers()["traceparent"].to_str().unwrap().to_owned();
        traces.push(traceparent.split('-').nth(1).unwrap().to_owned());
    }
    traces
}

/// What ended: a machine that takes a second for a request has its spans announced to Logfire too.
fn ended(otlp: &Otlp) -> Vec<ReceivedSpan> {
    let mut spans = otlp.spans();
    spans.retain(|span| span.text("logfire.span_type").is_none_or(|kind| kind == "span"));
    spans
}

/// The traces of the chats that arrived, in the order in which they did.
fn chats(otlp: &Otlp) -> Vec<String> {
    ended(otlp).iter().filter(|span| span.span.name == "chat gpt-x").map(ReceivedSpan::trace_id).collect()
}

async fn eventually(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !happened().await {
        assert!(start.elapsed() < PATIENCE, "{what} never happened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn counted(daemon: &Daemon, name: &str) -> u64 {
    let name = format!("mlx_manager_telemetry_{name}_total");
    daemon.metric(&name, &[("signal", "traces"), ("destination", "collector")]).await as u64
}

#[tokio::test]
async fn every_signal_arrives_with_its_resource_and_the_headers_and_causes_no_other() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    let config = grpc(&otlp, "headers = { Authorization = \"${COLLECTOR_LOGIN}\" }");
    let mut daemon = Daemon::start_with(&(config + &provider(&upstream)), |command| {
        command.env("COLLECTOR_LOGIN", SECRET);
        // What carries a call tells of it, its headers included.
        command.env("LOG_LEVEL", "trace,tonic=trace,h2=trace,hyper=trace,hyper_util=trace,reqwest=trace");
    })
    .await;
    let traces = chat(&daemon, 3).await;
    eventually("every chat", async || chats(&otlp).len() == traces.len()).await;
    let page = daemon.scrape().await;
    assert!(daemon.stop().await.success());

    assert_eq!(chats(&otlp), traces);
    let names = ["mlx-manager", "mlx-server"].map(str::to_owned);
    for signal in ["traces", "logs"] {
        for name in &names {
            assert!(otlp.services().contains(&(signal, name.clone())), "{signal} of {name}: {:?}", otlp.services());
        }
    }
    assert!(otlp.services().contains(&("metrics", names[0].clone())), "{:?}", otlp.services());
    assert!(otlp.metrics().iter().any(|metric| metric.name == "gen_ai.client.token.usage"));
    let targets = otlp.log_targets();
    let carriers = ["h2", "hyper", "reqwest", "tonic", "tower"];
    let carried = |target: &String| carriers.iter().any(|carrier| target.starts_with(carrier));
    assert!(targets.len() > 1 && !targets.iter().any(carried), "{targets:?}");
    let calls = otlp.grpc.lock().unwrap().answered;
    assert_eq!(otlp.authorizations(), vec![SECRET.to_owned(); calls as usize], "each call brings it");
    let said = [daemon.stderr().join("\n"), daemon.read("logs/mlx-manager.log"), daemon.read("logs/mlx-server.log")];
    assert!(said[0].contains("h2::") && said.iter().all(|text| !text.is_empty()));
    assert!(!said.iter().chain([&page]).any(|text| text.contains(SECRET)), "the secret was said");
}

#[tokio::test]
async fn what_is_turned_away_for_a_while_arrives_once() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    otlp.answer_calls(Code::Unavailable);
    let config = grpc(&otlp, "signals = [\"traces\"]") + &provider(&upstream);
    let mut daemon = Daemon::start(&config).await;
    let traces = chat(&daemon, 5).await;
    eventually("a second attempt", async || otlp.grpc.lock().unwrap().answered >= 2).await;
    assert!(chats(&otlp).is_empty());
    otlp.answer_calls(Code::Ok);
    eventually("every chat", async || chats(&otlp).len() >= traces.len()).await;
    assert_eq!(counted(&daemon, "failed").await, 0);
    assert!(daemon.stop().await.success());

    assert_eq!(chats(&otlp), traces);
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for span in otlp.spans() {
        *times.entry(span.id()).or_default() += 1;
    }
    assert!(times.values().all(|&times| times == 1), "{times:?}");
    let said = daemon.stderr().join("\n");
    assert!(said.contains("gRPC status Unavailable") && !said.contains("words that may"), "{said}");
}

#[tokio::test]
async fn a_refusal_is_counted_once_and_not_tried_again() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    otlp.answer_calls(Code::InvalidArgument);
    let config = grpc(&otlp, &format!("signals = [\"traces\"]\n{SPOOL}")) + &provider(&upstream);
    let mut daemon = Daemon::start(&config).await;
    let refused = chat(&daemon, 3).await;
    // The spans of a request, and those of the rows that tell of it.
    eventually("a failure of each", async || counted(&daemon, "failed").await > 4 * refused.len() as u64).await;
    otlp.answer_calls(Code::Ok);
    let taken = chat(&daemon, 3).await;
    eventually("the rest", async || chats(&otlp).len() >= taken.len()).await;
    assert_eq!(counted(&daemon, "failed").await, otlp.grpc.lock().unwrap().spans_turned_away);
    assert_eq!(daemon.metric("mlx_manager_spool_bytes", &[]).await, 0.0);
    assert!(daemon.stop().await.success());
    assert_eq!(chats(&otlp), taken);
}

#[tokio::test]
async fn what_a_success_rejects_is_counted_as_failed() {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    otlp.grpc.lock().unwrap().rejected_spans = 1;
    let config = grpc(&otlp, "signals = [\"traces\"]") + &provider(&upstream);
    let mut daemon = Daemon::start(&config).await;
    let traces = chat(&daemon, 3).await;
    eventually("every chat", async || chats(&otlp).len() >= traces.len()).await;
    eventually("a count of all that was sent", async || {
        let calls = otlp.grpc.lock().unwrap().answered;
        let (exported, failed) = (counted(&daemon, "exported").await, counted(&daemon, "failed").await);
        failed > 0 && failed == calls && exported + failed == otlp.spans().len() as u64
    })
    .await;
    assert!(daemon.stop().await.success());
}

/// A collector that is away before the daemon starts, with a restart that changes how it is called before it comes back.
async fn outage(before: &str, after: &str) {
    let (upstream, otlp) = (Upstream::start().await, Otlp::start().await);
    otlp.close(true);
    let config =
        |how: &str| destination(&otlp, &format!("{how}\nsignals = [\"traces\"]\n{SPOOL}")) + &provider(&upstream);
    let mut daemon = Daemon::start(&config(before)).await;
    let mut traces = chat(&daemon, 4).await;
    eventually("a spool", async || daemon.metric("mlx_manager_spool_bytes", &[]).await > 0.0).await;
    assert!(daemon.stop().await.success());
    let folder = std::mem::replace(&mut daemon.folder, TempDir::new().unwrap());

    let mut daemon = Daemon::start_in(folder, &config(after), |_| {}).await;
    assert!(daemon.metric("mlx_manager_spool_bytes", &[]).await > 0.0, "it survived");
    traces.extend(chat(&daemon, 4).await);
    assert!(otlp.spans().is_empty());
    otlp.close(false);
    traces.extend(chat(&daemon, 4).await);
    eventually("every chat", async || chats(&otlp).len() >= traces.len()).await;
    eventually("an empty spool", async || daemon.metric("mlx_manager_spool_bytes", &[]).await == 0.0).await;
    assert_eq!((counted(&daemon, "dropped").await, counted(&daemon, "failed").await), (0, 0));
    assert!(daemon.stop().await.success());
    assert_eq!(chats(&otlp), traces, "in order, and each once");
}

const GRPC: &str = "kind = \"otlp\"\nprotocol = \"grpc\"";

#[tokio::test]
async fn a_collector_that_comes_back_gets_everything_in_order() {
    outage(GRPC, GRPC).await;
}

/// Batches for Logfire are compressed, and gRPC would compress them in its own way.
#[tokio::test]
async fn what_http_left_in_the_spool_goes_by_grpc() {
    outage("kind = \"logfire\"\ntoken = \"pylf_v1_us_spool\"", GRPC).await;
}

#[tokio::test]
async fn what_grpc_left_in_the_spool_goes_by_http() {
    outage(GRPC, "kind = \"logfire\"\ntoken = \"pylf_v1_us_spool\"").await;
}
