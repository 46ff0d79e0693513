//! How the daemon starts, and what its commands end with.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use sqlx::{Column, Connection, Row, SqliteConnection, TypeInfo, ValueRef};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};

use crate::peer::daemon::{Daemon, PATIENCE, command};

/// All audit rows in order, as JSON objects.
pub async fn audit_rows(folder: &Path) -> Vec<Value> {
    let url = format!("sqlite:{}", folder.join("mlx-manager.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query("SELECT * FROM requests ORDER BY id").fetch_all(&mut connection).await.unwrap();
    rows.iter()
        .map(|row| {
            row.columns()
                .iter()
                .map(|column| {
                    let name = column.name();
                    let raw = row.try_get_raw(name).unwrap();
                    let value = match raw.type_info().name() {
                        _ if raw.is_null() => Value::Null,
                        "REAL" => json!(row.get::<f64, _>(name)),
                        "INTEGER" | "BOOLEAN" => json!(row.get::<i64, _>(name)),
                        _ => json!(row.get::<String, _>(name)),
                    };
                    (name.to_owned(), value)
                })
                .collect()
        })
        .collect()
}

#[tokio::test]
async fn a_log_file_that_was_moved_away_is_opened_anew_on_sighup() {
    let daemon = Daemon::start("").await;
    let log = daemon.folder.path().join("logs/mlx-manager.log");
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    daemon.signal("HUP");
    let patience = tokio::time::Instant::now() + PATIENCE;
    while !daemon.read("logs/mlx-manager.log").contains("reopened") {
        assert!(tokio::time::Instant::now() < patience, "the file is not written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.get("/health").await.status(), 200);
}

/// Runs a command to its end: its exit code and what it said.
pub async fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let child = command(folder).args(arguments).stdin(Stdio::null()).output();
    let output = timeout(PATIENCE, child).await.expect("it ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_broken_config_ends_with_2_and_the_full_list() {
    let folder = TempDir::new().unwrap();
    std::fs::write(
        folder.path().join("config.toml"),
        "[server]\nlisten = \"nowhere\"\nmax_bodi = \"1 MB\"\n[log]\nlevel = \"loud\"\n",
    )
    .unwrap();
    for arguments in [&["serve"][..], &["check"]] {
        let (code, _, said) = run(folder.path(), arguments).await;
        assert_eq!(code, 2);
        for part in ["nowhere", "max_bodi", "max_body", "loud", "config.toml:2", "config.toml:3", "config.toml:5"] {
            assert!(said.contains(part), "{part} is missing:\n{said}");
        }
    }
}

#[tokio::test]
async fn a_busy_port_is_named_with_its_key_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let folder = TempDir::new().unwrap();
    let config = format!("[server]\nlisten = \"{address}\"\n[metrics.prometheus]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let (code, _, said) = run(folder.path(), &["serve"]).await;
    assert_eq!(code, 1);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains(&address.to_string()) && lines[0].contains("server.listen"), "{said}");
}
