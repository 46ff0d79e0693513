//! What stands between a caller's body and its provider: encodings, limits, and the connection that carries them.

use std::{convert::Infallible, io::Cursor, sync::Arc};

use async_compression::tokio::bufread::{BrotliEncoder, DeflateEncoder, GzipEncoder, ZlibEncoder, ZstdEncoder};
use futures_util::stream;
use reqwest::{Body, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{Duration, Instant, sleep, timeout},
};

use crate::peer::{
    daemon::{Daemon, PATIENCE},
    upstream::{Piece, Reply, Upstream, openai_body, openai_frames},
};

const PATH: &str = "/v1/chat/completions";

/// A daemon whose `gpt-*` go to the provider, with `settings` of its server.
async fn gateway(upstream: &Upstream, settings: &[&str]) -> Daemon {
    let config = format!(
        r#"
[[providers]]
name = "up"
kind = "openai"
base_url = "{}"
api_key = "k"

[[routes]]
model = "gpt-renamed"
targets = ["up/gpt-\"real\""]

[[routes]]
model = "gpt-*"
targets = ["up"]
"#,
        upstream.openai()
    );
    let change = |command: &mut tokio::process::Command| {
        settings.iter().for_each(|setting| {
            command.args(["--set", &format!("server.{setting}")]);
        });
    };
    Daemon::start_with(&config, change).await
}

/// A request of about this many bytes.
fn request(bytes: usize, stream: bool) -> String {
    let said = "x".repeat(bytes);
    json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": said }], "stream": stream }).to_string()
}

