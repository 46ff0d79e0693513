//! Statements for the audit database.

use std::error::Error as StdError;

use mlx_manager_llm::Record;
use opentelemetry::{
    KeyValue,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Failure, Start, conventions, count, end, finish, recording, start};
use crate::target;

/// A statement for the database.
#[derive(Debug)]
pub struct Statement<'a> {
    /// `db.system.name`
    pub system: &'static str,
    /// Where the database is, unless in a file.
    pub server: Option<Server<'a>>,
    /// `INSERT`
    pub operation: &'static str,
    /// `requests`
    pub table: &'static str,
}

/// A database server.
#[derive(Debug)]
pub struct Server<'a> {
    /// `server.address`
    pub address: &'a str,
    /// `server.port`
    pub port: u16,
    /// `db.namespace`
    pub database: &'a str,
}

/// A database statement (`INSERT requests`) about these records: a single one's server span is its parent, several are
/// linked.
pub fn database(statement: Statement<'_>, records: &[Record]) -> Span {
    let Statement { system, server, operation, table } = statement;
    let span = tracing::info_span!(target: target::STORE, parent: None, "database", otel.kind = "client");
    if conventions(&span).is_some() {
        // The requests are over and their spans with them, so only their ids are at hand.
        match records {
            [only] => {
                if let Some(parent) = server_span(only) {
                    let parent = opentelemetry::Context::new().with_remote_span_context(parent);
                    // The error says that the span is disabled, so that it has no trace to be part of.
                    span.set_parent(parent).unwrap_or_default();
                }
            }
            several => several.iter().filter_map(server_span).for_each(|link| span.add_link(link)),
        }
    }
    start(&span, |_| {
        let message = format!("{operation} {table}");
        let mut attributes = vec![
            KeyValue::new("db.system.name", system),
            KeyValue::new("db.operation.name", operation),
            KeyValue::new("db.collection.name", table),
            KeyValue::new("db.query.summary", message.clone()),
        ];
        if let Some(Server { address, port, database }) = server {
            attributes.extend([
                KeyValue::new("server.address", address.to_owned()),
                KeyValue::new("server.port", i64::from(port)),
                KeyValue::new("db.namespace", database.to_owned()),
            ]);
        }
        let name = Some(message.clone().into());
        Start { name, template: "{db.operation.name} {db.collection.name}", message, attributes }
    });
    span
}

fn server_span(record: &Record) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(record.trace_id.as_deref()?).ok()?;
    let span_id = SpanId::from_hex(record.span_id.as_deref()?).ok()?;
    let flags = TraceFlags::default().with_sampled(record.sampled);
    Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
}

/// Ends a database span; `code` is the database system's own for the error.
pub fn database_finished(span: &Span, rows: u64, error: Option<&(dyn StdError + 'static)>, code: Option<&str>) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let mut attributes = vec![count("mlx_manager.rows", rows)];
    attributes.extend(code.map(|code| KeyValue::new("db.response.status_code", code.to_owned())));
    let failed = error.map(|error| {
        let kind = code.map_or_else(|| "_OTHER".into(), |code| code.to_owned().into());
        (kind, Some(Failure::new("_OTHER", &error.to_string(), error.source())))
    });
    finish(&context.span(), attributes, failed);
}
