//! The head of a messages request: what routing, telemetry and sampling need to know of any call.

use bytes::Bytes;
use mlx_manager_llm::{Api, Error, Request, Sampling};

use super::super::field::{Fields, body, check_stop, invalid};

/// Reads the head; see [`decode_head`](crate::decode_head).
pub(in super::super) fn decode_head(bytes: Bytes) -> Result<Request, Error> {
    let body = body(bytes)?;
    let fields = Fields(&body);
    let model = fields.model()?;
    fields.check_messages()?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let max_tokens = fields.count("max_tokens", 1)?.ok_or_else(|| invalid("max_tokens", "is required"))?;
    let stop = fields.read("stop_sequences", "an array of strings")?.unwrap_or_default();
    let sampling = Sampling {
        temperature: fields.number("temperature", 0.0, 1.0)?,
        top_p: fields.share("top_p")?,
        top_k: fields.count("top_k", 0)?,
        max_tokens: Some(max_tokens),
        stop: check_stop("stop_sequences", stop)?,
        ..Sampling::default()
    };
    // Anthropic's streams carry their usage unasked, so there is nothing to include.
    Ok(Request { api: Api::Messages, model, stream, include_usage: false, sampling, body })
}
