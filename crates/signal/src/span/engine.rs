//! What the local engine does for a request.

use std::time::Duration;

use mlx_manager_llm::{Priority, Usage};
use opentelemetry::{KeyValue, trace::TraceContextExt};
use tracing::Span;

use super::{Start, count, end, finish, recording, start};
use crate::target;

/// Waiting for the local engine, in a class; a child of an inference span.
pub fn queue(parent: &Span, priority: Priority) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "queue");
    start(&span, |_| {
        let attributes = vec![KeyValue::new("mlx_manager.priority", priority.as_str())];
        Start { name: None, template: "queue", message: "queue".to_owned(), attributes }
    });
    span
}

/// Looking how much of a prompt was computed before, and restoring that; a child of an inference span.
pub fn cache_lookup(parent: &Span, tokens: u64) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "cache lookup");
    start(&span, |_| Start {
        name: None,
        template: "cache lookup of {mlx_manager.tokens} tokens",
        message: format!("cache lookup of {tokens} tokens"),
        attributes: vec![count("mlx_manager.tokens", tokens)],
    });
    span
}

/// Ends the span of a lookup: how many tokens agree with what is kept, how many were restored, how many of these
/// were read from disk for it, and why not more.
pub fn cache_looked_up(span: &Span, matched: u64, restored: u64, from_disk: u64, reason: &str) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let mut attributes = vec![
        count("mlx_manager.matched_tokens", matched),
        count("mlx_manager.cached_tokens", restored),
        KeyValue::new("mlx_manager.reason", reason.to_owned()),
    ];
    if from_disk > 0 {
        attributes.push(count("mlx_manager.disk_tokens", from_disk));
    }
    finish(&context.span(), attributes, None);
}

/// Computing a prompt; a child of an inference span.
pub fn prefill(parent: &Span, tokens: u64, cached: u64) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "prefill");
    start(&span, |_| Start {
        name: None,
        template: "prefill of {mlx_manager.tokens} tokens",
        message: format!("prefill of {tokens} tokens"),
        attributes: vec![count("mlx_manager.tokens", tokens), count("mlx_manager.cached_tokens", cached)],
    });
    span
}

/// Computing some of a prompt's tokens, beside so many others; a child of a prefill span.
pub fn prefill_chunk(parent: &Span, tokens: u64, context: u64, batch: &BatchSize) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "prefill chunk");
    start(&span, |_| Start {
        name: None,
        template: "prefill chunk of {mlx_manager.tokens} tokens",
        message: format!("prefill chunk of {tokens} tokens"),
        attributes: vec![
            count("mlx_manager.tokens", tokens),
            count("mlx_manager.context_tokens", context),
            count("mlx_manager.batch.decoding", batch.decoding),
            count("mlx_manager.batch.prefill_tokens", batch.prefill_tokens),
        ],
    });
    span
}

/// What one step computes.
#[derive(Debug, Clone, Copy)]
pub struct BatchSize {
    /// Sequences that get a token.
    pub decoding: u64,
    /// Prompt tokens.
    pub prefill_tokens: u64,
}

/// How an answer was generated.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecodePace {
    /// From the first token to the last.
    pub duration: Duration,
    /// Steps that gave it a token.
    pub steps: u64,
    /// Sequences that got a token in these steps, its own included.
    pub decoded: u64,
    /// The most in one step.
    pub largest_batch: u64,
    /// The longest time between two of its tokens.
    pub longest_gap: Duration,
}

/// Generating; a child of an inference span.
pub fn decode(parent: &Span) -> Span {
    let span = tracing::info_span!(target: target::SERVER_ENGINE, parent: parent, "decode");
    start(&span, |_| Start {
        name: None,
        template: "decode",
        message: "decode".to_owned(),
        attributes: Vec::with_capacity(3),
    });
    span
}

/// Ends a decode span.
pub fn decode_finished(span: &Span, usage: &Usage, pace: &DecodePace) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let mut attributes = Vec::new();
    if let Some(tokens) = usage.output {
        attributes.push(count("mlx_manager.tokens", tokens));
        let seconds = pace.duration.as_secs_f64();
        if seconds > 0.0 {
            attributes.push(KeyValue::new("mlx_manager.tokens_per_second", tokens as f64 / seconds));
        }
        if pace.steps > 0 {
            attributes.push(KeyValue::new("mlx_manager.batch.mean", pace.decoded as f64 / pace.steps as f64));
            attributes.push(count("mlx_manager.batch.largest", pace.largest_batch));
            let longest_gap = pace.longest_gap.as_secs_f64() * 1e3;
            attributes.push(KeyValue::new("mlx_manager.longest_gap_ms", longest_gap));
        }
    }
    finish(&context.span(), attributes, None);
}
