use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mlx_manager_config::{DatabaseConfig, Secret};
use mlx_manager_llm::{Api, Context, Outcome, Record, Usage, UsageSource};
use mlx_manager_signal::{provider::MLX, testing::lines_of};
use sqlx::Row;
use tempfile::TempDir;
use tracing::{Level, Span};

use super::{AnyPool, Grouping, Store, StoreError, without_credentials, writer, writer::QUEUE};

fn config(folder: &TempDir) -> DatabaseConfig {
    let path = folder.path().join("audit.db");
    DatabaseConfig {
        url: Secret::new(format!("sqlite:{}", path.display())),
        retention: Duration::from_secs(30 * 24 * 3600),
    }
}

fn sqlite(store: &Store) -> &sqlx::SqlitePool {
    match &store.pool {
        AnyPool::Sqlite(pool) => pool,
        AnyPool::Postgres(_) => panic!("a server"),
    }
}

fn record(model: &str, started_at: Timestamp) -> Record {
    Record {
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        span_id: Some("b7ad6b7169203331".to_owned()),
        sampled: true,
        started_at,
        finished_at: started_at,
        requested_model: model.to_owned(),
        provider: Some(MLX.to_owned()),
        stream: true,
        outcome: Outcome::Ok,
        status: 200,
        usage: Usage { input: Some(10), output: Some(4), reasoning: Some(1), ..Usage::default() },
        usage_source: Some(UsageSource::Provider),
        queue: Some(Duration::from_micros(1500)),
        chunks: 4,
        duration: Duration::from_millis(20),
        ..Record::begin(&Context::new("r-1", Span::none()), Api::Messages)
    }
}

#[tokio::test]
async fn a_row_says_what_the_record_says_and_null_what_it_does_not_know() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(&config(&folder)).await.unwrap();
    let time: Timestamp = "2026-11-20T23:11:34.123456Z".parse().unwrap();
    store.insert(&[record("demo", time), record("other", time)]).await.unwrap();
    let statement = "SELECT started_at, api, operation, input_tokens, reasoning_tokens, cache_read_tokens, cost_usd, queue_ms, \
                     status FROM requests WHERE requested_model = 'demo'";
    let row = sqlx::query(statement).fetch_one(sqlite(&store)).await.unwrap();
    assert_eq!(row.get::<String, _>("started_at"), "2026-11-20T23:11:34.123456Z");
    assert_eq!(row.get::<String, _>("api"), "messages");
    assert_eq!(row.get::<String, _>("operation"), "chat");
    assert_eq!(row.get::<i64, _>("input_tokens"), 10);
    assert_eq!(row.get::<i64, _>("reasoning_tokens"), 1);
    assert_eq!(row.get::<Option<i64>, _>("cache_read_tokens"), None);
    assert_eq!(row.get::<Option<f64>, _>("cost_usd"), None);
    assert!((row.get::<f64, _>("queue_ms") - 1.5).abs() < 1e-9);
    assert_eq!(row.get::<i64, _>("status"), 200);
}

#[tokio::test]
async fn any_number_of_rows_is_written_and_none_beside_them() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(&config(&folder)).await.unwrap();
    let mut written = 0;
    for rows in [0, 1, 3, 128, 2, 129, 5, 127] {
        store.insert(&vec![record("demo", Timestamp::now()); rows]).await.unwrap();
        written += i64::try_from(rows).unwrap();
        let counted = sqlx::query("SELECT COUNT(*), COUNT(requested_model) FROM requests");
        let counted = counted.fetch_one(sqlite(&store)).await.unwrap();
        assert_eq!((counted.get::<i64, _>(0), counted.get::<i64, _>(1)), (written, written), "after {rows}");
    }
}

