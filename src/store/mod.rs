//! The audit database: one row per inference request, SQLite by default or PostgreSQL.
//!
//! Enter by [`Store::open`]. Rows come in through the [`AuditSender`] of [`writer`], the one task that writes; they are
//! read by [`Store::usage`]. Nothing here knows what a request is beyond its [`mlx_manager_llm::Record`].

mod audit;
mod usage;
mod writer;

use std::time::Duration;

use mlx_manager_config::DatabaseConfig;
use sqlx::{
    ConnectOptions, Pool,
    migrate::{Migrate, Migrator},
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgPool},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous},
};

pub(crate) use usage::{Grouping, UsageRow};
pub use writer::{AuditSender, writer};

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations/postgres");
/// What both are told in the same words; the numbers go on through all three folders.
static BOTH_MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations/both");

/// How long SQLite waits for another process's lock before a statement fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open database with the current schema.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: AnyPool,
    /// Where a server is: its host, its port and the name of the database there.
    server: Option<(String, u16, String)>,
}

/// Connections to a database of either system. sqlx has a pool for whichever system a URL names, which takes each value
/// through a form of its own.
#[derive(Debug, Clone)]
enum AnyPool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The database systems whose SQL we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    Sqlite,
    Postgres,
}

/// Why the database can't be used. No variant shows the URL's password.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The URL is none of ours.
    #[error("database.url must begin with sqlite: or postgres://")]
    Url,
    /// It can't be opened.
    #[error("the audit database {place} can't be opened")]
    Open {
        /// The URL without credentials.
        place: String,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// Its schema can't be brought up to date.
    #[error("the schema of the audit database {place} can't be brought up to date")]
    Migrate {
        /// The URL without credentials.
        place: String,
        /// What went wrong.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("the audit database refused a statement")]
    Statement(#[from] sqlx::Error),
}

impl StoreError {
    /// The database system's own code for a statement that it refused, such as PostgreSQL's SQLSTATE.
    fn code(&self) -> Option<String> {
        let Self::Statement(sqlx::Error::Database(error)) = self else { return None };
        error.code().map(Into::into)
    }
}

impl System {
    /// `db.system.name` of the semantic conventions.
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgresql",
        }
    }

    /// The placeholder of a timestamp parameter, which travels as RFC 3339 text.
    fn timestamp(self, position: usize) -> String {
        match self {
            Self::Sqlite => format!("${position}"),
            Self::Postgres => format!("CAST(${position} AS TIMESTAMPTZ)"),
        }
    }
}

impl Store {
    /// Opens the database, creating an SQLite file that is missing, and migrates its schema.
    ///
    /// # Errors
    /// When it can't be opened or migrated.
    pub(crate) async fn open(config: &DatabaseConfig) -> Result<Self, StoreError> {
        Self::open_in_mode(config, "rwc").await
    }

    /// Opens the database only if it is there, for whoever just wants to look.
    ///
    /// # Errors
    /// When it isn't, or can't be opened or migrated.
    pub(crate) async fn open_existing(config: &DatabaseConfig) -> Result<Self, StoreError> {
        Self::open_in_mode(config, "rw").await
    }

    /// `mode` is SQLite's, and yields to one that the URL names itself.
    async fn open_in_mode(config: &DatabaseConfig, mode: &str) -> Result<Self, StoreError> {
        let url = config.url.expose();
        let place = without_credentials(url);
        let open = |source| StoreError::Open { place: place.clone(), source };
        match url.split(':').next() {
            Some("sqlite") => {
                let mut url = url.to_owned();
                if !url.contains("mode=") {
                    url.push(if url.contains('?') { '&' } else { '?' });
                    url.push_str("mode=");
                    url.push_str(mode);
                }
                // Write-ahead logging lets a reader work while the writer does, and `NORMAL` is durable enough with it: a power
                // cut may cost the last rows, never the file.
                let options = url
                    .parse::<SqliteConnectOptions>()
                    .map_err(open)?
                    .busy_timeout(BUSY_TIMEOUT)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Normal)
                    .disable_statement_logging();
                let pool = pool(options, &SQLITE_MIGRATIONS, &place).await?;
                Ok(Self { pool: AnyPool::Sqlite(pool), server: None })
            }
            Some("postgres" | "postgresql") => {
                let options = url.parse::<PgConnectOptions>().map_err(open)?.disable_statement_logging();
                let database = options.get_database().unwrap_or_default().to_owned();
                let server = Some((options.get_host().to_owned(), options.get_port(), database));
                let pool = pool(options, &POSTGRES_MIGRATIONS, &place).await?;
                Ok(Self { pool: AnyPool::Postgres(pool), server })
            }
            _ => Err(StoreError::Url),
        }
    }

    fn system(&self) -> System {
        match self.pool {
            AnyPool::Sqlite(_) => System::Sqlite,
            AnyPool::Postgres(_) => System::Postgres,
        }
    }

    /// Closes every connection, so that SQLite folds its write-ahead log into the file.
    pub(crate) async fn close(&self) {
        match &self.pool {
            AnyPool::Sqlite(pool) => pool.close().await,
            AnyPool::Postgres(pool) => pool.close().await,
        }
    }
}

/// Connects, and brings the schema up to date.
async fn pool<D>(
    options: <D::Connection as sqlx::Connection>::Options,
    own: &Migrator,
    place: &str,
) -> Result<Pool<D>, StoreError>
where
    D: sqlx::Database,
    D::Connection: Migrate,
{
    let pool = PoolOptions::new()
        // There is one writer, and a database in memory exists once per connection.
        .max_connections(1)
        .acquire_timeout(BUSY_TIMEOUT * 2)
        .connect_with(options)
        .await
        .map_err(|source| StoreError::Open { place: place.to_owned(), source })?;
    let migrations = Migrator::with_migrations(own.iter().chain(BOTH_MIGRATIONS.iter()).cloned().collect());
    migrations.run(&pool).await.map_err(|source| StoreError::Migrate { place: place.to_owned(), source })?;
    Ok(pool)
}

fn without_credentials(url: &str) -> String {
    let url = url.split('?').next().unwrap_or(url);
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