async fn all(mut reader: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// A body in everything that is read: the header's value and the bytes.
async fn encoded(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let gzip = all(GzipEncoder::new(body)).await;
    let (first, second) = body.split_at(body.len() / 2);
    let members = [all(GzipEncoder::new(first)).await, all(GzipEncoder::new(second)).await].concat();
    let frames = [all(ZstdEncoder::new(first)).await, all(ZstdEncoder::new(second)).await].concat();
    vec![
        ("gzip", gzip.clone()),
        ("X-GZIP", gzip),
        ("gzip", members),
        ("deflate", all(ZlibEncoder::new(body)).await),
        ("deflate", all(DeflateEncoder::new(body)).await),
        ("br", all(BrotliEncoder::new(body)).await),
        ("zstd", all(ZstdEncoder::new(body)).await),
        ("identity, zstd", frames),
        ("identity", body.to_vec()),
    ]
}

fn post(daemon: &Daemon, encoding: &str, body: Vec<u8>) -> RequestBuilder {
    let request = daemon.client.post(daemon.url(PATH)).header("content-type", "application/json").body(body);
    if encoding.is_empty() { request } else { request.header("content-encoding", encoding) }
}

async fn message(response: Response) -> String {
    let error: Value = response.json().await.unwrap();
    error["error"]["message"].as_str().unwrap().to_owned()
}

/// Stops the daemon, which writes the queue, and reads the outcomes of the audit rows.
async fn outcomes(daemon: &mut Daemon) -> Vec<String> {
    assert!(daemon.stop().await.success());
    let rows = crate::serve::audit_rows(daemon.folder.path()).await;
    rows.iter().map(|row| row["outcome"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_encoded_body_reaches_the_provider_as_it_was_before() {
    let upstream = Upstream::start().await;
    let mut daemon = gateway(&upstream, &[]).await;
    let plain = request(100_000, false);
    let bodies = encoded(plain.as_bytes()).await;
    for (encoding, body) in &bodies {
        let response = post(&daemon, encoding, body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{encoding}");
    }
    for received in upstream.received() {
        assert!(received.body == plain, "{:.100}", received.body);
        assert!(!received.headers.contains_key("content-encoding"));
        assert_eq!(received.headers["content-length"], plain.len().to_string());
        assert!(!received.headers.contains_key("transfer-encoding"));
    }
    assert_eq!(outcomes(&mut daemon).await, vec!["ok"; bodies.len()]);
}

#[tokio::test]
async fn a_body_that_is_not_what_its_encoding_says_is_refused_by_that_name() {
    let upstream = Upstream::start().await;
    let mut daemon = gateway(&upstream, &[]).await;
    let plain = request(10_000, false);
    let mut count = 0;
    for (encoding, body) in encoded(plain.as_bytes()).await {
        if encoding == "identity" {
            continue;
        }
        let broken = [
            ("cut off", body[..body.len() - 1].to_vec()),
            ("half", body[..body.len() / 2].to_vec()),
            ("followed by rubbish", [&body[..], b"{}"].concat()),
            ("not encoded", plain.clone().into_bytes()),
            ("empty", Vec::new()),
        ];
        for (what, body) in broken {
            let response = post(&daemon, encoding, body).send().await.unwrap();
            assert_eq!(response.status(), 400, "{encoding} {what}");
            let said = message(response).await;
            let name = encoding.to_lowercase().replace("x-gzip", "gzip").replace("identity, ", "");
            assert!(said.contains(&format!("whole and valid {name},")), "{encoding} {what}: {said}");
            count += 1;
        }
    }
    assert!(upstream.received().is_empty());
    assert_eq!(outcomes(&mut daemon).await, vec!["invalid_request"; count]);
}

#[tokio::test]
async fn an_encoding_that_is_not_read_is_named_beside_those_that_are() {
    let upstream = Upstream::start().await;
    let mut daemon = gateway(&upstream, &[]).await;
    let body = || request(10, false).into_bytes();
    let requests = [
        ("compress", post(&daemon, "compress", body())),
        ("gzip, gzip", post(&daemon, "gzip, gzip", body())),
        ("gzip, br", post(&daemon, "gzip", body()).header("content-encoding", "br")),
    ];
    for (named, request) in requests {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 415);
        assert_eq!(response.headers()["accept-encoding"], "gzip, deflate, br, zstd");
        let said = message(response).await;
        assert!(said.contains(&format!("{named:?}")) && said.contains("gzip, deflate, br, zstd"), "{said}");
    }
    assert_eq!(outcomes(&mut daemon).await, ["invalid_request"; 3]);
}

#[tokio::test]
async fn what_grows_beyond_the_limit_is_refused_before_it_takes_memory() {
    let upstream = Upstream::start().await;
    let mut daemon = gateway(&upstream, &["max_body=4 MiB"]).await;
    // What a first request needs is there.
    assert_eq!(post(&daemon, "", request(1 << 20, false).into()).send().await.unwrap().status(), 200);
    let before = daemon.peak_memory();
    let zeros = || tokio::io::repeat(b' ').take(256 << 20);
    let bombs = [
        ("gzip", all(GzipEncoder::new(tokio::io::BufReader::new(zeros()))).await),
        ("deflate", all(ZlibEncoder::new(tokio::io::BufReader::new(zeros()))).await),
        ("zstd", all(ZstdEncoder::new(tokio::io::BufReader::new(zeros()))).await),
    ];
    for (encoding, bomb) in bombs {
        assert!(bomb.len() < 2 << 20);
        let response = post(&daemon, encoding, bomb).send().await.unwrap();
        assert_eq!(response.status(), 413, "{encoding}");
    }
    let grown = daemon.peak_memory().zip(before).map_or(0, |(after, before)| after - before);
    assert!(grown < 32 << 20, "{grown} bytes more");

    let large = request(5 << 20, false);
    let response = post(&daemon, "", large.clone().into_bytes()).send().await.unwrap();
    assert_eq!(response.status(), 413, "by its length");
    let pieces: Vec<_> = large.as_bytes().chunks(100_000).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect();
    let chunked = daemon.client.post(daemon.url(PATH)).body(Body::wrap_stream(stream::iter(pieces.clone())));
    assert_eq!(chunked.send().await.unwrap().status(), 413, "by what came");
    // Compressed bytes count too, whatever they would become.
    let rubbish: Vec<u8> = [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0][..], &vec![b'a'; 5 << 20]].concat();
    assert_eq!(post(&daemon, "gzip", rubbish).send().await.unwrap().status(), 413, "a name of 5 MiB");
    assert_eq!(outcomes(&mut daemon).await[1..], ["invalid_request"; 6]);
}

#[tokio::test]
async fn windows_that_are_only_claimed_are_refused() {
    let upstream = Upstream::start().await;
    let daemon = gateway(&upstream, &[]).await;
    // A brotli stream with a window of 2^30 bytes, which RFC 7932 doesn't know, and a zstd frame with one of 2^31.
    let brotli = vec![0x11, 30, 0, 0, 0];
    let zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3, 1, 0, 0];
    for (encoding, body) in [("br", brotli), ("zstd", zstd)] {
        let response = post(&daemon, encoding, body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let said = message(response).await;
        assert!(said.contains(encoding), "{said}");
    }
}

#[tokio::test]
async fn nothing_is_changed_that_need_not_be() {
    let upstream = Upstream::start().await;
    let daemon = gateway(&upstream, &[]).await;
    let odd = "\n{ \"model\" : \"gpt-x\",\"messages\":[ {\"role\":\"user\",\"\\ud800\":1.0e+2} ],\r\n\"a\":1,\"a\":2,\"\\udfff\":[ ],\"model\": \"gpt-x\" }\t\n";
    // The provider of these tests couldn't read it, as few could.
    upstream.script(vec![Reply::Status(200, vec![], openai_body("gpt-x").to_string()); 2]);
    assert_eq!(post(&daemon, "", odd.into()).send().await.unwrap().status(), 200);
    assert_eq!(upstream.received()[0].body, odd);
    let renamed = odd.replace("gpt-x", "gpt-renamed");
    assert_eq!(post(&daemon, "", renamed.into()).send().await.unwrap().status(), 200);
    let received = &upstream.received()[1];
    assert_eq!(received.body, odd.replace("gpt-x", "gpt-\\\"real\\\""));
    assert_eq!(received.headers["content-length"], received.body.len().to_string());
}

/// Sends the head of a request that waits for leave to send its body, and reads what comes first.
async fn expecting(daemon: &Daemon, bytes: usize) -> String {
    let mut socket = TcpStream::connect(daemon.api).await.unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\nexpect: 100-continue\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    read_head(&mut socket).await
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, socket.read_u8()).await.expect("an answer").unwrap());
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

#[tokio::test]
async fn bodies_that_are_held_leave_so_much_room_and_no_more() {
    let upstream = Upstream::start().await;
    let mut daemon = gateway(&upstream, &["max_body=1 MiB", "max_inflight_body=1 MiB"]).await;
    let large = || request(700 << 10, false).into_bytes();
    upstream.script([Reply::Hang]);
    let waiting = tokio::task::JoinSet::from_iter([post(&daemon, "", large()).send()]);
    upstream.arrived(1).await;

    let held = daemon.metric("mlx_manager_inflight_body_bytes", &[]).await as u64;
    assert!((700 << 10..702 << 10).contains(&held), "{held}");
    let shed = expecting(&daemon, 700 << 10).await;
    assert!(shed.starts_with("http/1.1 503"), "refused before it sends: {shed}");
    assert!(shed.contains("retry-after: 1\r\n"), "{shed}");
    let pieces = large().chunks(50_000).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect::<Vec<_>>();
    let chunked = daemon.client.post(daemon.url(PATH)).body(Body::wrap_stream(stream::iter(pieces)));
    let zstd = post(&daemon, "zstd", all(ZstdEncoder::new(Cursor::new(large()))).await);
    for request in [post(&daemon, "", large()), chunked, zstd] {
        let response = request.send().await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        let said = message(response).await;
        assert!(said.contains("server.max_inflight_body"), "{said}");
    }
    let small = request(100 << 10, false).into_bytes();
    assert_eq!(post(&daemon, "", small).send().await.unwrap().status(), 200, "there is room for less");

    drop(waiting);
    upstream.disconnected(1).await;
    let patience = Instant::now() + PATIENCE;
    while !expecting(&daemon, 1 << 20).await.starts_with("http/1.1 100") {
        assert!(Instant::now() < patience, "the room is not given back");
        sleep(Duration::from_millis(10)).await;
    }
    let outcomes = outcomes(&mut daemon).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "ok").count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().filter(|outcome| *outcome == "shed").count() >= 4, "{outcomes:?}");
}

