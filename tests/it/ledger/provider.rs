//! The simulated providers of the ledger: each request is answered as its plan says, and what was asked and told is kept.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Uri},
    response::Response,
};
use futures_util::stream;
use serde_json::Value;
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::task::TaskTracker;

use super::{
    fault::Fault,
    plan::{Abort, Oddity, Plan, Tokens},
    script::{self, Frame},
};

/// A call as it arrived.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Which of the providers was asked.
    pub target: String,
}

/// What was answered in the end.
#[derive(Debug, Clone, Default)]
pub struct Bill {
    /// All that was told of the usage.
    pub told: Tokens,
    /// That without what the last frame told, which a client that left may have outrun.
    pub sure: Tokens,
    pub words: u64,
    pub bytes: u64,
}

/// The ledger's page of one request.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub attempts: Vec<Attempt>,
    pub bill: Option<Bill>,
    /// How many frames nobody could read, those of calls that failed among them.
    pub unreadable: u64,
}

#[derive(Debug, Clone)]
pub struct Providers {
    pub address: SocketAddr,
    seed: u64,
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Told when the provider has a request and will be silent.
    silent: Arc<Vec<Notify>>,
}

impl Providers {
    pub async fn start(seed: u64, requests: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let providers = Self {
            address: listener.local_addr().unwrap(),
            seed,
            entries: Arc::new(Mutex::new(vec![Entry::default(); requests])),
            silent: Arc::new((0..requests).map(|_| Notify::new()).collect()),
        };
        let routes = Router::new().fallback(answer).with_state(providers.clone());
        TaskTracker::new().spawn(async move { axum::serve(listener, routes).await.unwrap() });
        providers
    }

    pub fn entry(&self, number: usize) -> Entry {
        self.entries.lock().unwrap()[number].clone()
    }

    /// Waits until the provider has a request that it won't answer.
    pub async fn fell_silent(&self, number: usize) {
        self.silent[number].notified().await;
    }

    fn bill(&self, number: usize, bill: Bill) {
        self.entries.lock().unwrap()[number].bill = Some(bill);
    }

    /// Notes what frames hold beside what is billed.
    fn note(&self, number: usize, frames: &[Frame]) {
        let unreadable = frames.iter().filter(|frame| frame.unreadable).count();
        self.entries.lock().unwrap()[number].unreadable += unreadable as u64;
    }
}

async fn answer(State(providers): State<Providers>, uri: Uri, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let id = body["metadata"]["user_id"].as_str().expect("the id is forwarded");
    let plan = Plan::of(providers.seed, Plan::number_of(id).unwrap());
    assert_eq!(body["model"], plan.asked, "a target is asked by its own name for the model");
    let target = uri.path().split('/').nth(1).unwrap().to_owned();
    let asks_usage = body["stream_options"]["include_usage"] == true;
    let is_first = matches!(&*target, "first" | "claude");
    let refused_options = target == "stubborn" && asks_usage;
    let before = {
        let entry = &mut providers.entries.lock().unwrap()[plan.number];
        let before = entry.attempts.iter().filter(|attempt| attempt.target == target).count();
        entry.attempts.push(Attempt { target: target.clone() });
        before
    };
    if refused_options {
        let body = r#"{"error":{"message":"unrecognized field stream_options","type":"invalid_request_error"}}"#;
        return response(400, "application/json", Body::from(body));
    }
    if let Some(stumble) = plan.stumble.filter(|stumble| if stumble.over { is_first } else { before == 0 }) {
        let Some(fault) = stumble.fault else {
            let mut other = plan.clone();
            (other.counts.fresh, other.counts.cache_read, other.counts.output) = (999_999, 999_999, 999_999);
            let frames = frames_to_word(&other, asks_usage, 0);
            providers.note(plan.number, &frames);
            return encoded(&plan, response(200, "text/event-stream", pieces(&plan, text(&frames), End::Cut)));
        };
        return refusal(&plan, fault);
    }
    if plan.abort == Some(Abort::BeforeHead) {
        providers.silent[plan.number].notify_one();
        return std::future::pending().await;
    }
    let json = "application/json";
    let streamed = "text/event-stream; charset=utf-8";
    if let Some(fault) = plan.fault {
        let body = fault.body(plan.anthropic, plan.way);
        return match plan.oddity {
            Oddity::ErrorStatus => refusal(&plan, fault),
            Oddity::ErrorIn200 => response(200, json, Body::from(body)),
            Oddity::ErrorFirstFrame => response(200, streamed, Body::from(error_frame(&plan, &body))),
            _ => {
                let mut frames = frames_to_word(&plan, asks_usage, plan.words);
                providers.bill(plan.number, bill(&frames));
                frames.push(Frame { text: error_frame(&plan, &body), ..Frame::default() });
                response(200, streamed, pieces(&plan, text(&frames), End::Well))
            }
        };
    }
    let is_stream = (plan.stream || plan.oddity == Oddity::StreamForWhole) && plan.oddity != Oddity::WholeForStream;
    let kind = match plan.oddity {
        Oddity::WrongContentType if is_stream => {
            ["application/json", "text/plain", "application/octet-stream"][plan.way % 3]
        }
        Oddity::WrongContentType => ["text/event-stream", "text/html"][plan.way % 2],
        Oddity::NoContentType => "",
        _ if is_stream => streamed,
        _ => json,
    };
    if !is_stream {
        let (body, told) = script::whole(&plan);
        providers.bill(plan.number, Bill { told, sure: told, words: 1, bytes: body.len() as u64 });
        return encoded(&plan, response(200, kind, pieces(&plan, body, End::Well)));
    }
    let (frames, end) = match (plan.oddity, plan.abort) {
        (_, Some(Abort::AfterWords(words))) => (frames_to_word(&plan, asks_usage, words), End::Silence),
        (Oddity::CutAfterContent, _) => (frames_to_word(&plan, asks_usage, plan.words), End::Cut),
        (Oddity::CutBeforeContent, _) => (frames_to_word(&plan, asks_usage, 0), End::Cut),
        _ => (script::stream(&plan, asks_usage || plan.oddity == Oddity::StreamForWhole), End::Well),
    };
    providers.note(plan.number, &frames);
    // What fails before any content is tried again, and not billed.
    if plan.oddity != Oddity::CutBeforeContent {
        providers.bill(plan.number, bill(&frames));
    }
    encoded(&plan, response(200, kind, pieces(&plan, text(&frames), end)))
}

