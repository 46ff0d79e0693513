//! Cost by the rows that the audit has already, and how long `usage` takes to add them up.

use std::{
    fs::OpenOptions,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use sqlx::{AssertSqlSafe, Connection as _, Row as _, sqlite::SqliteConnection};
use tempfile::TempDir;

use super::{
    curve::{Curve, Series},
    point::{Place, Point, take_turns},
};
use crate::rig::{
    load::{Load, chat},
    process::Gateway,
};

const ROWS: [u64; 3] = [0, 100_000, 1_000_000];
/// It takes minutes and gigabytes, so it has to be asked for.
const HUGE: u64 = 10_000_000;
const DATABASE: &str = "mlx-manager.db";
/// Rows of one insert: enough to be fast, few enough to stay in memory.
const STEP: u64 = 500_000;
/// What the rows are spread over, with the newest last, as they come in life; less than the retention.
const SECONDS: f64 = 29.0 * 86_400.0;

pub async fn rows(place: &Place, huge: bool) -> Result<Curve> {
    let (mut points, mut usage) = (Vec::new(), Vec::new());
    for number in ROWS.into_iter().chain(huge.then_some(HUGE)) {
        let folder = TempDir::new()?;
        // The first daemon makes the schema and a row like any other.
        let first = place.daemon(folder, "")?;
        Load::open(first.address, 1).await?.closed_loop(&chat(false, 0), 1).await?;
        let folder = end(first.gateway, first.folder).await?;
        if number > 0 {
            let started = Instant::now();
            fill(&folder.path().join(DATABASE), number).await?;
            println!("{number} rows made in {:.0} s", started.elapsed().as_secs_f64());
        }
        points.push(Point::new(number as f64, place.daemon(folder, "")?));
    }
    take_turns(&mut points, place).await?;
    for point in &points {
        let folder = point.daemon().context("all are daemons")?.folder.path();
        let started = Instant::now();
        let status = Command::new(env!("CARGO_BIN_EXE_mlx-manager"))
            .args(["usage", "--since", "30 days", "--config", "config.toml"])
            .current_dir(folder)
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "`usage` failed: {status}");
        usage.push((point.x, started.elapsed().as_secs_f64()));
    }
    let residents = points.iter().map(Point::resident).collect::<Result<_>>()?;
    let series = vec![
        Series::new("CPU, µs a request", points.iter().map(Point::cpu).collect()),
        Series::new("RSS, MB", residents),
        Series::new("`usage` of all rows, s", usage),
    ];
    Ok(Curve { name: "rows", against: "rows in the database", series })
}

/// Ends a daemon in good order, which writes its rows and folds the log into the file.
async fn end(mut gateway: Gateway, folder: TempDir) -> Result<TempDir> {
    let process = rustix::process::Pid::from_child(&gateway.child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
    let status = tokio::task::spawn_blocking(move || gateway.child.wait()).await??;
    ensure!(status.success(), "a daemon ended with {status}");
    Ok(folder)
}

/// Copies the one row that there is, with ids and times that rise and twenty models.
async fn fill(file: &Path, number: u64) -> Result<()> {
    // What isn't there would be made, and be empty.
    OpenOptions::new().write(true).open(file)?;
    let mut database = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await?;
    // If this is cut off, nobody needs the file.
    for pragma in ["synchronous = OFF", "journal_mode = MEMORY", "cache_size = -400000"] {
        sqlx::query(AssertSqlSafe(format!("PRAGMA {pragma}"))).execute(&mut database).await?;
    }
    let columns = sqlx::query("SELECT name FROM pragma_table_info('requests') WHERE name <> 'id'");
    let columns = columns.fetch_all(&mut database).await?;
    let names = columns.iter().map(|column| Ok(column.try_get(0)?)).collect::<Result<Vec<String>>>()?;
    let time = |delay: f64| {
        let seconds = format!("({SECONDS} - {SECONDS} * n / {number}.0)");
        format!("strftime('%Y-%m-%dT%H:%M:%f000Z', 'now', '-' || {seconds} || ' seconds', '+{delay} seconds')")
    };
    let values = names.iter().map(|name| match name.as_str() {
        "request_id" => "printf('%08x-0000-7000-8000-%012x', n >> 8, n)".to_owned(),
        "trace_id" => "printf('%016x%016x', n * 7919, n)".to_owned(),
        "started_at" => time(0.0),
        "finished_at" => time(0.4),
        "requested_model" | "response_model" => "'model-' || (n % 20)".to_owned(),
        name => format!("one.{name}"),
    });
    let (names, values) = (names.join(", "), values.collect::<Vec<_>>().join(", "));
    for first in (0..number).step_by(usize::try_from(STEP)?) {
        let last = (first + STEP).min(number);
        let statement = format!(
            "INSERT INTO requests ({names}) WITH RECURSIVE numbers (n) AS \
             (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {last}) \
             SELECT {values} FROM numbers, (SELECT * FROM requests ORDER BY id LIMIT 1) AS one ORDER BY n"
        );
        sqlx::query(AssertSqlSafe(statement)).execute(&mut database).await?;
    }
    let counted: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM requests").fetch_one(&mut database).await?;
    ensure!(counted.unsigned_abs() == number + 1, "{counted} rows are there instead of {number} more than one");
    database.close().await?;
    Ok(())
}
