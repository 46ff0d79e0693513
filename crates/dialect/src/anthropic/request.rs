//! A messages request: its head, and how to sample.
//!
//! What a value may be is for the target to say. A provider gets it as it came, whatever Anthropic would say of it; the local
//! engine checks what it goes by ([`sampling`]).

use bytes::Bytes;
use mlx_manager_llm::{Api, Error, Request, Sampling};

use super::super::field::{Fields, body, check_stop, invalid};

/// Reads the head; see [`decode_head`](crate::decode_head).
pub(in super::super) fn decode_head(bytes: Bytes) -> Result<Request, Error> {
    let body = body(bytes)?;
    let fields = Fields(&body);
    let model = fields.model()?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let sampling = Sampling {
        temperature: fields.lenient("temperature"),
        top_p: fields.lenient("top_p"),
        top_k: fields.lenient("top_k"),
        max_tokens: fields.lenient("max_tokens"),
        stop: fields.lenient("stop_sequences").unwrap_or_default(),
        ..Sampling::default()
    };
    // Anthropic's streams carry their usage unasked, so there is nothing to include.
    Ok(Request { api: Api::Messages, model, stream, include_usage: false, sampling, body })
}

/// How to sample, for the local engine.
pub(super) fn sampling(fields: Fields<'_>) -> Result<Sampling, Error> {
    let max_tokens = fields.count("max_tokens", 1)?.ok_or_else(|| invalid("max_tokens", "is required"))?;
    let stop = fields.read("stop_sequences", "an array of strings")?.unwrap_or_default();
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0, 1.0)?,
        top_p: fields.share("top_p")?,
        top_k: fields.count("top_k", 0)?,
        max_tokens: Some(max_tokens),
        stop: check_stop("stop_sequences", stop)?,
        ..Sampling::default()
    })
}