/// The frames of an answer up to a word of it; for 0, those before the first.
fn frames_to_word(plan: &Plan, usage: bool, words: usize) -> Vec<Frame> {
    let frames = script::stream(plan, usage);
    let mut seen = 0;
    let before = |frame: &Frame| {
        seen += frame.words;
        seen < words || (seen == words && frame.words > 0)
    };
    if words == 0 {
        return frames.into_iter().take_while(|frame| frame.words == 0).collect();
    }
    frames.into_iter().take_while(before).collect()
}

fn bill(frames: &[Frame]) -> Bill {
    let mut bill = Bill::default();
    for (index, frame) in frames.iter().enumerate() {
        bill.told.update(frame.tells);
        if index + 1 < frames.len() {
            bill.sure.update(frame.tells);
        }
        bill.words += frame.words as u64;
        bill.bytes += frame.text.len() as u64;
    }
    bill
}

fn error_frame(plan: &Plan, body: &str) -> String {
    let event = if plan.anthropic { "event: error\n" } else { "" };
    format!("{event}data: {body}\n\n")
}

fn refusal(plan: &Plan, fault: &Fault) -> Response {
    let kind = if plan.way.is_multiple_of(3) { "text/plain" } else { "application/json" };
    let mut refusal = response(fault.status, kind, Body::from(fault.body(plan.anthropic, plan.way)));
    // One that is to be the last word may forbid to be asked again.
    if plan.oddity == Oddity::ErrorStatus && plan.way.is_multiple_of(2) {
        refusal.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
    }
    refusal
}

/// Every answer asks for a short wait, so that those that fail are tried again at once.
fn response(status: u16, kind: &str, body: Body) -> Response {
    let mut response = Response::builder().status(status).header("retry-after-ms", "1").header("request-id", "req_1");
    if !kind.is_empty() {
        response = response.header("content-type", kind);
    }
    response.body(body).unwrap()
}

fn text(frames: &[Frame]) -> String {
    frames.iter().map(|frame| frame.text.as_str()).collect()
}

fn gzip(text: &str) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap().into()
}

/// An answer that says how its bytes are to be read.
fn encoded(plan: &Plan, mut response: Response) -> Response {
    if plan.oddity == Oddity::Compressed {
        response.headers_mut().insert("content-encoding", HeaderValue::from_static("gzip"));
    }
    response
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    /// The connection breaks.
    Cut,
    /// It stays open, and nothing comes.
    Silence,
}

/// A body that comes in pieces which know nothing of frames.
fn pieces(plan: &Plan, text: String, end: End) -> Body {
    let mut text: Bytes = if plan.oddity == Oddity::Compressed { gzip(&text) } else { text.into() };
    let mut dice = plan.dice();
    let mut pieces = VecDeque::new();
    while !text.is_empty() {
        let most = if dice.chance(30) { 1 + dice.below(40) } else { 1 + dice.below(2_000) };
        pieces.push_back(text.split_to(most.min(text.len())));
    }
    Body::from_stream(stream::unfold((pieces, end), |(mut pieces, end)| async move {
        if let Some(piece) = pieces.pop_front() {
            return Some((Ok(piece), (pieces, end)));
        }
        match end {
            End::Well => None,
            End::Cut => {
                // Whoever serves this writes out what it has before it asks again.
                tokio::task::yield_now().await;
                Some((Err(io::Error::other("cut")), (pieces, End::Well)))
            }
            End::Silence => std::future::pending().await,
        }
    }))
}
