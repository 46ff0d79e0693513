//! `[database]`

use std::time::Duration;

use super::{
    Secret,
    decode::Decoder,
    redaction::redact_url,
    schema::{Key, Table},
    section::{Refusal, Section},
    setting::quote,
};

/// The audit database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `sqlite:PATH` (already joined with its base) or `postgres://…`; may hold a password.
    pub url: Secret,
    /// How long rows are kept.
    pub retention: Duration,
}

pub(super) const URL: Key = Key::new("url", "\"sqlite:mlx-manager.db\"", "or postgres://user:${PASSWORD}@host/name");
const RETENTION: Key = Key::new("retention", "\"30 days\"", "older rows are deleted");

pub(super) const TABLE: Table =
    Table::single("database", "The audit: one row per request, never its content.", &[URL, RETENTION]);

const ALLOWED: &str = "\"sqlite:PATH\", or \"postgres://user:password@host/database\"";

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<DatabaseConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let url = decode_url(decoder, &section);
    let retention = decoder.get(&section, &RETENTION);
    Some(DatabaseConfig { url: url?, retention: retention? })
}

fn decode_url<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>) -> Option<Secret> {
    let found = decoder.find(section, &URL).ok().flatten()?;
    let text = found.raw.text().unwrap_or_default().trim().to_owned();
    let url = if let Some(path) = text.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        match (path, query) {
            ("", _) => None,
            (":memory:", _) => Some("sqlite::memory:".to_owned()),
            (path, query) => {
                let mut url = format!("sqlite:{}", decoder.resolve(path, &found).display());
                url.extend(query.map(|query| format!("?{query}")));
                Some(url)
            }
        }
    } else if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        let host = text.parse::<http::Uri>().ok();
        let host = host.as_ref().and_then(http::Uri::authority).is_some_and(|authority| !authority.host().is_empty());
        host.then(|| text.clone())
    } else {
        None
    };
    match &url {
        Some(url) => decoder.show(&found, quote(&redact_url(url))),
        // The value may hold a password in a place that a broken URL doesn't give away.
        None => decoder.refuse(&found, Refusal { allowed: ALLOWED, hint: None, secret: text.contains('@') }),
    }
    url.map(Secret::new)
}

/// The file of an SQLite URL; `None` for other databases and for one in memory.
pub(super) fn sqlite_file(url: &Secret) -> Option<&std::path::Path> {
    let path = url.expose().strip_prefix("sqlite:")?;
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    (path != ":memory:").then(|| std::path::Path::new(path))
}