#[tokio::test]
async fn the_file_is_in_write_ahead_mode_and_opens_again() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    Store::open(&config).await.unwrap().close().await;
    let store = Store::open(&config).await.unwrap();
    let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(sqlite(&store)).await.unwrap().get(0);
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn whoever_only_looks_creates_nothing() {
    let folder = TempDir::new().unwrap();
    assert!(matches!(Store::open_existing(&config(&folder)).await.unwrap_err(), StoreError::Open { .. }));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn usage_adds_up_by_group_and_leaves_unknown_costs_unknown() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(&config(&folder)).await.unwrap();
    let now = Timestamp::now();
    let mut priced = record("demo", now);
    priced.cost_usd = Some(0.25);
    let mut failed = record("other", now);
    failed.outcome = Outcome::UpstreamError;
    failed.usage = Usage::default();
    store.insert(&[record("demo", now), priced, failed]).await.unwrap();
    store.insert(&[record("old", now - SignedDuration::from_hours(48))]).await.unwrap();

    let rows = store.usage(now - SignedDuration::from_hours(1), Grouping::Model).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].group.as_str(), rows[0].requests, rows[0].input_tokens), ("mlx/demo", 2, 20));
    assert_eq!(rows[0].cost_usd, Some(0.25));
    assert_eq!((rows[1].group.as_str(), rows[1].failed, rows[1].output_tokens), ("mlx/other", 1, 0));
    assert_eq!(rows[1].cost_usd, None);
    let days = store.usage(now - SignedDuration::from_hours(72), Grouping::Day).await.unwrap();
    assert_eq!(days.iter().map(|row| row.requests).sum::<i64>(), 4);
}

#[tokio::test]
async fn old_rows_are_deleted_and_no_others() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(&config(&folder)).await.unwrap();
    let now = Timestamp::now();
    store.insert(&[record("new", now), record("old", now - SignedDuration::from_hours(31 * 24))]).await.unwrap();
    assert_eq!(store.prune(now, Duration::from_secs(30 * 24 * 3600)).await.unwrap(), 1);
    assert_eq!(store.prune(now, Duration::MAX).await.unwrap(), 0);
    assert_eq!(store.usage(Timestamp::UNIX_EPOCH, Grouping::Provider).await.unwrap()[0].requests, 1);
}

#[tokio::test]
async fn everything_queued_is_written_before_the_writer_ends() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let (sender, task) = writer(config.clone(), std::future::pending());
    for index in 0..300 {
        sender.send(record(&format!("m{index}"), Timestamp::now()));
    }
    drop(sender);
    task.await;
    let store = Store::open(&config).await.unwrap();
    assert_eq!(store.usage(Timestamp::UNIX_EPOCH, Grouping::Provider).await.unwrap()[0].requests, 300);
}

#[tokio::test]
async fn a_database_that_comes_back_gets_the_rows_that_waited() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("later");
    let config = DatabaseConfig {
        url: Secret::new(format!("sqlite:{}", missing.join("audit.db").display())),
        retention: Duration::from_secs(3600),
    };
    assert!(matches!(Store::open(&config).await.unwrap_err(), StoreError::Open { .. }));
    let (sender, task) = writer(config.clone(), std::future::pending());
    sender.send(record("demo", Timestamp::now()));
    let comes_back = async {
        // The writer runs first and meets the missing folder.
        tokio::task::yield_now().await;
        std::fs::create_dir(&missing).unwrap();
        drop(sender);
    };
    tokio::join!(task, comes_back);
    let store = Store::open(&config).await.unwrap();
    assert_eq!(store.usage(Timestamp::UNIX_EPOCH, Grouping::Model).await.unwrap()[0].requests, 1);
}

#[tokio::test]
async fn a_writer_told_to_give_up_ends_though_the_database_is_away() {
    let folder = TempDir::new().unwrap();
    let config = DatabaseConfig {
        url: Secret::new(format!("sqlite:{}", folder.path().join("never/audit.db").display())),
        retention: Duration::from_secs(3600),
    };
    let (sender, task) = writer(config, std::future::ready(()));
    sender.send(record("demo", Timestamp::now()));
    drop(sender);
    task.await;
}

#[tokio::test]
async fn a_full_queue_is_seen_and_what_it_lost_is_said_once_for_all() {
    let folder = TempDir::new().unwrap();
    // The task is not run: it stands for one that waits for its database.
    let (sender, task) = writer(config(&folder), std::future::pending());
    for _ in 0..QUEUE + 300 {
        sender.send(record("demo", Timestamp::now()));
    }
    let poll = sender.poller();
    let said = lines_of(&poll);
    let rows: Vec<_> = said.iter().map(|line| (line.level, line.fields["rows"].as_str())).collect();
    assert_eq!(rows, [(Level::TRACE, "8192"), (Level::WARN, "300")]);
    drop(sender);
    task.await;
    let said = lines_of(&poll);
    assert_eq!(said.len(), 1, "no loss is said twice");
    assert_eq!(said[0].fields["rows"], "0");
}

#[test]
fn a_password_is_never_shown() {
    assert_eq!(without_credentials("postgres://me:s3cret@host/db?x=1"), "postgres://host/db");
    assert_eq!(without_credentials("sqlite:/a/b@c.db"), "sqlite:/a/b@c.db");
}
