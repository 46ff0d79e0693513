//! Pure translation between the wire formats of callers and providers and the neutral vocabulary of [`mlx_manager_llm`].
//!
//! No IO, no clock, no async: what goes wrong here can be replayed from a file. A request goes through [`decode_head`]
//! and, for the local engine, [`decode_chat`]; its answer through a [`StreamEncoder`] or a [`BodyBuilder`]. The cloud
//! side uses [`prepare`], [`sse::Parser`], [`Observer`], [`observe_body`] and [`decode_error`]. [`CAPTURE`] is for telemetry.
//!
//! The two dialects lie in sibling folders with the same files. They are a closed set, so everything here is a `match`.

mod anthropic;
mod capture;
mod exact;
mod field;
mod fold;
mod json;
mod observer;
mod openai;
mod raw;
mod refusal;
pub mod sse;
#[cfg(test)]
mod tests;
mod upstream_error;

use std::ops::Range;

use bytes::Bytes;
use jiff::Timestamp;
use mlx_manager_llm::{Api, Chat, Dialect, Error, ErrorKind, Event, Fault, Request};

use self::fold::Folded;

pub use self::{
    capture::CAPTURE,
    observer::{Observer, observe_body},
};

/// Reads what routing, telemetry and sampling need to know of a body, and keeps the rest as it came.
///
/// Fields we don't know are left to the provider: a cloud call is never refused for them.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] with the field at fault.
pub fn decode_head(api: Api, body: Bytes) -> Result<Request, Error> {
    match api {
        Api::ChatCompletions => openai::request::decode_head(body),
        Api::Messages => anthropic::request::decode_head(body),
    }
}

/// The model that a body names though something else in it is wrong, for the record of a refused request.
pub fn model_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        model: String,
    }
    serde_json::from_slice::<Named>(body)
        .ok()
        .map(|named| named.model)
        .filter(|model| model.len() <= field::MAX_MODEL_BYTES)
}

/// Understands a body to its last field, for the local engine.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] with the field at fault; a field that would have to be ignored is one. Other targets may take
/// it all the same.
pub fn decode_chat(request: &Request) -> Result<Chat, Error> {
    let chat = match request.api.dialect() {
        Dialect::OpenAi => openai::chat::decode_chat(request),
        Dialect::Anthropic => anthropic::chat::decode_chat(request),
    };
    chat.map_err(|error| error.with_fault(Fault::Target))
}

/// The `content-type` of an answer.
pub fn content_type(stream: bool) -> &'static str {
    if stream { "text/event-stream; charset=utf-8" } else { "application/json" }
}

/// What an answer is called when its backend doesn't say.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The request id; each dialect puts its own prefix before it.
    pub id: String,
    /// The model as the caller named it.
    pub model: String,
    /// When the answer was made.
    pub created: Timestamp,
}

/// Writes the events of one answer as server-sent events.
///
/// Once a provider's own frame has passed, only such frames are written: they already say what the neutral events
/// beside them mean.
#[derive(Debug)]
pub struct StreamEncoder {
    wire: WireEncoder,
    raw: bool,
    /// Whether the last raw frame owes its blank line, which only the last of a stream may.
    unfinished: bool,
}

#[derive(Debug)]
enum WireEncoder {
    OpenAi(openai::stream::Encoder),
    Anthropic(anthropic::stream::Encoder),
}

impl StreamEncoder {
    /// An encoder for the answer to `request`, in the caller's dialect.
    pub fn new(request: &Request, identity: Identity) -> Self {
        let wire = match request.api.dialect() {
            Dialect::OpenAi => WireEncoder::OpenAi(openai::stream::Encoder::new(identity, request.include_usage)),
            Dialect::Anthropic => WireEncoder::Anthropic(anthropic::stream::Encoder::new(identity)),
        };
        Self { wire, raw: false, unfinished: false }
    }

