//! A collector that is away while the daemon works: callers notice nothing, memory stays, and every span arrives once.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

use crate::peer::{
    daemon::{Daemon, PATIENCE, sum},
    otlp::{Otlp, ReceivedSpan},
    upstream::Upstream,
};

/// Requests under way at a time.
const CALLERS: usize = 4;
/// What waiting telemetry, the allocator and a busy machine may take.
const MEMORY_BYTES: f64 = 96.0 * 1024.0 * 1024.0;

fn config(upstream: &Upstream, otlp: &Otlp) -> String {
    format!(
        r#"
[[otlp]]
name = "collector"
kind = "logfire"
token = "pylf_v1_us_spool"
endpoint = "{}"
signals = ["traces"]
spool = {{ dir = "spool", size = "1 GB" }}
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
    )
}

/// Calls until told to stop and returns the trace of each request, all of which were answered.
async fn load(daemon: &Daemon, pause: Duration, go_on: impl Fn(usize) -> bool) -> Vec<String> {
    let mut traces = Vec::new();
    while go_on(traces.len()) {
        let calls = (0..CALLERS).map(|index| async move {
            let body = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }], "stream": index % 2 == 0 });
            let response = daemon.post("/v1/chat/completions", &body).await;
            assert_eq!(response.status(), 200);
            let traceparent = response.headers()["traceparent"].to_str().unwrap().to_owned();
            assert!(!response.text().await.unwrap().is_empty());
            traceparent.split('-').nth(1).unwrap().to_owned()
        });
        traces.extend(futures_util::future::join_all(calls).await);
        tokio::time::sleep(pause).await;
    }
    traces
}

pub async fn eventually(what: &str, mut happened: impl AsyncFnMut() -> bool) {
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

/// What ended: a machine that takes a second for a request has its spans announced too.
fn ended(otlp: &Otlp) -> Vec<ReceivedSpan> {
    let mut spans = otlp.spans();
    spans.retain(|span| span.text("logfire.span_type").as_deref() == Some("span"));
    spans
}

/// Each trace with the names of its spans but those of the audit rows, which requests share.
fn by_trace(spans: &[ReceivedSpan]) -> HashMap<String, Vec<String>> {
    let mut traces: HashMap<String, Vec<String>> = HashMap::new();
    for span in spans.iter().filter(|span| !span.span.name.ends_with(" requests")) {
        traces.entry(span.trace_id()).or_default().push(span.span.name.clone());
    }
    traces.values_mut().for_each(|names| names.sort_unstable());
    traces
}

/// The collector is away for as long as `go_on` says; the daemon is stopped and started before it comes back. `pause` is
/// between two rounds of calls.
async fn outage(pause: Duration, go_on: impl Fn(usize) -> bool) {
    let upstream = Upstream::start().await;
    let otlp = Otlp::start().await;
    otlp.answer(503);
    let config = config(&upstream, &otlp);
    let mut daemon = Daemon::start(&config).await;
    let mut traces = load(&daemon, pause, |done| done < 40).await;
    eventually("a spool", async || daemon.metric("mlx_manager_spool_bytes", &[]).await > 0.0).await;
    let before = daemon.metric("process_resident_memory_bytes", &[]).await;
    traces.extend(load(&daemon, pause, &go_on).await);
    let page = daemon.scrape().await;
    eprintln!("{} requests, {} bytes in the spool", traces.len(), sum(&page, "mlx_manager_spool_bytes", &[]));
    let grown = sum(&page, "process_resident_memory_bytes", &[]) - before;
    eprintln!("{before} bytes of memory before and {} after", before + grown);
    assert!(grown < MEMORY_BYTES, "{grown} bytes more after {} requests", traces.len());
    assert_eq!(counted(&daemon, "exported").await, 0);
    assert!(daemon.stop().await.success());
    let folder = std::mem::replace(&mut daemon.folder, TempDir::new().unwrap());
    assert!(otlp.spans().is_empty());

    let mut daemon = Daemon::start_in(folder, &config, |_| {}).await;
    traces.extend(load(&daemon, pause, |done| done < 40).await);
    otlp.answer(200);
    traces.extend(load(&daemon, pause, |done| done < 8).await);
    eventually("an empty spool", async || daemon.metric("mlx_manager_spool_bytes", &[]).await == 0.0).await;
    eventually("every request's span", async || {
        let spans = ended(&otlp);
        spans.iter().filter(|span| span.span.name.starts_with("POST /v1")).count() >= traces.len()
    })
    .await;
    let folder = daemon.folder.path().join("spool/collector");
    eventually("an empty folder", async || std::fs::read_dir(&folder).unwrap().count() == 1).await;
    assert_eq!((counted(&daemon, "dropped").await, counted(&daemon, "failed").await), (0, 0));
    assert!(daemon.stop().await.success());

    let received = by_trace(&ended(&otlp));
    for trace in &traces {
        let names = received.get(trace).unwrap_or_else(|| panic!("the trace {trace} never arrived"));
        assert_eq!(*names, ["POST", "POST /v1/chat/completions", "chat gpt-x", "route gpt-x"], "{trace}");
    }
    assert_eq!(received.len(), traces.len(), "and nothing else");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_and_gets_every_span_in_the_end() {
    outage(Duration::ZERO, |done| done < 400).await;
}

/// As long as an outage may well last. Run by hand: `cargo nextest run --run-ignored only ten_minutes`.
#[tokio::test]
#[ignore = "takes ten minutes"]
async fn a_collector_that_is_away_for_ten_minutes_gets_every_span_in_the_end() {
    let start = Instant::now();
    outage(Duration::from_millis(25), |_| start.elapsed() < Duration::from_mins(10)).await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_spool_is_refused_in_words() {
    let upstream = Upstream::start().await;
    let otlp = Otlp::start().await;
    let daemon = Daemon::start(&config(&upstream, &otlp)).await;
    let second = TempDir::new().unwrap();
    let spool = daemon.folder.path().join("spool");
    let config = config(&upstream, &otlp).replace("dir = \"spool\"", &format!("dir = {spool:?}"));
    std::fs::write(second.path().join("config.toml"), format!("[server]\nlisten = \"127.0.0.1:0\"\n{config}")).unwrap();
    let output = crate::peer::daemon::command(second.path()).arg("serve").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("another process uses it") && said.contains("otlp \"collector\""), "{said}");
}
