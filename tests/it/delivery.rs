//! Collectors that are slow, picky or back again, and spools that somebody meddles with.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::peer::{
    daemon::{Daemon, PATIENCE},
    otlp::{Otlp, ReceivedSpan},
    upstream::Upstream,
};

const SPOOL: &str = "spool = { dir = \"spool\", size = \"100 MB\" }";

/// A daemon that sends to a collector; its time limit is one that a busy machine keeps.
async fn start(otlp: &Otlp, rest: &str) -> (Upstream, Daemon) {
    let upstream = Upstream::start().await;
    let config = format!(
        r#"
[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "{}"
timeout = "2 min"
{rest}
[[providers]]
name = "up"
kind = "openai"
base_url = "{}"
[[routes]]
model = "gpt-*"
targets = ["up"]
"#,
        otlp.endpoint(),
        upstream.openai()
    );
    let daemon = Daemon::start(&config).await;
    (upstream, daemon)
}

/// Calls the daemon once and returns the request's trace.
async fn chat(daemon: &Daemon) -> String {
    let body = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }] });
    let response = daemon.post("/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200);
    response.headers()["traceparent"].to_str().unwrap().split('-').nth(1).unwrap().to_owned()
}

/// Calls the daemon until so many batches of spans wait on disk.
async fn chat_until_spooled(daemon: &Daemon, batches: usize) -> Vec<String> {
    let mut traces = Vec::new();
    let start = Instant::now();
    while spooled(daemon, ".traces.").len() < batches {
        assert!(start.elapsed() < PATIENCE, "not spooled: {:?}", spooled(daemon, ""));
        traces.push(chat(daemon).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    traces
}

/// The batches in the spool whose names have this part.
fn spooled(daemon: &Daemon, part: &str) -> Vec<PathBuf> {
    let Ok(files) = fs::read_dir(daemon.folder.path().join("spool/collector")) else { return Vec::new() };
    let files = files.map(|file| file.unwrap().path());
    let whole = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gz" || extension == "pb");
    files.filter(|path| whole(path) && path.to_str().unwrap().contains(part)).collect()
}

/// The traces of the chats that arrived, in the order in which they did.
fn chats(otlp: &Otlp) -> Vec<String> {
    otlp.spans().iter().filter(|span| span.span.name == "chat gpt-x").map(ReceivedSpan::trace_id).collect()
}

async fn eventually(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !happened().await {
        assert!(start.elapsed() < PATIENCE, "{what} never happened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn counted(daemon: &Daemon, name: &str, signal: &str) -> u64 {
    let name = format!("mlx_manager_telemetry_{name}_total");
    daemon.metric(&name, &[("signal", signal), ("destination", "collector")]).await as u64
}

fn lines(daemon: &Daemon, part: &str) -> Vec<String> {
    let mut lines = daemon.stderr();
    lines.retain(|line| line.contains(part));
    lines
}

#[tokio::test]
async fn what_comes_while_a_collector_is_slow_waits_on_disk_and_arrives_once_and_in_order() {
    let otlp = Otlp::start().await;
    otlp.hold(true);
    let (_upstream, mut daemon) = start(&otlp, &format!("signals = [\"traces\"]\n{SPOOL}")).await;
    let mut traces = chat_until_spooled(&daemon, 3).await;
    let file = &spooled(&daemon, ".traces.")[0];
    assert!(file.extension().unwrap() == "gz" && fs::read(file).unwrap().starts_with(&[0x1f, 0x8b]), "{file:?}");
    assert!(otlp.spans().is_empty());
    otlp.hold(false);
    traces.push(chat(&daemon).await);
    eventually("every chat", async || chats(&otlp).len() >= traces.len()).await;
    eventually("an empty spool", async || spooled(&daemon, "").is_empty()).await;
    assert!(daemon.stop().await.success());
    assert_eq!(chats(&otlp), traces);
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    otlp.spans().iter().for_each(|span| *times.entry(span.id()).or_default() += 1);
    assert!(times.values().all(|&times| times == 1), "{times:?}");
}

#[tokio::test]
async fn batches_whose_files_vanish_cost_themselves_only() {
    let otlp = Otlp::start().await;
    otlp.answer(503);
    let (_upstream, mut daemon) = start(&otlp, &format!("signals = [\"traces\"]\n{SPOOL}")).await;
    chat_until_spooled(&daemon, 4).await;
    for file in spooled(&daemon, "") {
        // The oldest may have been given up already.
        drop(fs::remove_file(file));
    }
    chat_until_spooled(&daemon, 2).await;
    // All at once, as the daemon may be about to write there.
    fs::rename(daemon.folder.path().join("spool"), daemon.folder.path().join("gone")).unwrap();
    let mut kept = chat_until_spooled(&daemon, 2).await;
    otlp.answer(200);
    kept.push(chat(&daemon).await);
    eventually("what was spooled since", async || chats(&otlp).contains(kept.last().unwrap())).await;
    assert!(chats(&otlp).ends_with(&kept), "{kept:?} of {:?}", chats(&otlp));
    assert!(counted(&daemon, "dropped", "traces").await > 0);
    eventually("a word of it", async || !lines(&daemon, "its file in the spool is gone or damaged").is_empty()).await;
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_signal_that_a_collector_does_not_take_holds_up_no_other() {
    let otlp = Otlp::start().await;
    otlp.answer_at("/v1/traces", 500);
    otlp.answer_at("/v1/metrics", 404);
    let (_upstream, mut daemon) = start(&otlp, SPOOL).await;
    let mut traces = chat_until_spooled(&daemon, 3).await;
    for _ in 0..3 {
        let logs = otlp.logs().len();
        traces.push(chat(&daemon).await);
        eventually("its log", async || otlp.logs().len() > logs).await;
    }
    assert!(chats(&otlp).is_empty() && !spooled(&daemon, ".traces.").is_empty());
    let said = lines(&daemon, "telemetry endpoint is");
    let of = |signal: &str| said.iter().filter(|line| line.contains(&format!("signal={signal}"))).count();
    assert_eq!((of("traces"), of("logs")), (1, 0), "{said:#?}");
    otlp.answer_at("/v1/traces", 200);
    eventually("every chat", async || chats(&otlp).len() >= traces.len()).await;
    assert_eq!(chats(&otlp), traces);
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_key_that_is_denied_costs_nothing_that_a_spool_can_keep() {
    let otlp = Otlp::start().await;
    otlp.answer(401);
    let (_upstream, mut daemon) = start(&otlp, &format!("signals = [\"traces\"]\n{SPOOL}")).await;
    let traces = chat_until_spooled(&daemon, 2).await;
    eventually("a word of it", async || !lines(&daemon, "401 Unauthorized: because of its tenant").is_empty()).await;
    otlp.answer(200);
    eventually("every chat", async || chats(&otlp).len() >= traces.len()).await;
    assert_eq!(chats(&otlp), traces);
    assert_eq!(counted(&daemon, "failed", "traces").await, 0);
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn what_is_refused_is_mentioned_once_with_its_cause() {
    let otlp = Otlp::start().await;
    otlp.answer_at("/v1/traces", 400);
    otlp.answer_at("/v1/metrics", 404);
    let (_upstream, mut daemon) = start(&otlp, "").await;
    chat(&daemon).await;
    eventually("a refusal", async || counted(&daemon, "failed", "traces").await > 0).await;
    let refused = "status 400 Bad Request: because of its tenant";
    eventually("a word of it", async || !lines(&daemon, refused).is_empty()).await;
    assert_eq!(lines(&daemon, refused).len(), 1, "{:#?}", daemon.stderr());
    // The last metrics go out when the daemon stops.
    assert!(daemon.stop().await.success());
    let said = lines(&daemon, "status 404 Not Found");
    assert!(!said.is_empty(), "{:#?}", daemon.stderr());
    assert!(said[0].contains("WARN") && said[0].contains("metrics") && said[0].contains("collector"), "{said:#?}");
    assert_eq!(
        lines(&daemon, "the queue in memory is full"),
        Vec::<String>::new(),
        "what is said at the end isn't sent"
    );
    assert_eq!(lines(&daemon, "opentelemetry_sdk"), Vec::<String>::new());
}
