//! Log sinks that fail while a daemon with models runs.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::serve::question;
use crate::{
    logs::{eventually, lead_logs_to, one_sink, verify},
    peer::daemon::{Daemon, PATIENCE},
};

/// Waits until the sink could not write so many times.
async fn failed_writes(daemon: &Daemon, least: f64) {
    let errors = || daemon.metric("mlx_manager_log_io_errors_total", &[("sink", "app")]);
    let deadline = Instant::now() + PATIENCE;
    while errors().await < least {
        assert!(Instant::now() < deadline, "no more than {} failures", errors().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn sink_that_breaks_at_run_time_is_reported_once_and_recovers() {
    let sinks = format!("{}[[log.sinks]]\nname = \"console\"\nkind = \"console\"\n", one_sink("json", ""));
    let folder = TempDir::new().unwrap();
    lead_logs_to(folder.path(), "real");
    let mut daemon = Daemon::start_in(folder, &sinks, |_| {}).await;
    lead_logs_to(daemon.folder.path(), "file");
    failed_writes(&daemon, 1.0).await;
    assert_eq!(daemon.post("/v1/chat/completions", &question(false)).await.status(), 200);
    assert_eq!(daemon.get("/health").await.status(), 200);
    failed_writes(&daemon, 4.0).await;
    lead_logs_to(daemon.folder.path(), "real");
    assert!(daemon.stop().await.success());
    let said = daemon.stderr();
    assert_eq!(said.iter().filter(|line| line.contains("cannot write log file")).count(), 1, "{said:#?}");
    let text = daemon.read("logs/app.log");
    assert!(
        text.contains("mlx-manager is serving") && text.contains("request finished") && text.contains("has stopped"),
        "{text}"
    );
    let (code, out, _) = verify(daemon.folder.path(), &["logs/app.log"]);
    assert!(code == 0 && out.contains(": none is missing"), "{out}");
}

#[tokio::test]
async fn outage_that_outlasts_the_daemon_is_told_and_leaves_a_gap() {
    let sinks =
        format!("{}[[log.sinks]]\nname = \"console\"\nkind = \"console\"\nformat = \"logfmt\"\n", one_sink("json", ""));
    let folder = TempDir::new().unwrap();
    lead_logs_to(folder.path(), "real");
    let mut daemon = Daemon::start_in(folder, &sinks, |_| {}).await;
    eventually("a line", || daemon.read("logs/app.log").contains("mlx-manager is serving"));
    lead_logs_to(daemon.folder.path(), "file");
    let deadline = Instant::now() + PATIENCE;
    while !daemon.stderr().iter().any(|line| line.contains("cannot write log file")) {
        assert!(Instant::now() < deadline, "{:#?}", daemon.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.post("/v1/chat/completions", &question(false)).await.status(), 200);
    assert!(daemon.stop().await.success());
    let said = daemon.stderr();
    let last_words = said.iter().filter(|line| line.contains("could not be written to the end: ")).count();
    assert_eq!(last_words, 1, "{said:#?}");
    // What the console says of it is written as its other lines are.
    for line in said.iter().filter(|line| line.contains("log file")) {
        assert!(line.starts_with("timestamp=") && line.contains(" level=ERROR "), "{line}");
    }

    let folder = std::mem::replace(&mut daemon.folder, TempDir::new().unwrap());
    lead_logs_to(folder.path(), "real");
    let mut daemon = Daemon::start_in(folder, &sinks, |_| {}).await;
    assert!(daemon.stop().await.success());
    let (code, out, _) = verify(daemon.folder.path(), &["logs/app.log"]);
    assert!(code == 1 && out.contains("unexplained"), "{out}");
}

#[test]
fn console_speaks_to_journald_only_where_it_listens() {
    let folder = TempDir::new().unwrap();
    let config = "[server]\nlisten = \"127.0.0.1:0\"\n[metrics.prometheus]\nenabled = false\n\
        [[log.sinks]]\nname = \"console\"\nkind = \"console\"\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    for (offset, prefix) in [(0, "<6>2"), (1, "2")] {
        let path = folder.path().join("stderr");
        let stderr = fs::File::create(&path).unwrap();
        let stat = stderr.metadata().unwrap();
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_mlx-manager"))
            .arg("serve")
            .current_dir(&folder)
            .env_clear()
            .env("HOME", folder.path())
            .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
            .env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino() + offset))
            .stderr(stderr)
            .spawn()
            .unwrap();
        eventually("a line", || fs::read_to_string(&path).unwrap().contains("mlx-manager is serving"));
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let whole = &text[..=text.rfind('\n').unwrap()];
        assert!(whole.lines().all(|line| line.starts_with(prefix) && !line.contains('\x1b')), "{text}");
    }
}
