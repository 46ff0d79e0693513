//! The OpenAI dialect: chat completions as `api.openai.com` and everything compatible with it speak them.
//!
//! `request` and `chat` read what callers send, `response` and `stream` write what they get, `upstream` reads and
//! writes the other side of a provider, `error` and `model` are the rest. The shapes follow OpenAI's public API reference.

pub(super) mod chat;
pub(super) mod error;
pub(super) mod model;
pub(super) mod replay;
pub(super) mod request;
pub(super) mod response;
pub(super) mod stream;
pub(super) mod upstream;
