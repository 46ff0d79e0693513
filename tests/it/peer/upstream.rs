//! A simulated provider of either dialect, which answers well unless a test scripts otherwise, and keeps a ledger.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    process::Command,
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::wire::{self, Authority, Wire};

/// How one request is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    /// As a well-behaved provider does.
    Well,
    /// A status with headers and a body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// An event stream, piece by piece.
    Stream(Vec<Piece>),
    /// Nothing, ever.
    Hang,
}

/// A piece of an event stream.
#[derive(Debug, Clone)]
pub enum Piece {
    Text(String),
    Wait(Duration),
    /// Nothing until the test says so.
    Gate(Arc<Notify>),
    /// The connection breaks.
    Cut,
    /// The stream stays open and silent.
    Hang,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Debug, Default)]
struct Ledger {
    script: VecDeque<Reply>,
    received: Vec<Received>,
    disconnects: usize,
    /// Pieces of streams that were taken.
    taken: usize,
    leaving: CancellationToken,
    /// Those over HTTP/2 that were taken.
    connections: usize,
}

#[derive(Debug, Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
    authority: Option<Arc<Authority>>,
}

/// What the well-behaved provider says, piece by piece, and counts.
pub const WORDS: [&str; 3] = ["Hel", "lo, wor", "ld."];
pub const INPUT_TOKENS: u64 = 21;
pub const CACHED_TOKENS: u64 = 5;
pub const OUTPUT_TOKENS: u64 = 9;
pub const REASONING_TOKENS: u64 = 2;

impl Upstream {
    pub async fn start() -> Self {
        Self::start_over(Wire::Http1).await
    }

