//! A chat completion request: its head, and how to sample.
//!
//! What a value may be is for the target to say. A provider gets it as it came, whatever OpenAI would say of it; the local
//! engine checks what it goes by ([`sampling`]).

use bytes::Bytes;
use mlx_manager_llm::{Api, Error, Request, Sampling};
use serde::Deserialize;

use super::super::field::{Fields, Node, body, check_stop, invalid};

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

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
        min_p: fields.lenient("min_p"),
        repetition_penalty: fields.lenient("repetition_penalty"),
        presence_penalty: fields.lenient("presence_penalty"),
        frequency_penalty: fields.lenient("frequency_penalty"),
        seed: fields.lenient("seed"),
        max_tokens: fields.lenient("max_completion_tokens").or_else(|| fields.lenient("max_tokens")),
        stop: match fields.lenient("stop") {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text],
            Some(Stop::Many(texts)) => texts,
        },
    };
    let include_usage = include_usage(fields).unwrap_or(false);
    Ok(Request { api: Api::ChatCompletions, model, stream, include_usage, sampling, body })
}

/// How to sample, for the local engine.
pub(super) fn sampling(fields: Fields<'_>) -> Result<Sampling, Error> {
    include_usage(fields)?;
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0, 2.0)?,
        top_p: fields.share("top_p")?,
        top_k: fields.count("top_k", 0)?,
        min_p: fields.number("min_p", 0.0, 1.0)?,
        repetition_penalty: repetition_penalty(fields)?,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?,
        seed: fields.read("seed", "a whole number of 64 bits")?,
        max_tokens: max_tokens(fields)?,
        stop: stop(fields)?,
    })
}

/// `max_tokens` is the deprecated name; where both are given, the new one counts.
fn max_tokens(fields: Fields<'_>) -> Result<Option<u32>, Error> {
    let old = fields.count("max_tokens", 1)?;
    Ok(fields.count("max_completion_tokens", 1)?.or(old))
}

fn include_usage(fields: Fields<'_>) -> Result<bool, Error> {
    let Some(options) = fields.tree("stream_options")? else { return Ok(false) };
    let options = Node::new("stream_options", &options);
    options.get("include_usage")?.map_or(Ok(false), |flag| flag.flag())
}

fn repetition_penalty(fields: Fields<'_>) -> Result<Option<f64>, Error> {
    match fields.number("repetition_penalty", 0.0, 100.0)? {
        Some(0.0) => Err(invalid("repetition_penalty", "must be greater than 0, but is 0")),
        value => Ok(value),
    }
}

fn stop(fields: Fields<'_>) -> Result<Vec<String>, Error> {
    let stop = match fields.read("stop", "a string or an array of strings")? {
        None => return Ok(Vec::new()),
        Some(Stop::One(text)) if text.is_empty() => return Err(invalid("stop", "must not be empty")),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    check_stop("stop", stop)
}
