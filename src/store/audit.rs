//! Rows of the table `requests`.

use std::{sync::LazyLock, time::Duration};

use jiff::{SignedDuration, Timestamp, fmt::temporal::DateTimePrinter};
use mlx_manager_llm::Record;
use mlx_manager_signal::span::{self, Server};
use sqlx::{AssertSqlSafe, Database, Encode, SqlSafeStr, Type, query::Query};
use tracing::Span;

use super::{AnyPool, Store, StoreError, System};

/// A value of a column.
enum Value<'a> {
    Text(Option<&'a str>),
    Time(Timestamp),
    Flag(bool),
    Status(u16),
    Count(Option<u64>),
    Number(Option<f64>),
}

use Value::{Count, Flag, Number, Status, Text, Time};

/// Gives a column's value of a record.
type Column = fn(&Record) -> Value<'_>;

/// The columns of a row in their order.
const COLUMNS: &[(&str, Column)] = &[
    ("request_id", |record| Text(Some(&record.request_id))),
    ("trace_id", |record| Text(record.trace_id.as_deref())),
    ("started_at", |record| Time(record.started_at)),
    ("finished_at", |record| Time(record.finished_at)),
    ("api", |record| Text(Some(record.api.as_str()))),
    ("operation", |record| Text(Some(record.api.operation().as_str()))),
    ("requested_model", |record| Text(Some(&record.requested_model))),
    ("provider", |record| Text(record.provider.as_deref())),
    ("response_model", |record| Text(record.response_model.as_deref())),
    ("stream", |record| Flag(record.stream)),
    ("outcome", |record| Text(Some(record.outcome.as_str()))),
    ("status", |record| Status(record.status)),
    ("input_tokens", |record| Count(record.usage.input)),
    ("output_tokens", |record| Count(record.usage.output)),
    ("cache_read_tokens", |record| Count(record.usage.cache_read)),
    ("cache_write_tokens", |record| Count(record.usage.cache_write)),
    ("reasoning_tokens", |record| Count(record.usage.reasoning)),
    ("usage_source", |record| Text(record.usage_source.map(|source| source.as_str()))),
    ("cost_usd", |record| Number(record.cost_usd)),
    ("queue_ms", |record| Number(record.queue.map(milliseconds))),
    ("ttft_ms", |record| Number(record.time_to_first_token.map(milliseconds))),
    ("duration_ms", |record| Number(Some(milliseconds(record.duration)))),
    ("error_kind", |record| Text(record.error_kind)),
    ("error_message", |record| Text(record.error_message.as_deref())),
    ("key_id", |record| Text(record.key_id.as_deref())),
];

/// Rows of one statement.
pub(super) const BATCH: usize = 128;
const _: () = assert!(BATCH * COLUMNS.len() < 32_766, "SQLite takes no more parameters in a statement");
const _: () = assert!(BATCH.is_power_of_two(), "so many rows fill a statement");

/// SQLite's statements for so many rows, by powers of two: few of them, since parsing one takes longer than running it, and a
/// connection keeps those that it parsed.
static SQLITE_STATEMENTS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..=BATCH.ilog2()).map(|power| sqlite_statement(1 << power)).collect());

impl Store {
    /// Writes all records or none.
    pub(super) async fn insert(&self, records: &[Record]) -> Result<(), StoreError> {
        match &self.pool {
            AnyPool::Sqlite(pool) => {
                let power = records.len().next_power_of_two().ilog2() as usize;
                let statement = match SQLITE_STATEMENTS.get(power) {
                    Some(statement) => AssertSqlSafe(statement.as_str()).into_sql_str(),
                    None => AssertSqlSafe(sqlite_statement(records.len())).into_sql_str(),
                };
                bind(sqlx::query(statement), records).execute(pool).await?;
            }
            AnyPool::Postgres(pool) => {
                bind(sqlx::query(AssertSqlSafe(postgres_statement(records.len()))), records).execute(pool).await?;
            }
        }
        Ok(())
    }

    /// Deletes rows that are older than `retention`; returns how many.
    pub(super) async fn prune(&self, now: Timestamp, retention: Duration) -> Result<u64, StoreError> {
        let Some(oldest) = SignedDuration::try_from(retention).ok().and_then(|age| now.checked_sub(age).ok()) else {
            // A retention that reaches back before the calendar begins keeps everything.
            return Ok(0);
        };
        let statement =
            AssertSqlSafe(format!("DELETE FROM requests WHERE started_at < {}", self.system().timestamp(1)));
        let oldest = timestamp(oldest);
        Ok(match &self.pool {
            AnyPool::Sqlite(pool) => sqlx::query(statement).bind(oldest).execute(pool).await?.rows_affected(),
            AnyPool::Postgres(pool) => sqlx::query(statement).bind(oldest).execute(pool).await?.rows_affected(),
        })
    }

    /// Begins the span of a statement on `requests` that is about these records.
    pub(super) fn span(&self, operation: &'static str, records: &[Record]) -> Span {
        let server = self.server.as_ref().map(|(address, port, database)| Server { address, port: *port, database });
        span::database(span::Statement { system: self.system().name(), server, operation, table: "requests" }, records)
    }
}

/// Binds the values of all records.
fn bind<'q, D>(mut query: Query<'q, D, D::Arguments>, records: &'q [Record]) -> Query<'q, D, D::Arguments>
where
    D: Database,
    Option<&'q str>: Encode<'q, D> + Type<D>,
    String: Encode<'q, D> + Type<D>,
    bool: Encode<'q, D> + Type<D>,
    i32: Encode<'q, D> + Type<D>,
    Option<i64>: Encode<'q, D> + Type<D>,
    Option<f64>: Encode<'q, D> + Type<D>,
{
    for record in records {
        for (_, column) in COLUMNS {
            query = match column(record) {
                Text(text) => query.bind(text),
                Time(time) => query.bind(timestamp(time)),
                Flag(flag) => query.bind(flag),
                Status(status) => query.bind(i32::from(status)),
                Count(count) => query.bind(count.and_then(|count| i64::try_from(count).ok())),
                Number(number) => query.bind(number),
            };
        }
    }
    query
}

fn names() -> String {
    COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// For up to so many rows: what isn't bound is NULL, and a row without a request is none.
fn sqlite_statement(rows: usize) -> String {
    // SQLite takes `$1` for a name, and looks through all names before it for each.
    let row = format!("({})", vec!["?"; COLUMNS.len()].join(", "));
    let (names, rows) = (names(), vec![row; rows].join(", "));
    format!("INSERT INTO requests ({names}) SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL")
}

fn postgres_statement(rows: usize) -> String {
    let mut position = 0;
    let mut row = || {
        let values = COLUMNS.iter().map(|(name, _)| {
            position += 1;
            if name.ends_with("_at") { System::Postgres.timestamp(position) } else { format!("${position}") }
        });
        format!("({})", values.collect::<Vec<_>>().join(", "))
    };
    let rows: Vec<String> = (0..rows).map(|_| row()).collect();
    format!("INSERT INTO requests ({}) VALUES {}", names(), rows.join(", "))
}

/// RFC 3339 in UTC with microseconds: a fixed width, so that text sorts by time.
pub(super) fn timestamp(time: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    PRINTER.timestamp_to_string(&time)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