#[tokio::test]
async fn an_answer_that_has_begun_holds_no_body() {
    let upstream = Upstream::start().await;
    let daemon = gateway(&upstream, &["max_body=1 MiB", "max_inflight_body=1 MiB"]).await;
    let frames = openai_frames("gpt-x", false);
    let gate = Arc::new(Notify::new());
    upstream.script([Reply::Stream(vec![
        Piece::Text(frames[..2].concat()),
        Piece::Gate(Arc::clone(&gate)),
        Piece::Text(frames[2..].concat()),
    ])]);
    let large = |stream| request(700 << 10, stream).into_bytes();
    let mut first = post(&daemon, "", large(true)).send().await.unwrap();
    assert_eq!(first.headers()["x-accel-buffering"], "no");
    assert!(first.chunk().await.unwrap().is_some());
    let patience = Instant::now() + PATIENCE;
    while post(&daemon, "", large(false)).send().await.unwrap().status() != 200 {
        assert!(Instant::now() < patience, "the body of a request is held while its answer comes");
        sleep(Duration::from_millis(10)).await;
    }
    gate.notify_one();
    assert!(first.text().await.unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn an_answer_that_begins_while_the_daemon_drains_ends_its_connection() {
    for stream in [true, false] {
        let upstream = Upstream::start().await;
        let mut daemon = gateway(&upstream, &[]).await;
        let gate = Arc::new(Notify::new());
        let frames = if stream { openai_frames("gpt-x", false).concat() } else { "{\"choices\":[]}".to_owned() };
        upstream.script([Reply::Stream(vec![Piece::Gate(Arc::clone(&gate)), Piece::Text(frames)])]);
        let mut socket = TcpStream::connect(daemon.api).await.unwrap();
        let body = request(10, stream);
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        socket.write_all(head.as_bytes()).await.unwrap();
        upstream.arrived(1).await;
        daemon.signal("TERM");
        let patience = Instant::now() + PATIENCE;
        while TcpStream::connect(daemon.api).await.is_ok() {
            assert!(Instant::now() < patience, "the daemon doesn't stop");
            sleep(Duration::from_millis(10)).await;
        }
        gate.notify_one();
        let head = read_head(&mut socket).await;
        assert!(head.starts_with("http/1.1 200") && head.contains("connection: close\r\n"), "{head}");
        let rest = timeout(PATIENCE, all(socket)).await.expect("the connection ends");
        assert!(!rest.is_empty());
        assert!(daemon.wait().await.success());
    }
}
