//! What the daemon cuts off at its end is its own doing, and is said to be.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::endless_model;
use crate::{
    peer::{
        daemon::{Daemon, PATIENCE},
        otlp::Otlp,
    },
    serve::audit_rows,
};

#[tokio::test]
async fn what_the_drain_cuts_off_is_no_clients_abort() {
    let folder = TempDir::new().unwrap();
    endless_model(&folder.path().join("models/endless"));
    let otlp = Otlp::start().await;
    let config = format!(
        "[local]\ndefault_model = \"endless\"\n[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\n",
        otlp.endpoint()
    );
    let mut daemon = Daemon::start_in(folder, &config, |command| {
        command.env("MLX_MANAGER_SERVER_DRAIN_TIMEOUT", "200 ms");
    })
    .await;
    let ask = |stream: bool, words: usize| {
        let content = "fox ".repeat(words);
        json!({ "model": "endless", "stream": stream, "messages": [{ "role": "user", "content": content }] })
    };
    let mut answering = daemon.post("/v1/chat/completions", &ask(true, 1)).await;
    assert!(answering.chunk().await.unwrap().is_some());
    // One whose prompt takes far longer than the drain.
    let url = daemon.url("/v1/chat/completions");
    let prefilling = TaskTracker::new().spawn(daemon.client.post(url).json(&ask(false, 20_000)).send());
    let patience = tokio::time::Instant::now() + PATIENCE;
    while daemon.metric("mlx_manager_queue_wait_seconds_count", &[]).await < 2.0 {
        assert!(tokio::time::Instant::now() < patience, "the turn of the long prompt");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(daemon.stop().await.success());
    assert!(prefilling.await.unwrap().is_err(), "its connection is closed");

    let rows = audit_rows(daemon.folder.path()).await;
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert_eq!(row["outcome"], "shutdown", "{row}");
    }
    let spans = join_all(rows.iter().map(|row| {
        otlp.span(|span| span.span.name == "chat endless" && Some(span.trace_id().as_str()) == row["trace_id"].as_str())
    }))
    .await;
    for span in spans {
        assert_eq!(span.text("mlx_manager.outcome").as_deref(), Some("shutdown"));
    }
    let log = daemon.read("logs/mlx-server.log");
    let told = log.lines().filter(|line| line.contains("request finished") && line.contains("outcome=shutdown"));
    assert_eq!(told.count(), 2, "{log}");
}