    /// The frames for one event; empty when it has nothing to show the caller.
    pub fn encode(&mut self, event: &Event) -> Bytes {
        if let Event::Raw { frame, .. } = event {
            self.raw = true;
            self.unfinished = !sse::is_finished(frame);
            return frame.clone();
        }
        if self.raw {
            return Bytes::new();
        }
        let mut out = Vec::new();
        match &mut self.wire {
            WireEncoder::OpenAi(encoder) => encoder.encode(event, &mut out),
            WireEncoder::Anthropic(encoder) => encoder.encode(event, &mut out),
        }
        out.into()
    }

    /// A frame that says nothing, for a stream that would be silent for long. Clients and proxies hang up on silence.
    pub fn keep_alive(&self) -> Bytes {
        let mut out = Vec::new();
        match &self.wire {
            WireEncoder::OpenAi(_) => openai::stream::Encoder::keep_alive(&mut out),
            WireEncoder::Anthropic(_) => anthropic::stream::Encoder::keep_alive(&mut out),
        }
        out.into()
    }

    /// The frames that end a stream whose events are through: the final usage and the terminator. Where the events broke
    /// off without [`Event::Finished`], an error frame.
    pub fn finish(mut self) -> Bytes {
        let mut out = Vec::new();
        match &mut self.wire {
            _ if self.raw => {}
            WireEncoder::OpenAi(encoder) => encoder.finish(&mut out),
            WireEncoder::Anthropic(encoder) => encoder.finish(&mut out),
        }
        out.into()
    }

    /// The frame that ends a stream which failed; nothing may follow it.
    pub fn error(self, error: &Error) -> Bytes {
        let mut out = Vec::new();
        if self.unfinished {
            // Or the error would be read as one more line of what came before it.
            out.extend_from_slice(b"\n\n");
        }
        match &self.wire {
            WireEncoder::OpenAi(encoder) => encoder.error(error, &mut out),
            WireEncoder::Anthropic(encoder) => encoder.error(error, &mut out),
        }
        out.into()
    }
}

/// Folds the events of one answer into a JSON body.
#[derive(Debug)]
pub struct BodyBuilder {
    dialect: Dialect,
    identity: Identity,
    answer: Folded,
}

impl BodyBuilder {
    /// A builder for the answer to `request`, in the caller's dialect.
    pub fn new(request: &Request, identity: Identity) -> Self {
        Self { dialect: request.api.dialect(), identity, answer: Folded::default() }
    }

    /// Takes the next event.
    pub fn push(&mut self, event: Event) {
        self.answer.push(event);
    }

    /// The body: the provider's own if there was one, else one made of the neutral events.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the events broke off without [`Event::Finished`].
    pub fn finish(self) -> Result<Bytes, Error> {
        if let Some(raw) = self.answer.raw {
            return Ok(raw);
        }
        let reason = self.answer.finish.filter(|_| !self.answer.torn).ok_or_else(broken_off)?;
        Ok(match self.dialect {
            Dialect::OpenAi => openai::response::encode(&self.answer, reason, &self.identity),
            Dialect::Anthropic => anthropic::response::encode(&self.answer, reason, &self.identity),
        })
    }
}

fn broken_off() -> Error {
    Error::new(ErrorKind::Internal, "the answer broke off")
}

/// Status and JSON body of an error in the caller's dialect. A provider's answer in the same dialect is passed on as it
/// came; of one in another dialect the words are kept.
pub fn encode_error(dialect: Dialect, error: &Error, request_id: &str) -> (u16, Bytes) {
    let body = match dialect {
        Dialect::OpenAi => openai::error::encode(error),
        Dialect::Anthropic => anthropic::error::encode(error, request_id),
    };
    (error.status(), body)
}

/// What a provider's error answer means. Its body and words are kept for the caller unless it speaks of our own key; the
/// message, which reaches logs and audit rows, quotes none of it but the error's name.
pub fn decode_error(dialect: Dialect, status: u16, body: Bytes) -> Error {
    upstream_error::decode(dialect, Some(status), body)
}

