//! SIGHUP: log files are opened anew and `[log]` is read again, while requests go on.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::peer::daemon::{Daemon, PATIENCE};

const CONFIG: &str = "config.toml";

/// Waits until the manager's log has a text so many times.
async fn logged(daemon: &Daemon, text: &str, times: usize) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = daemon.read("logs/mlx-manager.log");
        if log.matches(text).count() >= times {
            return log;
        }
        assert!(Instant::now() < deadline, "{text:?} is not there {times} times: {log}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn rewrite(daemon: &Daemon, change: impl FnOnce(String) -> String) {
    let path = daemon.folder.path().join(CONFIG);
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
}

fn unknown_model() -> Value {
    json!({ "model": "nobody", "messages": [{ "role": "user", "content": "Hi" }] })
}

#[tokio::test]
async fn reloads_under_load_lose_no_line() {
    let log = |level: &str, size: &str, more: &str| {
        format!(
            r#"[log]
level = "{level}"
[[log.sinks]]
name = "mlx-server"
kind = "file"
file = "mlx-server.log"
format = "json"
include = ["mlx_manager::server"]
rotation = {{ size = "{size}" }}
[[log.sinks]]
name = "mlx-manager"
kind = "file"
file = "mlx-manager.log"
exclude = ["mlx_manager::server"]
[[log.sinks]]
name = "console"
kind = "console"
{more}"#
        )
    };
    let extra = "[[log.sinks]]\nname = \"extra\"\nkind = \"file\"\nfile = \"extra.log\"\nformat = \"json\"\n";
    let plans = [log("info", "10 MB", ""), log("debug", "20 kB", extra), log("info", "50 kB", "")];
    let mut daemon = Daemon::start(&plans[0]).await;
    let head = daemon.read(CONFIG).split("[log]").next().unwrap().to_owned();
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ask = async || {
        let mut ids = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            let response = daemon.post("/v1/chat/completions", &unknown_model()).await;
            assert_eq!(response.status(), 404);
            answered.fetch_add(1, Ordering::Relaxed);
            ids.insert(response.headers()["x-request-id"].to_str().unwrap().to_owned());
        }
        ids
    };
    let reload = async {
        for (round, plan) in plans.iter().cycle().skip(1).take(12).enumerate() {
            fs::write(daemon.folder.path().join(CONFIG), format!("{head}{plan}")).unwrap();
            daemon.signal("HUP");
            logged(&daemon, "[log] reloaded", round + 1).await;
            // More than are under way, so that some ran under this plan alone.
            let enough = answered.load(Ordering::Relaxed) + 6;
            let deadline = Instant::now() + PATIENCE;
            while answered.load(Ordering::Relaxed) < enough {
                assert!(Instant::now() < deadline, "requests are not answered");
                sleep(Duration::from_millis(5)).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (asked, ()) = tokio::join!(join_all([ask(), ask(), ask()]), reload);
    assert!(daemon.stop().await.success());

    let folder = daemon.folder.path().join("logs");
    let archive = fs::read_dir(folder.join("archive")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let archives: String = archive
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("mlx-server."))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let text = archives + &daemon.read("logs/mlx-server.log");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut sequence: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    sequence.sort_unstable();
    assert!(sequence.iter().copied().eq(0..lines.len() as u64), "numbers are missing among {}", lines.len());
    let finished = lines.iter().filter(|line| line["message"] == "request finished");
    let mut finished: Vec<_> = finished.map(|line| line["request_id"].as_str().unwrap().to_owned()).collect();
    finished.sort_unstable();
    let asked: BTreeSet<_> = asked.into_iter().flatten().collect();
    assert!(finished.iter().eq(&asked), "each request has its one line: {} of {}", finished.len(), asked.len());
    assert!(lines.iter().any(|line| line["level"] == "DEBUG" && line["failure_story"].is_null()), "debug was on");
}

#[tokio::test]
async fn bad_file_changes_nothing_and_says_where_it_is_wrong() {
    let provider = |key: &str| {
        format!(
            "[[providers]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\napi_key = \"{key}\"\n"
        )
    };
    let mut daemon = Daemon::start(&format!("{}[log]\nlevel = \"info\"\n", provider("sk-first-key"))).await;
    let good = daemon.read(CONFIG);
    let line = 1 + good.lines().position(|line| line.starts_with("level")).unwrap();

    rewrite(&daemon, |text| text.replace("level = \"info\"", "level = \"loud\"\ntimezon = \"utc\""));
    daemon.signal("HUP");
    let log = logged(&daemon, "the configuration was not reloaded", 1).await;
    let refused = log.lines().find(|line| line.contains("not reloaded")).unwrap();
    assert!(refused.contains("| ERROR") && refused.contains("count=2"), "{refused}");
    for part in [&format!("{CONFIG}:{line}:"), &format!("{CONFIG}:{}:", line + 1), "loud", "timezone"] {
        assert!(refused.contains(part), "{part} is missing: {refused}");
    }
    assert!(log.contains("log files reopened"), "moved files are looked after in any case");

    fs::remove_file(daemon.folder.path().join(CONFIG)).unwrap();
    daemon.signal("HUP");
    let log = logged(&daemon, "the configuration was not reloaded", 2).await;
    assert!(log.contains("built-in default would take the place of config.toml"), "{log}");

    // Good again: the level is in effect at once, and what is not is named.
    let changed = good.replace("level = \"info\"", "level = \"debug\"").replace("sk-first-key", "sk-second-key");
    fs::write(daemon.folder.path().join(CONFIG), changed.replacen("127.0.0.1:0", "127.0.0.1:4", 1)).unwrap();
    daemon.signal("HUP");
    let log = logged(&daemon, "[log] reloaded", 1).await;
    let restart = log.lines().find(|line| line.contains("needs a restart")).unwrap();
    assert!(restart.contains("| WARNING") || restart.contains("| WARN "), "{restart}");
    assert!(restart.ends_with("needs a restart: [server].listen, providers[0].api_key"), "{restart}");
    assert_eq!(daemon.get("/health").await.status(), 200);
    logged(&daemon, "request answered", 1).await;
    assert!(daemon.stop().await.success());
    assert!(!daemon.read("logs/mlx-manager.log").contains("sk-"), "a key is in the log");
}

#[tokio::test]
async fn environment_beats_the_file_at_a_reload_too() {
    let mut daemon = Daemon::start_with("[log]\nlevel = \"debug\"\n", |command| {
        command.env("LOG_LEVEL", "info");
    })
    .await;
    daemon.signal("HUP");
    let log = logged(&daemon, "[log] reloaded", 1).await;
    assert!(!log.contains("beaten"), "{log}");
    rewrite(&daemon, |text| text.replace("debug", "trace"));
    daemon.signal("HUP");
    let log = logged(&daemon, "[log] reloaded", 2).await;
    assert!(log.contains("changed in the file and beaten from outside: log.level (by environment LOG_LEVEL)"), "{log}");
    assert_eq!(daemon.get("/health").await.status(), 200);
    assert!(daemon.stop().await.success());
    let log = daemon.read("logs/mlx-manager.log");
    assert!(!log.contains("| DEBUG") && !log.contains("| TRACE"), "{log}");
}
