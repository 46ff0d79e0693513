//! Tests of the facade against fixtures in `tests/goldens/dialect`, which are plain files of either wire.

mod answer;
mod capture;
mod odd;
mod request;
mod upstream;

use bytes::Bytes;
use mlx_manager_llm::{Api, Error, Request};

use super::{Identity, sse};

macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/dialect/", $name))
    };
}
use golden;

fn identity() -> Identity {
    let created = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    Identity { id: "r1".to_owned(), model: "demo".to_owned(), created }
}

fn decode_head(api: Api, body: impl AsRef<[u8]>) -> Result<Request, Error> {
    super::decode_head(api, Bytes::copy_from_slice(body.as_ref()))
}

/// A small valid request with further fields.
fn request(api: Api, fields: &str) -> Request {
    decode_head(api, body(api, fields)).unwrap()
}

fn body(api: Api, fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { "," };
    let own = match api {
        Api::ChatCompletions => "",
        Api::Messages => r#","max_tokens":9"#,
    };
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{own}{comma}{fields}}}"#)
}

/// The frames of a stream cut at every `size` bytes.
fn frames(stream: &str, size: usize) -> Vec<sse::Frame> {
    let mut parser = sse::Parser::new(1 << 20);
    let mut frames = Vec::new();
    for chunk in stream.as_bytes().chunks(size) {
        parser.push(chunk);
        while let Some(frame) = parser.next_frame().unwrap() {
            frames.push(frame);
        }
    }
    let read: Vec<u8> = frames.iter().flat_map(|frame| frame.raw.to_vec()).collect();
    assert_eq!(read, stream.as_bytes());
    frames
}
