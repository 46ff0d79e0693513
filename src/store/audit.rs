//! Rows of the table `requests`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mlx_manager_llm::Record;
use mlx_manager_signal::span::{self, Server, Statement};
use sqlx::AssertSqlSafe;
use tracing::Span;

use super::{Store, StoreError, System};

/// The columns in the order in which [`Store::insert`] binds them.
const COLUMNS: [&str; 25] = [
    "request_id",
    "trace_id",
    "started_at",
    "finished_at",
    "api",
    "operation",
    "requested_model",
    "provider",
    "response_model",
    "stream",
    "outcome",
    "status",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "usage_source",
    "cost_usd",
    "queue_ms",
    "ttft_ms",
    "duration_ms",
    "error_kind",
    "error_message",
    "key_id",
];

impl Store {
    /// Writes all records or none.
    pub(super) async fn insert(&self, records: &[Record]) -> Result<(), StoreError> {
        let statement = insert_statement(self.system, records.len());
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for record in records {
            query = query
                .bind(&record.request_id)
                .bind(&record.trace_id)
                .bind(timestamp(record.started_at))
                .bind(timestamp(record.finished_at))
                .bind(record.api.as_str())
                .bind(record.api.operation().as_str())
                .bind(&record.requested_model)
                .bind(&record.provider)
                .bind(&record.response_model)
                .bind(record.stream)
                .bind(record.outcome.as_str())
                .bind(i32::from(record.status))
                .bind(count(record.usage.input))
                .bind(count(record.usage.output))
                .bind(count(record.usage.cache_read))
                .bind(count(record.usage.cache_write))
                .bind(count(record.usage.reasoning))
                .bind(record.usage_source.map(|source| source.as_str()))
                .bind(record.cost_usd)
                .bind(record.queue.map(milliseconds))
                .bind(record.time_to_first_token.map(milliseconds))
                .bind(milliseconds(record.duration))
                .bind(record.error_kind)
                .bind(&record.error_message)
                .bind(&record.key_id);
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
        span::database(Statement { system: self.system.name(), server, operation, table: "requests" }, records)
    }
}

fn insert_statement(system: System, rows: usize) -> String {
    let mut statement = format!("INSERT INTO requests ({}) VALUES ", COLUMNS.join(", "));
    let mut position = 0;
    for row in 0..rows {
        statement.push_str(if row == 0 { "(" } else { ", (" });
        for (index, column) in COLUMNS.iter().enumerate() {
            position += 1;
            if index > 0 {
                statement.push_str(", ");
            }
            match system {
                // SQLite takes `$1` for a name, and looks through all names before it for each: a whole batch of rows would
                // cost more than the requests it is about.
                System::Sqlite => statement.push('?'),
                System::Postgres if column.ends_with("_at") => statement.push_str(&system.timestamp(position)),
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
