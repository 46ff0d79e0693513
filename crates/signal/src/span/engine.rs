//! What the local engine does for a request.

use std::time::Duration;

use mlx_manager_llm::{Priority, Usage};
use opentelemetry::{KeyValue, trace::TraceContextExt};
use tracing::Span;

use super::{count, end, finish, recording, start};
use crate::target;

/// Waiting for the local engine, in a class; a child of an inference span.
pub fn queue(parent: &Span, priority: Priority) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "queue");
    start(&span, "queue", "queue".to_owned(), |_| vec![KeyValue::new("mlx_manager.priority", priority.as_str())]);
    span
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
