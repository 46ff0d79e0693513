//! What is made of a provider's answer.

use bytes::Bytes;
use mlx_manager_llm::{Api, Dialect, Error, ErrorKind, Event, FinishReason, Request, ToolCallDelta, Usage};
use proptest::prelude::*;

use super::{frames, golden, request};
use crate::{Observer, decode_error, observe_body, sse};

const OPENAI: Api = Api::ChatCompletions;
const ANTHROPIC: Api = Api::Messages;

fn observe(request: &Request, stream: &str, capture: bool) -> (Vec<Event>, bool) {
    observe_chunked(request, stream, capture, stream.len())
}

fn observe_chunked(request: &Request, stream: &str, capture: bool, size: usize) -> (Vec<Event>, bool) {
    let mut observer = Observer::new(request, capture);
    let events = frames(stream, size).iter().flat_map(|frame| observer.observe(frame).unwrap()).collect();
    (events, observer.complete())
}

/// What the caller gets, and which of the frames hold content.
fn forwarded(events: &[Event]) -> (String, Vec<bool>) {
    let raws = events.iter().filter_map(|event| match event {
        Event::Raw { frame, content } => Some((String::from_utf8(frame.to_vec()).unwrap(), *content > 0)),
        _ => None,
    });
    raws.unzip()
}

fn neutral(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| !matches!(event, Event::Raw { .. } | Event::ReportedUsage(_))).collect()
}

fn reported(events: &[Event]) -> Vec<&str> {
    let texts = events.iter().filter_map(|event| match event {
        Event::ReportedUsage(text) => Some(&**text),
        _ => None,
    });
    texts.collect()
}

fn call(index: usize, id: Option<&str>, name: Option<&str>, arguments: &str) -> Event {
    let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
    Event::ToolCall(ToolCallDelta { index, id, name, arguments: arguments.to_owned() })
}

fn openai_usage() -> Usage {
    Usage { input: Some(11), output: Some(7), cache_read: Some(4), reasoning: Some(2), ..Usage::default() }
}

fn openai_started() -> Event {
    let (id, model) = (Some("chatcmpl-1".to_owned()), Some("gpt-test-2026".to_owned()));
    Event::Started { id, model, usage: Usage::default() }
}

