//! Rows of the table `requests`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mlx_manager_llm::Record;
use mlx_manager_signal::span::{self, Server};
use sqlx::{Any, AssertSqlSafe, any::AnyArguments, query::Query};
use tracing::Span;

use super::{Store, StoreError, System};

/// A statement that is being given its values.
type Statement = Query<'static, Any, AnyArguments>;
/// Gives it a value of a record.
type Bind = fn(Statement, &Record) -> Statement;

/// The columns of a row in their order, each with its value of a record.
pub(super) const COLUMNS: &[(&str, Bind)] = &[
    ("request_id", |row, record| row.bind(&record.request_id)),
    ("trace_id", |row, record| row.bind(&record.trace_id)),
    ("started_at", |row, record| row.bind(timestamp(record.started_at))),
    ("finished_at", |row, record| row.bind(timestamp(record.finished_at))),
    ("api", |row, record| row.bind(record.api.as_str())),
    ("operation", |row, record| row.bind(record.api.operation().as_str())),
    ("requested_model", |row, record| row.bind(&record.requested_model)),
    ("provider", |row, record| row.bind(&record.provider)),
    ("response_model", |row, record| row.bind(&record.response_model)),
    ("stream", |row, record| row.bind(record.stream)),
    ("outcome", |row, record| row.bind(record.outcome.as_str())),
    ("status", |row, record| row.bind(i32::from(record.status))),
    ("input_tokens", |row, record| row.bind(count(record.usage.input))),
    ("output_tokens", |row, record| row.bind(count(record.usage.output))),
    ("cache_read_tokens", |row, record| row.bind(count(record.usage.cache_read))),
    ("cache_write_tokens", |row, record| row.bind(count(record.usage.cache_write))),
    ("reasoning_tokens", |row, record| row.bind(count(record.usage.reasoning))),
    ("usage_source", |row, record| row.bind(record.usage_source.map(|source| source.as_str()))),
    ("cost_usd", |row, record| row.bind(record.cost_usd)),
    ("queue_ms", |row, record| row.bind(record.queue.map(milliseconds))),
    ("ttft_ms", |row, record| row.bind(record.time_to_first_token.map(milliseconds))),
    ("duration_ms", |row, record| row.bind(milliseconds(record.duration))),
    ("error_kind", |row, record| row.bind(record.error_kind)),
    ("error_message", |row, record| row.bind(&record.error_message)),
    ("key_id", |row, record| row.bind(&record.key_id)),
];

impl Store {
    /// Writes all records or none.
    pub(super) async fn insert(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut query = sqlx::query(AssertSqlSafe(insert_statement(self.system, records.len())));
        for record in records {
            query = COLUMNS.iter().fold(query, |query, (_, bind)| bind(query, record));
        }
        query.execute(&self.pool).await?;
        Ok(())
    }

    /// Deletes rows that are older than `retention`; returns how many.
    pub(super) async fn prune(&self, now: Timestamp, retention: Duration) -> Result<u64, StoreError> {
        let Some(oldest) = SignedDuration::try_from(retention).ok().and_then(|age| now.checked_sub(age).ok()) else {
            // A retention that reaches back before the calendar begins keeps everything.
            return Ok(0);
        };
        let statement = format!("DELETE FROM requests WHERE started_at < {}", self.system.timestamp(1));
        let result = sqlx::query(AssertSqlSafe(statement)).bind(timestamp(oldest)).execute(&self.pool).await?;
        Ok(result.rows_affected())
    }

    /// Begins the span of a statement on `requests` that is about these records.
    pub(super) fn span(&self, operation: &'static str, records: &[Record]) -> Span {
        let server = self.server.as_ref().map(|(address, port, database)| Server { address, port: *port, database });
        span::database(span::Statement { system: self.system.name(), server, operation, table: "requests" }, records)
    }
}

fn insert_statement(system: System, rows: usize) -> String {
    let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
    let mut statement = format!("INSERT INTO requests ({}) VALUES ", names.join(", "));
    let mut position = 0;
    for row in 0..rows {
        statement.push_str(if row == 0 { "(" } else { ", (" });
        for (index, name) in names.iter().enumerate() {
            position += 1;
            if index > 0 {
                statement.push_str(", ");
            }
            match system {
                // SQLite takes `$1` for a name, and looks through all names before it for each: a whole batch of rows would
                // cost more than the requests it is about.
                System::Sqlite => statement.push('?'),
                System::Postgres if name.ends_with("_at") => statement.push_str(&system.timestamp(position)),
                System::Postgres => statement.push_str(&format!("${position}")),
            }
        }
        statement.push(')');
    }
    statement
}

/// RFC 3339 in UTC with microseconds: a fixed width, so that text sorts by time.
pub(super) fn timestamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn count(tokens: Option<u64>) -> Option<i64> {
    tokens.and_then(|tokens| i64::try_from(tokens).ok())
}
