//! What providers answer, and how it is written for the caller.

#![no_main]

use bytes::Bytes;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::{BodyBuilder, Identity, Observer, StreamEncoder, sse};
use mlx_manager_llm::{Api, Event, Request};

const LIMIT: usize = 64 * 1024;

fn identity() -> Identity {
    Identity { id: "1".to_owned(), model: "m".to_owned(), created: Timestamp::UNIX_EPOCH }
}

/// Both ways of writing an answer, with the provider's own frames and without.
fn write(request: &Request, events: &[Event]) {
    for raw in [true, false] {
        let mut encoder = StreamEncoder::new(request, identity());
        let mut builder = BodyBuilder::new(request, identity());
        for event in events.iter().filter(|event| raw || !matches!(event, Event::Raw { .. })) {
            drop(encoder.encode(event));
            builder.push(event.clone());
        }
        drop(encoder.finish());
        drop(builder.finish());
    }
}

fn stream(request: &Request, capture: bool, bytes: &[u8]) -> Vec<Event> {
    let mut observer = Observer::new(request, capture);
    let mut parser = sse::Parser::new(LIMIT);
    parser.push(bytes);
    let mut events = Vec::new();
    while let Ok(Some(frame)) = parser.next_frame() {
        match observer.observe(&frame) {
            Ok(more) => events.extend(more),
            Err(_) => break,
        }
    }
    events
}

fuzz_target!(|input: (bool, bool, bool, u16, &[u8])| {
    let (openai, include_usage, capture, status, bytes) = input;
    let (api, more) = match (openai, include_usage) {
        (true, true) => (Api::ChatCompletions, r#""stream_options": {"include_usage": true}"#),
        (true, false) => (Api::ChatCompletions, r#""n": 1"#),
        (false, _) => (Api::Messages, r#""max_tokens": 9"#),
    };
    let head =
        format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}], "stream": true, {more}}}"#);
    let request = dialect::decode_head(api, head.into()).expect("a head that is valid");
    write(&request, &stream(&request, capture, bytes));
    let body = Bytes::copy_from_slice(bytes);
    if let Ok(events) = dialect::observe_body(api.dialect(), &body, capture) {
        write(&request, &events);
    }
    let error = dialect::decode_error(api.dialect(), status, body);
    drop(dialect::encode_error(api.dialect(), &error, "1"));
});