#[test]
fn injected_usage_is_counted_and_stripped() {
    let stream = golden!("openai/provider.sse");
    let (events, complete) = observe(&request(OPENAI, r#""stream":true"#), stream, false);
    assert!(complete);
    let (text, content) = forwarded(&events);
    assert_eq!(text, golden!("openai/provider.stripped.sse"));
    assert_eq!(content, [false, false, true, true, false, false]);
    let finished = Event::Finished { reason: FinishReason::Stop, stop_sequence: None };
    assert_eq!(neutral(events), [openai_started(), finished, Event::Usage(openai_usage())]);
}

#[test]
fn usage_that_was_asked_for_is_forwarded_to_the_byte() {
    let asked = request(OPENAI, r#""stream":true,"stream_options":{"include_usage":true}"#);
    let stream = golden!("openai/provider.sse");
    let (events, _) = observe(&asked, stream, true);
    assert_eq!(forwarded(&events).0, stream);
    let expected = [
        openai_started(),
        Event::Text("Hi \"usage\":null".to_owned()),
        call(0, Some("call_1"), Some("f"), "{}"),
        Event::Finished { reason: FinishReason::Stop, stop_sequence: None },
        Event::Usage(openai_usage()),
    ];
    assert_eq!(neutral(events), expected);
}

#[test]
fn usage_beside_choices_stays_and_frames_keep_their_line_ends() {
    let unasked = request(OPENAI, r#""stream":true"#);
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1.5}}\r\n\r\n\
                  data: {\"choices\":[],\"prompt_filter_results\":[],\"usage\":null}\r\n\r\n";
    let (events, complete) = observe(&unasked, stream, false);
    assert!(!complete);
    assert_eq!(forwarded(&events).0, stream.replace(",\"usage\":null", ""));
    let usage = Usage { input: Some(3), ..Usage::default() };
    assert_eq!(reported(&events), [r#"{"prompt_tokens":3,"completion_tokens":1.5}"#]);
    assert_eq!(neutral(events)[1..], [Event::Usage(usage)]);
}

#[test]
fn of_several_choices_the_first_speaks() {
    let stream = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"length\"}]}\n\n\
                  data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let (events, _) = observe(&request(OPENAI, r#""stream":true,"n":2"#), stream, true);
    assert_eq!(forwarded(&events), (stream.to_owned(), vec![true, true]));
    let finished = Event::Finished { reason: FinishReason::Stop, stop_sequence: None };
    assert_eq!(neutral(events)[1..], [Event::Text("a".to_owned()), finished]);
}

#[test]
fn anthropic_usage_is_cumulative_and_the_last_value_wins() {
    let stream = golden!("anthropic/provider.sse");
    let (events, complete) = observe(&request(ANTHROPIC, r#""stream":true"#), stream, true);
    assert!(complete);
    let (text, content) = forwarded(&events);
    assert_eq!(text, stream);
    let with_content: Vec<usize> = (0..content.len()).filter(|index| content[*index]).collect();
    assert_eq!(with_content, [3, 7, 9, 10]);
    assert_eq!(reported(&events).len(), 3, "every report, from the first to the last");
    let usage = |input, output| Usage {
        input: Some(input),
        output: Some(output),
        cache_read: Some(2),
        cache_write: Some(3),
        ..Usage::default()
    };
    let (id, model) = (Some("msg_1".to_owned()), Some("claude-test-2026".to_owned()));
    let expected = [
        Event::Started { id, model, usage: usage(10, 1) },
        Event::Reasoning("Hm.".to_owned()),
        Event::Text("Hi".to_owned()),
        call(0, Some("toolu_1"), Some("f"), ""),
        call(0, None, None, "{\"a\":1}"),
        Event::Usage(usage(10, 4)),
        Event::Finished { reason: FinishReason::ToolCalls, stop_sequence: None },
        Event::Usage(usage(11, 9)),
    ];
    assert_eq!(neutral(events), expected);
}

#[test]
fn whole_bodies_are_observed() {
    let body = Bytes::from_static(
        br#"{"id":"c","model":"g","choices":[{"index":0,"message":{"role":"assistant","content":"Hi","tool_calls":null},"finish_reason":"length"}],"usage":{"prompt_tokens":11,"completion_tokens":7}}"#,
    );
    let events = observe_body(Dialect::OpenAi, &body, true).unwrap();
    assert_eq!(events[1], Event::Raw { frame: body.clone(), content: 1 });
    let usage = Usage { input: Some(11), output: Some(7), ..Usage::default() };
    let finished = Event::Finished { reason: FinishReason::Length, stop_sequence: None };
    let report = Event::ReportedUsage(r#"{"prompt_tokens":11,"completion_tokens":7}"#.into());
    assert_eq!(events[2..], [Event::Text("Hi".to_owned()), Event::Usage(usage), report, finished]);
    assert_eq!(observe_body(Dialect::OpenAi, &body, false).unwrap().len(), 5);

    let body = Bytes::from_static(
        br#"{"id":"m","type":"message","model":"c","content":[{"type":"text","text":"Hi"},{"type":"tool_use","id":"t","name":"f","input":{"a":1}}],"stop_reason":"stop_sequence","stop_sequence":"END","usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":9}}"#,
    );
    let events = observe_body(Dialect::Anthropic, &body, true).unwrap();
    let usage = Usage { input: Some(7), output: Some(9), cache_read: Some(2), ..Usage::default() };
    let expected = [
        Event::ReportedUsage(r#"{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":9}"#.into()),
        Event::Raw { frame: body.clone(), content: 1 },
        Event::Text("Hi".to_owned()),
        call(0, Some("t"), Some("f"), "{\"a\":1}"),
        Event::Usage(usage),
        Event::Finished { reason: FinishReason::Stop, stop_sequence: Some("END".to_owned()) },
    ];
    assert_eq!(events[1..], expected);
}

fn fails(api: Api, data: &str) -> Error {
    let frame =
        sse::Frame { raw: Bytes::new(), event: Bytes::new(), data: Some(Bytes::copy_from_slice(data.as_bytes())) };
    Observer::new(&request(api, ""), false).observe(&frame).expect_err(data)
}

#[test]
fn error_frames_and_rubbish_end_the_stream() {
    for (api, data, kind) in [
        (OPENAI, r#"{"error":{"message":"x","type":"server_error"}}"#, ErrorKind::Upstream),
        (OPENAI, r#"{"error":{"message":"x","code":"rate_limit_exceeded"}}"#, ErrorKind::RateLimited),
        (OPENAI, r#"{"error":{"message":"x","code":429},"choices":[]}"#, ErrorKind::RateLimited),
        (OPENAI, r#"{"error":"x"}"#, ErrorKind::Upstream),
        (OPENAI, "secret{", ErrorKind::Upstream),
        (OPENAI, "[1]", ErrorKind::Upstream),
        (ANTHROPIC, r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#, ErrorKind::Upstream),
        (ANTHROPIC, r#"{"type":"error","error":{"type":"rate_limit_error","message":"x"}}"#, ErrorKind::RateLimited),
        (ANTHROPIC, r#"{"type":"error","error":{"type":"invalid_request_error"}}"#, ErrorKind::UpstreamRefused),
        (ANTHROPIC, r#"{"type":"error"}"#, ErrorKind::Upstream),
        (ANTHROPIC, r#"{"secret":1}"#, ErrorKind::Upstream),
        (ANTHROPIC, "", ErrorKind::Upstream),
    ] {
        let error = fails(api, data);
        assert_eq!(error.kind, kind, "{data}");
        let shown = format!("{error:?}").replace(&format!("{:?}", error.upstream), "");
        assert!(!shown.contains("secret"), "{shown}");
    }
    // A null error is none.
    let frame = &frames("data: {\"error\":null,\"choices\":[]}\n\n", 99)[0];
    assert!(Observer::new(&request(OPENAI, ""), false).observe(frame).is_ok());
    for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
        let error = observe_body(dialect, &Bytes::from_static(b"<html>"), false).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream);
    }
}

#[test]
fn a_providers_refusal_is_classified_and_quotes_nothing() {
    let openai = r#"{"error":{"message":"about sk-secret","type":"invalid_request_error","code":null}}"#;
    let context = r#"{"error":{"message":"long","type":"invalid_request_error","code":"context_length_exceeded"}}"#;
    let anthropic =
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}"#;
    for (dialect, status, body, kind, kept) in [
        (Dialect::OpenAi, 400, openai, ErrorKind::UpstreamRefused, true),
        (Dialect::OpenAi, 400, context, ErrorKind::ContextLength, true),
        (Dialect::Anthropic, 400, anthropic, ErrorKind::ContextLength, true),
        (Dialect::OpenAi, 401, openai, ErrorKind::Unauthorized, false),
        (Dialect::OpenAi, 404, openai, ErrorKind::ModelNotFound, true),
        (Dialect::OpenAi, 429, openai, ErrorKind::RateLimited, true),
        (Dialect::Anthropic, 529, anthropic, ErrorKind::Upstream, true),
        (Dialect::OpenAi, 502, "<html>secret</html>", ErrorKind::Upstream, false),
    ] {
        let error = decode_error(dialect, status, body.into());
        assert_eq!((error.kind, error.upstream.is_some()), (kind, kept), "{status} {body}");
        assert_eq!(error.status(), if kept { status } else { kind.status() });
        assert!(!error.message.contains("secret") && !error.message.contains("long"), "{error}");
        assert!(error.message.contains(&status.to_string()), "{error}");
    }
    let odd = r#"{"error":{"code":"my secret prompt"}}"#;
    assert!(!decode_error(Dialect::OpenAi, 400, odd.into()).message.contains("secret"));
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_events(size in 1_usize..60, capture: bool) {
        for (api, stream) in [(OPENAI, golden!("openai/provider.sse")), (ANTHROPIC, golden!("anthropic/provider.sse"))] {
            for end in ["\n", "\r\n", "\r"] {
                let (request, stream) = (request(api, r#""stream":true"#), stream.replace('\n', end));
                prop_assert_eq!(observe_chunked(&request, &stream, capture, size), observe(&request, &stream, capture));
            }
        }
    }

    #[test]
    fn no_frame_makes_an_observer_panic(
        name in "(type|usage|choices|delta|message|error|content_block|index)",
        kind in "(message_start|content_block_delta|message_delta|x)",
        value in "(null|1|\"a\"|\\[\\]|\\{\\}|\\[\\{\"delta\":\\{\"content\":(1|\"a\")\\}\\}\\]|\\{\"usage\":(1|\\{\\})\\})",
    ) {
        let data = format!("{{\"type\":\"{kind}\",\"{name}\":{value}}}");
        for api in [OPENAI, ANTHROPIC] {
            let frame = &frames(&format!("data: {data}\n\n"), 99)[0];
            for event in Observer::new(&request(api, ""), true).observe(frame).unwrap_or_default() {
                if let Event::Raw { frame: forwarded, .. } = event {
                    prop_assert!(frame.raw == forwarded || data.contains("\"usage\":null"));
                }
            }
        }
    }
}
