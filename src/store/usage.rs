//! What was used, added up from the audit rows.

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::{AnyPool, Store, StoreError, audit::timestamp};

/// What a row of the summary stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// A provider and a model.
    Model,
    /// A provider.
    Provider,
    /// A day, in UTC.
    Day,
    /// A caller's key.
    Key,
    /// An outcome.
    Outcome,
}

/// Sums over a group of requests. Token sums count what is known; a request without usage adds nothing.
#[derive(Debug, Clone, PartialEq, serde::Serialize, sqlx::FromRow)]
pub struct UsageRow {
    /// The group's name.
    #[sqlx(rename = "name")]
    pub group: String,
    /// Requests.
    pub requests: i64,
    /// Requests whose outcome is not `ok`.
    pub failed: i64,
    /// Prompt tokens, cache included.
    pub input_tokens: i64,
    /// Generated tokens, reasoning included.
    pub output_tokens: i64,
    /// Prompt tokens read from a cache.
    pub cache_read_tokens: i64,
    /// US dollars; `None` when no request of the group has a known price.
    pub cost_usd: Option<f64>,
}

impl Store {
    /// Usage since a time, one row per group, the largest first.
    ///
    /// # Errors
    /// When the database refuses the query.
    pub(crate) async fn usage(&self, since: Timestamp, grouping: Grouping) -> Result<Vec<UsageRow>, StoreError> {
        let group = match grouping {
            Grouping::Model => "COALESCE(provider, '-') || '/' || COALESCE(response_model, requested_model)",
            Grouping::Provider => "COALESCE(provider, '-')",
            Grouping::Day => match self.system() {
                super::System::Sqlite => "SUBSTR(started_at, 1, 10)",
                super::System::Postgres => "TO_CHAR(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
            },
            Grouping::Key => "COALESCE(key_id, '-')",
            Grouping::Outcome => "outcome",
        };
        let statement = format!(
            "SELECT {group} AS name, COUNT(*) AS requests, \
             CAST(SUM(CASE WHEN outcome = 'ok' THEN 0 ELSE 1 END) AS BIGINT) AS failed, \
             CAST(COALESCE(SUM(input_tokens), 0) AS BIGINT) AS input_tokens, \
             CAST(COALESCE(SUM(output_tokens), 0) AS BIGINT) AS output_tokens, \
             CAST(COALESCE(SUM(cache_read_tokens), 0) AS BIGINT) AS cache_read_tokens, \
             SUM(cost_usd) AS cost_usd \
             FROM requests WHERE started_at >= {} GROUP BY 1 ORDER BY 2 DESC, 1",
            self.system().timestamp(1)
        );
        let (statement, since) = (AssertSqlSafe(statement), timestamp(since));
        Ok(match &self.pool {
            AnyPool::Sqlite(pool) => sqlx::query_as(statement).bind(since).fetch_all(pool).await?,
            AnyPool::Postgres(pool) => sqlx::query_as(statement).bind(since).fetch_all(pool).await?,
        })
    }
}
