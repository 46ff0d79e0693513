//! Providers whose HTTP is odd: bounded, one record, a clear outcome.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use crate::peer::{
    daemon::Daemon,
    raw::{self, Bytes},
    upstream::{openai_body, openai_frames},
};

/// What becomes of one request to such a provider: status, body and the row.
async fn ask(answer: Vec<Bytes>, stream: bool) -> (u16, String, Value) {
    let address = raw::start(answer).await;
    let mut daemon = Daemon::start(&format!(
        r#"
[cloud]
retries = 0
total_timeout = "3 s"
[[providers]]
name = "odd"
kind = "openai"
base_url = "http://{address}/v1"
[[routes]]
model = "gpt-*"
targets = ["odd"]
"#
    ))
    .await;
    let question = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }], "stream": stream });
    let response = daemon.post("/v1/chat/completions", &question).await;
    let status = response.status().as_u16();
    let text = response.text().await.unwrap_or_else(|error| format!("broken: {error}"));
    assert!(daemon.stop().await.success());
    let mut rows = crate::serve::audit_rows(daemon.folder.path()).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    (status, text, rows.remove(0))
}

fn once(text: impl Into<Vec<u8>>) -> Bytes {
    Bytes::Once(text.into())
}

fn head(version: &str, headers: &str) -> Bytes {
    once(format!("HTTP/{version} 200 OK\r\n{headers}\r\n"))
}

#[tokio::test]
async fn what_http_allows_is_an_answer() {
    let whole = openai_body("gpt-x").to_string();
    let length = format!("content-length: {}\r\n", whole.len());
    let json = format!("content-type: application/json\r\n{length}");
    let large = format!("x-large: {}\r\n{json}", "x".repeat(65 * 1024));
    let early = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    for answer in [
        vec![head("1.0", "content-type: application/json\r\n"), once(whole.clone())],
        vec![once(early), head("1.1", &json), once(whole.clone())],
        vec![head("1.1", &large), once(whole.clone())],
        vec![head("1.1", &format!("{json}x-what: \u{e4}\r\n")), once(whole.clone())],
    ] {
        let (status, text, row) = ask(answer, false).await;
        assert_eq!((status, &text, &row["outcome"]), (200, &whole, &json!("ok")));
    }
    let frames = openai_frames("gpt-x", false).concat();
    let (status, text, row) = ask(vec![head("1.0", ""), once(frames.clone())], true).await;
    assert_eq!((status, text, &row["outcome"]), (200, frames, &json!("ok")));
}

#[tokio::test]
async fn what_lies_or_never_ends_is_bounded() {
    let whole = openai_body("gpt-x").to_string();
    let longer = format!("content-length: {}\r\n", whole.len() + 1);
    let shorter = format!("content-length: {}\r\n", whole.len() - 1);
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    (0..100).for_each(|_| bomb.write_all(&[b' '; 1 << 20]).unwrap());
    let bomb = bomb.finish().unwrap();
    let packed = format!("content-encoding: gzip\r\ncontent-length: {}\r\n", bomb.len());
    for (case, answer) in [
        ("too short a body", vec![head("1.1", &longer), once(whole.clone())]),
        ("too long a body", vec![head("1.1", &shorter), once(whole.clone())]),
        ("endless headers", vec![once("HTTP/1.1 200 OK\r\nx: "), Bytes::ForEver(vec![b'x'; 1 << 16])]),
        ("an endless body", vec![head("1.1", ""), Bytes::ForEver(vec![b' '; 1 << 16])]),
        ("a bomb", vec![head("1.1", &packed), once(bomb.clone())]),
        ("nothing", vec![]),
        ("no HTTP", vec![once("SSH-2.0-OpenSSH_9.9\r\n")]),
        ("an empty body", vec![head("1.1", "content-length: 0\r\n")]),
    ] {
        let (status, _, row) = ask(answer, false).await;
        assert_eq!((status, &row["outcome"]), (502, &json!("upstream_error")), "{case}");
    }
}

#[tokio::test]
async fn a_stream_that_never_says_anything_ends_with_its_time() {
    for noise in [": nothing\n\n", "data: rubbish\n\n", "data: {\"choices\":[]}\n\n", "data: "] {
        let answer = vec![head("1.1", ""), Bytes::ForEver(noise.repeat(1000).into())];
        let (status, text, row) = ask(answer, true).await;
        // A frame without an end has a limit of its own.
        let expected = if noise == "data: " { (502, "upstream_error") } else { (200, "timeout_total") };
        assert_eq!((status, row["outcome"].as_str().unwrap()), expected, "{noise:?}");
        assert!(text.contains("\"error\""), "{noise:?}");
    }
}