    pub async fn start_over(wire: Wire) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = (wire != Wire::Http1).then(|| Arc::new(Authority::new()));
        let upstream = Self { address: listener.local_addr().unwrap(), ledger: Arc::default(), authority };
        let routes = Router::new().fallback(answer).with_state(upstream.clone());
        let (ledger, authority) = (Arc::clone(&upstream.ledger), upstream.authority.clone());
        TaskTracker::new().spawn(async move {
            match (wire, authority) {
                (Wire::Http2 { streams }, Some(authority)) => {
                    let came = move || {
                        let mut ledger = ledger.lock().unwrap();
                        ledger.connections += 1;
                        ledger.leaving.clone()
                    };
                    wire::serve(listener, authority.acceptor.clone(), streams, routes, came).await;
                }
                _ => axum::serve(listener, routes).await.unwrap(),
            }
        });
        upstream
    }

    /// A base URL for `kind = "openai"`.
    pub fn openai(&self) -> String {
        format!("{}/v1", self.anthropic())
    }

    /// A base URL for `kind = "anthropic"`.
    pub fn anthropic(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Lets a daemon trust it, if it has to be trusted.
    pub fn trust(&self, command: &mut Command) {
        self.authority.iter().for_each(|authority| authority.trust(command));
    }

    /// Says on every connection that is open over HTTP/2 that it takes no further call.
    pub fn leave(&self) {
        std::mem::take(&mut self.ledger.lock().unwrap().leaving).cancel();
    }

    /// How many connections over HTTP/2 came so far.
    pub fn connections(&self) -> usize {
        self.ledger.lock().unwrap().connections
    }

    /// How many pieces of streams were taken so far.
    pub fn taken(&self) -> usize {
        self.ledger.lock().unwrap().taken
    }

    /// Answers the next requests this way, in order; after them, well.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.ledger.lock().unwrap().script.extend(replies);
    }

    pub fn received(&self) -> Vec<Received> {
        self.ledger.lock().unwrap().received.clone()
    }

    /// Waits until this many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.ledger.lock().unwrap().received.len() < count {
            assert!(Instant::now() < deadline, "no request came");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until this many clients have gone away in the middle of an answer.
    pub async fn disconnected(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.ledger.lock().unwrap().disconnects < count {
            assert!(Instant::now() < deadline, "the client is still connected");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn answer(State(upstream): State<Upstream>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let received = Received { path: uri.path().to_owned(), headers, body: String::from_utf8(body.to_vec()).unwrap() };
    let reply = {
        let mut ledger = upstream.ledger.lock().unwrap();
        ledger.received.push(received.clone());
        ledger.script.pop_front().unwrap_or(Reply::Well)
    };
    let departure = Departure { ledger: Arc::clone(&upstream.ledger), done: false };
    match reply {
        Reply::Well => well(&received, departure),
        Reply::Status(status, headers, body) => {
            let mut response = Response::builder().status(status).header("content-type", "application/json");
            for (name, value) in headers {
                response = response.header(name, value);
            }
            departure.done();
            response.body(Body::from(body)).unwrap()
        }
        Reply::Stream(pieces) => event_stream(pieces, departure),
        Reply::Hang => {
            let _waiting = departure;
            std::future::pending().await
        }
    }
}

/// Counts a client that goes away before its answer is complete.
struct Departure {
    ledger: Arc<Mutex<Ledger>>,
    done: bool,
}

impl Departure {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        if !self.done {
            self.ledger.lock().unwrap().disconnects += 1;
        }
    }
}

fn event_stream(pieces: Vec<Piece>, departure: Departure) -> Response {
    let state = (VecDeque::from(pieces), Some(departure));
    let body = stream::unfold(state, |(mut pieces, mut departure)| async move {
        loop {
            match pieces.pop_front() {
                Some(Piece::Text(text)) => {
                    if let Some(departure) = &departure {
                        departure.ledger.lock().unwrap().taken += 1;
                    }
                    return Some((Ok(Bytes::from(text)), (pieces, departure)));
                }
                Some(Piece::Wait(time)) => sleep(time).await,
                Some(Piece::Gate(gate)) => gate.notified().await,
                Some(Piece::Cut) => {
                    departure.take().unwrap().done();
                    // Lets what was written leave the socket before the connection is torn down.
                    sleep(Duration::from_millis(50)).await;
                    return Some((Err(std::io::Error::other("cut")), (pieces, None)));
                }
                Some(Piece::Hang) => std::future::pending().await,
                None => {
                    if let Some(departure) = departure.take() {
                        departure.done();
                    }
                    return None;
                }
            }
        }
    });
    Response::builder()
        .header("content-type", "text/event-stream; charset=utf-8")
        .header("x-request-id", "req_upstream")
        .header("x-ratelimit-remaining-requests", "99")
        .body(Body::from_stream(body))
        .unwrap()
}

fn well(received: &Received, departure: Departure) -> Response {
    let request = received.json();
    let stream = request["stream"] == true;
    let model = request["model"].as_str().unwrap().to_owned();
    match (received.path.as_str(), stream) {
        ("/v1/chat/completions", true) => {
            let usage = request["stream_options"]["include_usage"] == true;
            event_stream(openai_frames(&model, usage).into_iter().map(Piece::Text).collect(), departure)
        }
        ("/v1/chat/completions", false) => whole(&openai_body(&model), departure),
        ("/v1/messages", true) => {
            event_stream(anthropic_frames(&model).into_iter().map(Piece::Text).collect(), departure)
        }
        ("/v1/messages", false) => whole(&anthropic_body(&model), departure),
        (path, _) => panic!("no provider serves {path}"),
    }
}

fn whole(body: &Value, departure: Departure) -> Response {
    departure.done();
    Response::builder()
        .header("content-type", "application/json")
        .header("request-id", "req_upstream")
        .body(Body::from(body.to_string()))
        .unwrap()
}

pub fn openai_body(model: &str) -> Value {
    json!({
        "id": "chatcmpl-up", "object": "chat.completion", "created": 1_763_000_000, "model": format!("{model}-2026"),
        "system_fingerprint": "fp_1",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": WORDS.concat(), "refusal": null }, "logprobs": null, "finish_reason": "stop" }],
        "usage": openai_usage()
    })
}

fn openai_usage() -> Value {
    json!({
        "prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        "prompt_tokens_details": { "cached_tokens": CACHED_TOKENS },
        "completion_tokens_details": { "reasoning_tokens": REASONING_TOKENS }
    })
}

pub fn openai_frames(model: &str, usage: bool) -> Vec<String> {
    let chunk = |delta: Value, finish: Value| {
        let mut chunk = json!({
            "id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1_763_000_000, "model": format!("{model}-2026"),
            "system_fingerprint": "fp_1", "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }]
        });
        if usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let mut chunks = vec![chunk(json!({ "role": "assistant", "content": "" }), Value::Null)];
    chunks.extend(WORDS.iter().map(|word| chunk(json!({ "content": word }), Value::Null)));
    chunks.push(chunk(json!({}), json!("stop")));
    if usage {
        let mut last = chunk(Value::Null, Value::Null);
        last["choices"] = json!([]);
        last["usage"] = openai_usage();
        chunks.push(last);
    }
    let mut frames: Vec<_> = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    frames.push("data: [DONE]\n\n".to_owned());
    frames
}

/// Anthropic counts what came from the cache beside `input_tokens`, not inside.
fn anthropic_usage(output: u64) -> Value {
    json!({
        "input_tokens": INPUT_TOKENS - CACHED_TOKENS, "cache_read_input_tokens": CACHED_TOKENS,
        "cache_creation_input_tokens": 0, "output_tokens": output
    })
}

pub fn anthropic_body(model: &str) -> Value {
    json!({
        "id": "msg_up", "type": "message", "role": "assistant", "model": model,
        "content": [{ "type": "text", "text": WORDS.concat() }],
        "stop_reason": "end_turn", "stop_sequence": null, "usage": anthropic_usage(OUTPUT_TOKENS)
    })
}

pub fn anthropic_frames(model: &str) -> Vec<String> {
    let mut message = anthropic_body(model);
    message["content"] = json!([]);
    message["stop_reason"] = Value::Null;
    message["usage"] = anthropic_usage(1);
    let mut events = vec![
        json!({ "type": "message_start", "message": message }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
        json!({ "type": "ping" }),
    ];
    for word in WORDS {
        events.push(
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": word } }),
        );
    }
    events.push(json!({ "type": "content_block_stop", "index": 0 }));
    // The usage of the last event is cumulative and repeats what the first one said.
    events.push(json!({
        "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null },
        "usage": anthropic_usage(OUTPUT_TOKENS)
    }));
    events.push(json!({ "type": "message_stop" }));
    events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())).collect()
}