/// The tokens of a prompt, roughly: for where a count is needed and nobody counts. Four bytes are a token, and a picture is as
/// many as pictures are taken for.
pub fn estimate_prompt(request: &Request) -> u64 {
    const BYTES_PER_TOKEN: usize = 4;
    const PICTURE_TOKENS: usize = 1600;
    let tokens = ["messages", "system", "tools"].map(|name| {
        // No picture is smaller than a text that is long.
        let (mut data, mut pictures) = (0, 0);
        for text in request.body.long_texts(name).filter(|text| is_data(text)) {
            data += text.len();
            pictures += 1;
        }
        (request.body.get(name).map_or(0, str::len) - data) / BYTES_PER_TOKEN + pictures * PICTURE_TOKENS
    });
    tokens.iter().sum::<usize>() as u64
}

/// Whether a text is data in base64, in a URL or by itself. Prose isn't from its first space on.
fn is_data(text: &str) -> bool {
    let data = text.strip_prefix("data:").and_then(|url| url.split_once(',')).map_or(text, |(_, data)| data);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_');
    data.bytes().all(is_base64)
}

/// Whether a stream has to be asked for its usage, since its caller doesn't.
pub fn injects_usage(request: &Request) -> bool {
    let is_ours = request.api.dialect() == Dialect::OpenAi && request.stream && !request.include_usage;
    is_ours && openai::upstream::stream_options(request).is_some()
}

/// The pieces of a body for a provider of the caller's own dialect: the buffer as it came, but for the model's name where the
/// route changes it, and for usage, which an OpenAI stream has to be asked for; not without `ask_usage`.
///
/// Nothing is copied: around what is put in the pieces are slices of the caller's buffer, which live as long as they do.
pub fn prepare(request: &Request, model: &str, ask_usage: bool) -> Vec<Bytes> {
    let options = (ask_usage && injects_usage(request)).then(|| openai::upstream::stream_options(request)).flatten();
    let body = &request.body;
    let mut changes: Vec<(Range<usize>, Bytes)> = Vec::new();
    if model != request.model {
        // A field that is given twice is read by the one as the first and by the other as the last.
        let name = json::bytes(&model);
        changes.extend(body.places("model").map(|place| (place, name.clone())));
    }
    if let Some(options) = options {
        let known = changes.len();
        changes.extend(body.places("stream_options").map(|place| (place, Bytes::from(options.clone()))));
        if changes.len() == known
            && let Some(end) = body.last_end()
        {
            changes.push((end..end, format!(",\"stream_options\":{options}").into()));
        }
    }
    changes.sort_by_key(|(place, _)| place.start);
    pieces(body.bytes(), changes)
}

/// A buffer with other bytes in some places, which are in order.
fn pieces(buffer: &Bytes, changes: Vec<(Range<usize>, Bytes)>) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(2 * changes.len() + 1);
    let mut sent = 0;
    for (place, new) in changes {
        pieces.extend([buffer.slice(sent..place.start), new]);
        sent = place.end;
    }
    pieces.push(buffer.slice(sent..));
    pieces
}

/// A model in a list.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// What a request calls it.
    pub id: String,
    /// When it was made, or found.
    pub created: Timestamp,
    /// Who serves it: a provider's name, or `mlx`.
    pub owned_by: String,
}

/// The body of `GET /v1/models`. Callers of Anthropic's API are known by their `anthropic-version` header.
pub fn encode_models(dialect: Dialect, models: &[ModelEntry]) -> Bytes {
    match dialect {
        Dialect::OpenAi => openai::model::encode_list(models),
        Dialect::Anthropic => anthropic::model::encode_list(models),
    }
}

/// The body of `GET /v1/models/{id}`.
pub fn encode_model(dialect: Dialect, model: &ModelEntry) -> Bytes {
    match dialect {
        Dialect::OpenAi => openai::model::encode(model),
        Dialect::Anthropic => anthropic::model::encode(model),
    }
}
