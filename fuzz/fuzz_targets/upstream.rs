//! What providers answer, and how it is written for the caller.

#![no_main]

use bytes::Bytes;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::{BodyBuilder, Identity, Observer, StreamEncoder, sse};
use mlx_manager_llm::{Api, Error, ErrorKind, Event, FinishReason, Request, ToolCall, Usage};

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
    let mut encoder = StreamEncoder::new(request, identity());
    events.iter().for_each(|event| drop(encoder.encode(event)));
    drop(encoder.error(&Error::new(ErrorKind::Upstream, "cut off")));
}

/// What a stream says.
#[derive(Debug)]
struct Read {
    events: Vec<Event>,
    /// What a frame said that is an error, or why there are no more frames.
    failed: Option<String>,
    /// Whether the answer counts as whole.
    whole: bool,
}

fn read<'a>(request: &Request, injected: bool, capture: bool, chunks: impl Iterator<Item = &'a [u8]>) -> Read {
    let (mut observer, mut parser) = (Observer::new(request, injected, capture), sse::Parser::new(LIMIT));
    let mut events = Vec::new();
    let failed = |events, error: String| Read { events, failed: Some(error), whole: false };
    for chunk in chunks {
        parser.push(chunk);
        loop {
            match parser.next_frame() {
                Ok(Some(frame)) => {
                    if let Err(error) = observer.observe(&frame, &mut events) {
                        return failed(events, format!("{error:?}"));
                    }
                }
                Ok(None) => break,
                Err(error) => return failed(events, format!("{error:?}")),
            }
        }
    }
    if let Some(frame) = parser.finish()
        && let Err(error) = observer.observe(&frame, &mut events)
    {
        return failed(events, format!("{error:?}"));
    }
    Read { events, failed: None, whole: observer.finish().is_ok() }
}

fn forwarded(events: &[Event]) -> Vec<u8> {
    let raws = events.iter().filter_map(|event| match event {
        Event::Raw { frame, .. } => Some(&frame[..]),
        _ => None,
    });
    raws.collect::<Vec<_>>().concat()
}

/// What was generated: texts, thoughts, calls, usage and why it ended.
fn said(events: &[Event]) -> (String, String, Vec<ToolCall>, Usage, Option<FinishReason>) {
    let (mut text, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    let (mut usage, mut end) = (Usage::default(), None);
    for event in events {
        match event {
            Event::Text(more) => text.push_str(more),
            Event::Reasoning(more) => thoughts.push_str(more),
            Event::ToolCall(call) => drop(call.add_to(&mut calls)),
            Event::Started { usage: more, .. } | Event::Usage(more) => usage.update(*more),
            Event::Finished { reason, .. } => end = Some(*reason),
            _ => {}
        }
    }
    (text, thoughts, calls, usage, end)
}

/// Anthropic's reports are cumulative; OpenAI's may be of one chunk each.
fn assert_counts_grow(events: &[Event]) {
    let mut before = Usage::default();
    for event in events {
        if let Event::Usage(usage) | Event::Started { usage, .. } = event {
            let mut most = before;
            most.update(*usage);
            assert_eq!((most.input, most.output, most.cache_read), (usage.input, usage.output, usage.cache_read));
            before = most;
        }
    }
}

fn stream(request: &Request, capture: bool, lengths: &[u8], bytes: &[u8]) {
    let whole = read(request, false, capture, std::iter::once(bytes));
    let sent = forwarded(&whole.events);
    assert!(bytes.starts_with(&sent));
    assert!(whole.failed.is_some() || bytes == sent);
    // Why a model stopped, or that it is done, has to be said before an answer counts as whole.
    let is_end = |event: &Event| matches!(event, Event::Finished { .. });
    assert!(!whole.whole || whole.events.iter().any(is_end));

    let mut rest = bytes;
    let mut chunks = Vec::new();
    for length in lengths {
        let (chunk, after) = rest.split_at(usize::from(*length).min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);
    assert_eq!(format!("{:?}", read(request, false, capture, chunks.into_iter())), format!("{whole:?}"));

    let stripped = read(request, true, capture, std::iter::once(bytes));
    assert_eq!((said(&stripped.events), stripped.whole), (said(&whole.events), whole.whole));
    if request.api == Api::Messages {
        assert_counts_grow(&whole.events);
    }
    write(request, &whole.events);
}

/// A whole answer to a streamed request is forwarded as a stream that says the same.
fn body(request: &Request, capture: bool, body: &Bytes) {
    let Ok(events) = dialect::observe_body(request, body, false, capture) else { return };
    write(request, &events);
    let replayed = forwarded(&events);
    let again = read(request, false, capture, std::iter::once(&replayed[..]));
    // A frame that is longer than these, or members that a stream has other names for, are no failure of the replay.
    if again.failed.is_none() {
        assert!(again.whole);
        assert_eq!(forwarded(&again.events), replayed);
    }
}

fuzz_target!(|input: (bool, bool, bool, u16, Vec<u8>, &[u8])| {
    let (openai, include_usage, capture, status, lengths, bytes) = input;
    let (api, more) = match (openai, include_usage) {
        (true, true) => (Api::ChatCompletions, r#""stream_options": {"include_usage": true}"#),
        (true, false) => (Api::ChatCompletions, r#""n": 1"#),
        (false, _) => (Api::Messages, r#""max_tokens": 9"#),
    };
    let head =
        format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}], "stream": true, {more}}}"#);
    let request = dialect::decode_head(api, head.into()).expect("a head that is valid");
    stream(&request, capture, &lengths, bytes);
    let bytes = Bytes::copy_from_slice(bytes);
    body(&request, capture, &bytes);
    let error = dialect::decode_error(api.dialect(), status, bytes);
    drop(dialect::encode_error(api.dialect(), &error, "1"));
});
