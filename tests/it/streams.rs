//! Providers over HTTP/2, where one connection carries many calls: none of them waits for another.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::peer::{
    daemon::{Daemon, PATIENCE},
    upstream::{Piece, Reply, Upstream, WORDS, openai_frames},
    wire::{Relay, Wire},
};

const PATH: &str = "/v1/chat/completions";

async fn gateway(upstream: &Upstream, more: &str) -> Daemon {
    let config = format!(
        "[cloud]\nretries = 0\n{more}\n[[providers]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"{}\"\n\
         [[routes]]\nmodel = \"gpt-*\"\ntargets = [\"up\"]\n",
        upstream.openai()
    );
    Daemon::start_with(&config, |command| upstream.trust(command)).await
}

fn request() -> Value {
    json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }], "stream": true })
}

/// An answer that stops after its first word until it is told to go on, and what tells it.
fn held() -> (Reply, Arc<Notify>) {
    let (frames, gate) = (openai_frames("gpt-x", false), Arc::new(Notify::new()));
    let pieces =
        vec![Piece::Text(frames[..2].concat()), Piece::Gate(Arc::clone(&gate)), Piece::Text(frames[2..].concat())];
    (Reply::Stream(pieces), gate)
}

/// Reads an answer up to its first word.
async fn first_word(response: &mut Response) {
    let mut read = String::new();
    while !read.contains(WORDS[0]) {
        let chunk = response.chunk().await.unwrap().unwrap_or_else(|| panic!("it ended: {read}"));
        read.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

async fn is_answered(daemon: &Daemon) {
    let text = daemon.post(PATH, &request()).await.text().await.unwrap();
    assert!(text.contains("[DONE]"), "{text}");
}

/// 30 callers at once, each of whom has the first word before any has the last.
async fn all_begin(streams: u32, was_called_before: bool) {
    const CALLERS: usize = 30;
    let upstream = Upstream::start_over(Wire::Http2 { streams }).await;
    let daemon = gateway(&upstream, "").await;
    if was_called_before {
        is_answered(&daemon).await;
    }
    let (replies, gates): (Vec<_>, Vec<_>) = (0..CALLERS).map(|_| held()).unzip();
    upstream.script(replies);
    let calls = (0..CALLERS).map(|_| async {
        let mut response = daemon.post(PATH, &request()).await;
        first_word(&mut response).await;
        response
    });
    let responses = timeout(PATIENCE, join_all(calls)).await.expect("all begin");
    gates.iter().for_each(|gate| gate.notify_one());
    for response in responses {
        assert!(response.text().await.unwrap().contains("[DONE]"));
    }
    let expected = CALLERS + usize::from(was_called_before);
    assert_eq!(upstream.received().len(), expected, "every call reached the provider once");
}

#[tokio::test]
async fn more_callers_than_a_connection_has_streams_all_begin() {
    all_begin(10, true).await;
}

#[tokio::test]
async fn a_few_streams_a_connection_are_enough() {
    all_begin(3, true).await;
}

#[tokio::test]
async fn one_stream_a_connection_is_enough() {
    all_begin(1, true).await;
}

/// Before the provider has said how many streams it allows, the client sends them all, and some are refused.
#[tokio::test]
async fn calls_that_are_refused_for_want_of_streams_are_made_elsewhere() {
    all_begin(10, false).await;
    all_begin(1, false).await;
}

#[tokio::test]
async fn a_connection_that_swallows_calls_is_left() {
    let upstream = Upstream::start_over(Wire::Http2 { streams: 100 }).await;
    let relay = Relay::start(upstream.address).await;
    let mut through = upstream.clone();
    through.address = relay.address;
    let daemon =
        gateway(&through, "first_token_timeout = \"500 ms\"\nbreaker = { failures = 99, open = \"1 s\" }").await;
    is_answered(&daemon).await;
    relay.stick();
    let mut answered = Vec::new();
    for _ in 0..5 {
        answered.push(daemon.post(PATH, &request()).await.status().as_u16());
    }
    assert_eq!(answered, [504, 200, 200, 200, 200]);
}

#[tokio::test]
async fn a_provider_that_leaves_a_connection_is_called_on_another() {
    let upstream = Upstream::start_over(Wire::Http2 { streams: 100 }).await;
    let daemon = gateway(&upstream, "").await;
    for _ in 0..3 {
        let (reply, gate) = held();
        upstream.script([reply]);
        let mut response = daemon.post(PATH, &request()).await;
        first_word(&mut response).await;
        upstream.leave();
        join_all((0..5).map(|_| is_answered(&daemon))).await;
        gate.notify_one();
        assert!(response.text().await.unwrap().contains("[DONE]"), "what was under way went on");
    }
}

/// Takes the head of an answer and no more.
async fn read_slowly(daemon: &Daemon) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(daemon.api).await.unwrap();
    let body = request().to_string();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut begun = [0; 12];
    timeout(PATIENCE, socket.read_exact(&mut begun)).await.unwrap().unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    socket
}

#[tokio::test]
async fn slow_readers_hold_up_nobody_on_their_connection() {
    const SLOW: usize = 6;
    const PIECES: usize = 2000;
    let upstream = Upstream::start_over(Wire::Http2 { streams: 100 }).await;
    let daemon = gateway(&upstream, "idle_timeout = \"60 s\"").await;
    is_answered(&daemon).await;
    let long = "x".repeat(16 * 1024);
    let frame = openai_frames("gpt-x", false)[1].replace(WORDS[0], &long);
    upstream.script((0..SLOW).map(|_| Reply::Stream(vec![Piece::Text(frame.clone()); PIECES])));
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(read_slowly(&daemon).await);
    }
    // Until nothing more goes into the windows and buffers between the provider and them.
    let (mut taken, mut since) = (upstream.taken(), Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        sleep(Duration::from_millis(20)).await;
        if upstream.taken() != taken {
            (taken, since) = (upstream.taken(), Instant::now());
        }
    }
    assert!(taken < SLOW * PIECES, "they are held up themselves");
    timeout(PATIENCE, is_answered(&daemon)).await.expect("another caller is answered");
    assert_eq!(upstream.connections(), 1, "they share it");
}

/// A head that no provider has any use for.
async fn a_large_head_is_refused(wire: Wire) {
    let upstream = Upstream::start_over(wire).await;
    let mut daemon = gateway(&upstream, "").await;
    for (kib, expected) in [(15, 200), (65, 200), (500, 502)] {
        let headers = (0..kib).map(|_| ("x-ratelimit-note", "x".repeat(1024))).collect();
        upstream.script([Reply::Status(200, headers, crate::peer::upstream::openai_body("gpt-x").to_string())]);
        let mut request = request();
        request["stream"] = false.into();
        assert_eq!(daemon.post(PATH, &request).await.status(), expected, "{kib} KiB");
    }
    is_answered(&daemon).await;
    assert!(daemon.stop().await.success());
    assert_eq!(crate::serve::audit_rows(daemon.folder.path()).await.len(), 4);
}

#[tokio::test]
async fn a_large_head_is_an_upstream_error() {
    a_large_head_is_refused(Wire::Http1).await;
    a_large_head_is_refused(Wire::Http2 { streams: 100 }).await;
}
