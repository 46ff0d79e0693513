//! What the local engine does for a request.

use std::time::Duration;

use mlx_manager_llm::Usage;
use opentelemetry::{KeyValue, trace::TraceContextExt};
use tracing::Span;

use super::{count, end, finish, recording, start};
use crate::target;

/// Waiting for the local engine; a child of an inference span.
pub fn queue(parent: &Span) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "queue");
    start(&span, "queue", "queue".to_owned(), |_| Vec::new());
    span
}

/// Looking how much of a prompt was computed before, and restoring that; a child of an inference span.
pub fn cache_lookup(parent: &Span, tokens: u64) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "cache lookup");
    let template = "cache lookup of {mlx_manager.tokens} tokens";
    start(&span, template, format!("cache lookup of {tokens} tokens"), |_| vec![count("mlx_manager.tokens", tokens)]);
    span
}

/// Ends the span of a lookup: how many tokens agree with what is kept, how many were restored, and why not more.
pub fn cache_looked_up(span: &Span, matched: u64, restored: u64, reason: &str) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let attributes = vec![
        count("mlx_manager.matched_tokens", matched),
        count("mlx_manager.cached_tokens", restored),
        KeyValue::new("mlx_manager.reason", reason.to_owned()),
    ];
    finish(&context.span(), attributes, None);
}

/// Computing a prompt; a child of an inference span.
pub fn prefill(parent: &Span, tokens: u64, cached: u64) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "prefill");
    start(&span, "prefill of {mlx_manager.tokens} tokens", format!("prefill of {tokens} tokens"), |_| {
        vec![count("mlx_manager.tokens", tokens), count("mlx_manager.cached_tokens", cached)]
    });
    span
}

/// Generating; a child of an inference span.
pub fn decode(parent: &Span) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "decode");
    start(&span, "decode", "decode".to_owned(), |_| Vec::new());
    span
}

/// Ends a decode span.
pub fn decode_finished(span: &Span, usage: &Usage, duration: Duration) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let mut attributes = Vec::new();
    if let Some(tokens) = usage.output {
        attributes.push(count("mlx_manager.tokens", tokens));
        let seconds = duration.as_secs_f64();
        if seconds > 0.0 {
            attributes.push(KeyValue::new("mlx_manager.tokens_per_second", tokens as f64 / seconds));
        }
    }
    finish(&context.span(), attributes, None);
}
