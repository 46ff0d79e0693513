//! A provider, and what it answers.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::serve::serve;

/// Pieces of text in a streamed answer.
pub const CHUNKS: usize = 50;
/// The token counts of every answer.
pub const INPUT_TOKENS: u64 = 250;
pub const OUTPUT_TOKENS: u64 = 50;

/// A provider that answers from memory.
#[derive(Debug, Clone)]
pub struct Provider {
    served: Arc<AtomicUsize>,
    whole: Bytes,
    frames: Arc<[Bytes]>,
}

impl Provider {
    /// Starts one; returns it with its address.
    pub async fn start() -> Result<(Self, SocketAddr)> {
        let frames = frames().into_iter().map(Bytes::from).collect();
        let provider = Self { served: Arc::default(), whole: whole().to_string().into(), frames };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answering = provider.clone();
        tokio::task::spawn(serve(listener, move |request| {
            let provider = answering.clone();
            async move { provider.answer(request).await }
        }));
        Ok((provider, address))
    }

    /// Chats answered so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>> {
        // Some gateways ask for a list of models when they start, which is no chat.
        if request.method() != Method::POST {
            return Ok(Response::builder().status(StatusCode::NOT_FOUND).body(Full::default().boxed_unsync())?);
        }
        let body = request.into_body().collect().await?.to_bytes();
        let stream = body.windows(13).any(|window| window == b"\"stream\":true");
        self.served.fetch_add(1, Ordering::Relaxed);
        let response = Response::builder();
        Ok(if stream {
            let body = Frames { frames: self.frames, next: 0, yielded: true };
            response.header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8").body(body.boxed_unsync())?
        } else {
            response.header(header::CONTENT_TYPE, "application/json").body(Full::new(self.whole).boxed_unsync())?
        })
    }
}

/// Frames of an event stream, each written on its own, as a provider writes tokens.
struct Frames {
    frames: Arc<[Bytes]>,
    next: usize,
    /// Whether the connection had the chance to write the frame before.
    yielded: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !std::mem::replace(&mut self.yielded, true) {
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = self.frames.get(self.next).cloned();
        self.next += 1;
        self.yielded = false;
        Poll::Ready(frame.map(|frame| Ok(Frame::data(frame))))
    }
}

fn usage() -> Value {
    json!({
        "prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        "prompt_tokens_details": { "cached_tokens": 0 }, "completion_tokens_details": { "reasoning_tokens": 0 }
    })
}

fn whole() -> Value {
    let text = "token ".repeat(CHUNKS);
    json!({
        "id": "chatcmpl-bench", "object": "chat.completion", "created": 1_763_000_000, "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": "fp_bench", "service_tier": "default",
        "choices": [{
            "index": 0, "logprobs": null, "finish_reason": "stop",
            "message": { "role": "assistant", "content": text, "refusal": null, "annotations": [] }
        }],
        "usage": usage()
    })
}

/// The frames of a streamed answer: its role, its pieces of text, its end.
pub fn frames() -> Vec<String> {
    let chunk = |choices: Value, usage: Value| {
        let chunk = json!({
            "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_763_000_000,
            "model": "gpt-4o-mini-2024-07-18", "system_fingerprint": "fp_bench", "choices": choices, "usage": usage
        });
        format!("data: {chunk}\n\n")
    };
    let delta = |delta: Value, finish: Value| {
        chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]), Value::Null)
    };
    let mut frames = vec![delta(json!({ "role": "assistant", "content": "", "refusal": null }), Value::Null)];
    frames.extend((0..CHUNKS).map(|_| delta(json!({ "content": "token " }), Value::Null)));
    frames.push(delta(json!({}), json!("stop")));
    frames.push(chunk(json!([]), usage()));
    frames.push("data: [DONE]\n\n".to_owned());
    frames
}
