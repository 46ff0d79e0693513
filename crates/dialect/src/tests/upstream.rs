//! What is made of a provider's answer.

use bytes::Bytes;
use mlx_manager_llm::{
    Api, Dialect, Error, ErrorKind, Event, Fault, FinishReason, Request, ServiceTier, ToolCallDelta, Usage,
};
use proptest::prelude::*;

use super::{frames, golden, request};
use crate::{Observer, decode_error, observe_body, sse};

const OPENAI: Api = Api::ChatCompletions;
const ANTHROPIC: Api = Api::Messages;

fn observe(request: &Request, stream: &str, capture: bool) -> (Vec<Event>, bool) {
    observe_chunked(request, stream, capture, stream.len())
}

fn observe_chunked(request: &Request, stream: &str, capture: bool, size: usize) -> (Vec<Event>, bool) {
    // Nobody but the daemon asks for what the request doesn't.
    let mut observer = Observer::new(request, !request.include_usage, capture);
    let mut events = Vec::new();
    for frame in frames(stream, size) {
        observer.observe(&frame, &mut events).unwrap();
    }
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
    assert_eq!(neutral(events), [Event::Usage(usage)]);
}

#[test]
fn of_several_choices_the_first_speaks() {
    let stream = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"length\"}]}\n\n\
                  data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let (events, _) = observe(&request(OPENAI, r#""stream":true,"n":2"#), stream, true);
    assert_eq!(forwarded(&events), (stream.to_owned(), vec![true, true]));
    let finished = Event::Finished { reason: FinishReason::Stop, stop_sequence: None };
    assert_eq!(neutral(events), [Event::Text("a".to_owned()), finished]);
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
    let (openai, anthropic) = (request(OPENAI, ""), request(ANTHROPIC, ""));
    let events = observe_body(&openai, &body, false, true).unwrap();
    assert_eq!(events[1], Event::Raw { frame: body.clone(), content: 2 });
    let usage = Usage { input: Some(11), output: Some(7), ..Usage::default() };
    let finished = Event::Finished { reason: FinishReason::Length, stop_sequence: None };
    let report = Event::ReportedUsage(r#"{"prompt_tokens":11,"completion_tokens":7}"#.into());
    assert_eq!(events[2..], [Event::Text("Hi".to_owned()), Event::Usage(usage), report, finished]);
    assert_eq!(observe_body(&openai, &body, false, false).unwrap().len(), 5);

    let body = Bytes::from_static(
        br#"{"id":"m","type":"message","model":"c","content":[{"type":"text","text":"Hi"},{"type":"tool_use","id":"t","name":"f","input":{"a":1}}],"stop_reason":"stop_sequence","stop_sequence":"END","usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":9}}"#,
    );
    let events = observe_body(&anthropic, &body, false, true).unwrap();
    let usage = Usage { input: Some(7), output: Some(9), cache_read: Some(2), ..Usage::default() };
    let expected = [
        Event::Raw { frame: body.clone(), content: 12 },
        Event::ReportedUsage(r#"{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":9}"#.into()),
        Event::Text("Hi".to_owned()),
        call(0, Some("t"), Some("f"), "{\"a\":1}"),
        Event::Usage(usage),
        Event::Finished { reason: FinishReason::Stop, stop_sequence: Some("END".to_owned()) },
    ];
    assert_eq!(events[1..], expected);
}

/// What becomes of one frame.
fn observe_one(api: Api, frame: &str) -> Result<(Vec<Event>, u64), Error> {
    let mut observer = Observer::new(&request(api, ""), false, false);
    let mut events = Vec::new();
    for frame in frames(frame, 99_999) {
        observer.observe(&frame, &mut events)?;
    }
    Ok((events, observer.unreadable()))
}

#[test]
fn error_frames_end_the_stream_in_whatever_shape() {
    let (upstream, limited) = (ErrorKind::Upstream, ErrorKind::RateLimited);
    for (api, frame, kind, words) in [
        (OPENAI, r#"data: {"error":{"message":"x","type":"server_error"}}"#, upstream, Some("x")),
        (OPENAI, r#"data: {"error":{"message":"x","code":"rate_limit_exceeded"}}"#, limited, Some("x")),
        (OPENAI, r#"data: {"error":{"message":"x","code":429},"choices":[]}"#, limited, Some("x")),
        (OPENAI, r#"data: {"error":"x"}"#, upstream, Some("x")),
        (OPENAI, r#"data: [{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}]"#, upstream, Some("x")),
        (OPENAI, r#"data: {"object":"error","message":"x","code":400}"#, ErrorKind::UpstreamRefused, Some("x")),
        (OPENAI, r#"data: {"choices":[{"finish_reason":"error","error":{"message":"x"}}]}"#, upstream, Some("x")),
        (OPENAI, "event: error\ndata: x", upstream, Some("x")),
        (OPENAI, r#"error: {"code":500,"message":"x"}"#, upstream, Some("x")),
        (OPENAI, "event: error", upstream, None),
        (ANTHROPIC, r#"data: {"type":"error","error":{"type":"overloaded_error","message":"x"}}"#, upstream, Some("x")),
        (ANTHROPIC, r#"data: {"type":"error","error":{"type":"rate_limit_error","message":"x"}}"#, limited, Some("x")),
        (
            ANTHROPIC,
            r#"data: {"type":"error","error":{"type":"invalid_request_error"}}"#,
            ErrorKind::UpstreamRefused,
            None,
        ),
        (ANTHROPIC, r#"data: {"type":"error"}"#, upstream, None),
    ] {
        let error = observe_one(api, &format!("{frame}\n\n")).expect_err(frame);
        assert_eq!(error.kind, kind, "{frame}");
        let said = error.upstream.as_ref().and_then(|upstream| upstream.words.as_deref());
        assert_eq!(said, words, "{frame}");
    }
}

#[test]
fn a_choice_may_fail_and_its_frame_is_shown() {
    for choice in [r#"{"delta":{},"finish_reason":"error"}"#, r#"{"delta":{},"error":{"message":"x"}}"#] {
        let stream = format!("data: {{\"choices\":[{choice}],\"id\":\"1\"}}\n\n");
        let mut events = Vec::new();
        let mut observer = Observer::new(&request(OPENAI, ""), false, false);
        let error = observer.observe(&frames(&stream, 999)[0], &mut events).unwrap_err();
        assert_eq!((error.kind, forwarded(&events).0), (ErrorKind::Upstream, stream));
    }
}

#[test]
fn what_is_not_understood_is_forwarded_and_counted() {
    for (frame, unreadable) in [
        ("data: secret{\n\n", 1),
        ("data: 1\n\n", 1),
        ("data: [1]\n\n", 1),
        ("data: \n\n", 0),
        ("data:\n\n", 0),
        ("event: ping\ndata\n\n", 0),
        (": beat\n\n", 0),
        ("id: 7\nretry: 5\n\n", 0),
        ("data: {\"error\":null,\"choices\":[]}\n\n", 0),
        ("data: {\"secret\":1}\n\n", 0),
        ("data: {\"choices\":7,\"usage\":\"x\",\"id\":[],\"model\":{}}\n\n", 0),
        ("data: {\"type\":\"vendor_event\",\"message\":1,\"index\":\"x\",\"delta\":[]}\n\n", 0),
        ("data: {\"type\":\"content_block_delta\",\"index\":{},\"delta\":{\"type\":7,\"text\":1}}\n\n", 0),
        ("data: {\"choices\":[{\"index\":null,\"delta\":{\"content\":\"\\ud83d\",\"content\":NaN}}]}\n\n", 0),
    ] {
        for api in [OPENAI, ANTHROPIC] {
            let (events, counted) = observe_one(api, frame).unwrap();
            assert_eq!((forwarded(&events).0.as_str(), counted), (frame, unreadable), "{frame}");
        }
    }
}

/// Whether a stream that ended properly is whole, and why it stopped.
fn ending(api: Api, stream: &str) -> (bool, Option<FinishReason>) {
    let mut observer = Observer::new(&request(api, r#""stream":true"#), false, false);
    let mut events = Vec::new();
    let mut parser = sse::Parser::new(9999);
    parser.push(stream.as_bytes());
    while let Some(frame) = parser.next_frame().unwrap().or_else(|| parser.finish()) {
        observer.observe(&frame, &mut events).unwrap();
    }
    let reason = events.iter().find_map(|event| match event {
        Event::Finished { reason, .. } => Some(*reason),
        _ => None,
    });
    (observer.finish().is_ok(), reason)
}

#[test]
fn a_stream_is_whole_by_a_terminator_of_either_kind_or_by_a_reason() {
    let (stop, calls) = (Some(FinishReason::Stop), Some(FinishReason::ToolCalls));
    let length = Some(FinishReason::Length);
    let text = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let call = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"id\":\"1\"}]}}]}\n\n";
    let reason = |reason: &str| format!("data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":{reason}}}]}}\n\n");
    let (done, stopped) = ("data: [DONE]\n\n", "data: {\"type\":\"message_stop\"}\n\n");
    for (stream, expected) in [
        (text.to_owned(), (false, None)),
        (format!("{text}{done}"), (true, stop)),
        (format!("{text}data: [DONE]"), (true, stop)),
        (format!("{text}data: [DONE] {{}}\n\n"), (true, stop)),
        (format!("{call}{done}"), (true, calls)),
        (format!("{text}{stopped}"), (true, stop)),
        (format!("{text}event: message_stop\ndata: {{}}\n\n"), (true, stop)),
        (format!("{text}{}", reason("\"length\"")), (true, length)),
        (format!("{text}{}", reason("\"length\"").trim_end()), (true, length)),
        (format!("{text}{}{}{done}", reason("\"\""), reason("\"length\"")), (true, length)),
        (format!("{text}{}", reason("\"\"")), (false, None)),
        (format!("{text}{}", reason("null")), (false, None)),
        (format!("data: rubbish\n\n{text}{done}"), (true, stop)),
        (format!("data: rubbish\n\n{done}"), (false, None)),
        (format!("data: rubbish\n\n{done}{text}"), (false, None)),
        (done.to_owned(), (true, stop)),
        (String::new(), (false, None)),
    ] {
        assert_eq!(ending(OPENAI, &stream), expected, "{stream}");
    }
    let delta = "event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n";
    assert_eq!(ending(ANTHROPIC, delta), (true, stop));
    assert_eq!(ending(ANTHROPIC, &format!("data: {{\"type\":\"ping\"}}\n\n{done}")), (true, stop));
}

#[test]
fn id_and_model_are_the_first_that_are_named() {
    let stream = r#"data: {"id":"","model":"","choices":[],"prompt_filter_results":[]}

data: {"id":"a","model":"","choices":[]}

data: {"id":"b","model":"m","choices":[]}

data: {"id":"c","model":"n","choices":[]}

"#;
    let (events, _) = observe(&request(OPENAI, r#""stream":true"#), stream, false);
    let started = |id: Option<&str>, model: Option<&str>| Event::Started {
        id: id.map(str::to_owned),
        model: model.map(str::to_owned),
        usage: Usage::default(),
    };
    assert_eq!(neutral(events), [started(Some("a"), None), started(None, Some("m"))]);
}

/// What a whole body of an OpenAI provider counts.
fn counted(usage: &str) -> Usage {
    let body = format!(r#"{{"choices":[{{"message":{{"content":"a"}}}}],{usage}}}"#);
    let mut counted = Usage::default();
    for event in observe_body(&request(OPENAI, ""), &body.into(), false, false).unwrap() {
        if let Event::Usage(usage) = event {
            counted.update(usage);
        }
    }
    counted
}

#[test]
fn usage_is_found_wherever_providers_put_it() {
    let usage = Usage { input: Some(11), output: Some(3), ..Usage::default() };
    let cached = Usage { cache_read: Some(4), ..usage };
    let counts = r#""prompt_tokens":11,"completion_tokens":3"#;
    for (body, expected) in [
        (format!(r#""usage":{{{counts},"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":7}}"#), cached),
        (format!(r#""usage":{{{counts},"cached_tokens":4}}"#), cached),
        (format!(r#""x_groq":{{"usage":{{{counts}}}}}"#), usage),
        (format!(r#""usage":null,"x_groq":{{"usage":{{{counts}}}}}"#), usage),
        (r#""usage":{"input_tokens":11,"output_tokens":3.0}"#.to_owned(), usage),
        (format!(r#""usage":{{{counts},"num_search_queries":2}}"#), Usage { web_searches: Some(2), ..usage }),
        (
            format!(r#""usage":{{{counts},"completion_tokens_details":{{"reasoning_tokens":5}},"total_tokens":19}}"#),
            Usage { output: Some(8), reasoning: Some(5), ..usage },
        ),
        (
            format!(r#""usage":{{{counts},"completion_tokens_details":{{"reasoning_tokens":2}},"total_tokens":14}}"#),
            Usage { reasoning: Some(2), ..usage },
        ),
        (format!(r#""service_tier":"flex","usage":{{{counts}}}"#), Usage { tier: Some(ServiceTier::Flex), ..usage }),
        (
            format!(r#""usage":{{{counts},"prompt_tokens_details":{{"audio_tokens":5}}}}"#),
            Usage { audio: Some(5), ..usage },
        ),
        (r#""usage":{"prompt_tokens":-1,"completion_tokens":"many"}"#.to_owned(), Usage::default()),
    ] {
        assert_eq!(counted(&body), expected, "{body}");
    }
    let moonshot = format!(
        "data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"stop\",\"usage\":{{{counts},\"cached_tokens\":4}}}}]}}\n\n"
    );
    let (events, _) = observe(&request(OPENAI, r#""stream":true"#), &moonshot, false);
    assert!(events.contains(&Event::Usage(cached)), "{events:?}");
}

#[test]
fn anthropics_extras_are_counted_and_counts_never_shrink() {
    let stream = r#"data: {"type":"message_start","message":{"usage":{"input_tokens":10,"cache_creation":{"ephemeral_5m_input_tokens":6,"ephemeral_1h_input_tokens":4},"output_tokens":1,"service_tier":"standard"}}}

data: {"type":"message_delta","delta":{},"usage":{"input_tokens":0,"output_tokens":9,"output_tokens_details":{"thinking_tokens":5},"server_tool_use":{"web_search_requests":2}}}

data: {"type":"message_delta","delta":{},"usage":{"output_tokens":7}}

"#;
    let (events, _) = observe(&request(ANTHROPIC, r#""stream":true"#), stream, false);
    let expected = Usage {
        input: Some(20),
        output: Some(9),
        cache_read: None,
        cache_write: Some(10),
        cache_write_1h: Some(4),
        reasoning: Some(5),
        audio: None,
        web_searches: Some(2),
        tier: Some(ServiceTier::Standard),
    };
    assert_eq!(neutral(events).last(), Some(&Event::Usage(expected)));
}

/// A whole answer to a streamed request, and what a stream of it says again.
fn replayed(request: &Request, body: &str) -> (String, Vec<Event>, Vec<Event>) {
    let whole = observe_body(request, &Bytes::copy_from_slice(body.as_bytes()), !request.include_usage, true).unwrap();
    let (text, _) = forwarded(&whole);
    let (events, complete) = observe(request, &text, true);
    assert!(complete, "{text}");
    (text, whole, events)
}

#[test]
fn a_whole_answer_becomes_the_stream_that_was_asked_for() {
    let body = r#"{"id":"c","object":"chat.completion","model":"g","seed":1.0,"choices":[{"index":0,"message":{"role":"assistant","content":"Hi \ud83d","tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"},{"index":1,"message":{"content":"Ho"},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":11,"completion_tokens":7}}"#;
    let asked = request(OPENAI, r#""stream":true,"stream_options":{"include_usage":true}"#);
    let (text, whole, events) = replayed(&asked, body);
    assert!(
        text.contains(r#""seed":1.0"#) && text.contains(r#""content":"Hi \ud83d""#) && text.contains("Ho"),
        "{text}"
    );
    assert!(text.contains(r#""delta":{"role""#) && text.contains(r#"[{"index":0,"id":"t""#), "{text}");
    let sorted = |events: Vec<Event>| {
        let mut said: Vec<String> = neutral(events).iter().map(|event| format!("{event:?}")).collect();
        said.sort();
        said
    };
    assert_eq!(sorted(events), sorted(whole));
    let (text, ..) = replayed(&request(OPENAI, r#""stream":true"#), body);
    assert!(!text.contains("usage"), "{text}");

    let body = r#"{"id":"m","type":"message","role":"assistant","model":"c","content":[{"type":"thinking","thinking":"Hm","signature":"s"},{"type":"text","text":"Hi"},{"type":"tool_use","id":"t","name":"f","input":{"a":1.0}},{"type":"redacted_thinking","data":"d"}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":9}}"#;
    let (text, whole, events) = replayed(&request(ANTHROPIC, r#""stream":true"#), body);
    for part in [r#""signature_delta","signature":"s""#, r#""partial_json":"{\"a\":1.0}""#, r#""data":"d""#] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let said = |events: Vec<Event>| {
        let mut texts = (String::new(), String::new(), String::new());
        for event in neutral(events) {
            match event {
                Event::Text(text) => texts.0.push_str(&text),
                Event::Reasoning(text) => texts.1.push_str(&text),
                Event::ToolCall(call) => texts.2.push_str(&call.arguments),
                _ => {}
            }
        }
        texts
    };
    assert_eq!(said(events), said(whole));
}

#[test]
fn a_stream_that_nobody_asked_for_becomes_a_body() {
    for (api, stream) in [(OPENAI, golden!("openai/provider.sse")), (ANTHROPIC, golden!("anthropic/provider.sse"))] {
        let (streamed, _) = observe(&request(api, r#""stream":true"#), stream, true);
        let whole = observe_body(&request(api, ""), &stream.into(), false, false).unwrap();
        assert_eq!(neutral(whole.clone()), neutral(streamed));
        assert_eq!(forwarded(&whole).0, "");
        let cut = &stream[..stream.len() / 2];
        assert_eq!(observe_body(&request(api, ""), &cut.into(), false, false).unwrap_err().kind, ErrorKind::Upstream);
    }
}

#[test]
fn a_whole_body_that_is_no_answer_is_an_error_with_its_words() {
    for (api, body, kind, words) in [
        (
            OPENAI,
            r#"{"error":{"message":"top up","type":"insufficient_quota","code":"invalid_request_error"}}"#,
            ErrorKind::InsufficientQuota,
            "top up",
        ),
        (OPENAI, r#"{"detail":"no images"}"#, ErrorKind::Upstream, "no images"),
        (OPENAI, r#"{"error":{"message":"x","code":429},"choices":[]}"#, ErrorKind::RateLimited, "x"),
        (
            ANTHROPIC,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"x"}}"#,
            ErrorKind::UpstreamRefused,
            "x",
        ),
    ] {
        for stream in ["", r#""stream":true"#] {
            let error = observe_body(&request(api, stream), &body.into(), false, false).expect_err(body);
            assert_eq!(error.kind, kind, "{body}");
            assert_eq!(error.upstream.unwrap().words.as_deref(), Some(words));
        }
    }
    for body in ["", " \n", "<html>", "{", "7", "null", "{}"] {
        for api in [OPENAI, ANTHROPIC] {
            let error = observe_body(&request(api, ""), &body.into(), false, false).expect_err(body);
            assert_eq!((error.kind, error.status()), (ErrorKind::Upstream, 502), "{body}");
        }
    }
}

#[test]
fn a_providers_refusal_is_classified_and_quotes_nothing() {
    let refused = r#"{"error":{"message":"about sk-secret","type":"invalid_request_error","code":null}}"#;
    let context = r#"{"error":{"message":"long","type":"invalid_request_error","code":"context_length_exceeded"}}"#;
    let long = r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}"#;
    let (openai, anthropic) = (Dialect::OpenAi, Dialect::Anthropic);
    let vllm = r#"{"object":"error","message":"This model's maximum context length is 8 tokens, secret","code":400}"#;
    for (dialect, status, body, kind, fault, whole) in [
        (openai, 400, refused, ErrorKind::UpstreamRefused, Fault::Caller, true),
        (openai, 400, context, ErrorKind::ContextLength, Fault::Target, true),
        (anthropic, 400, long, ErrorKind::ContextLength, Fault::Target, true),
        (openai, 400, vllm, ErrorKind::ContextLength, Fault::Target, false),
        (
            openai,
            400,
            r#"{"error":{"message":"no support for images"}}"#,
            ErrorKind::UpstreamRefused,
            Fault::Target,
            true,
        ),
        (openai, 402, "{}", ErrorKind::InsufficientQuota, Fault::Account, false),
        (
            openai,
            429,
            r#"{"error":{"code":"insufficient_quota"}}"#,
            ErrorKind::InsufficientQuota,
            Fault::Account,
            false,
        ),
        (
            anthropic,
            400,
            r#"{"error":{"message":"Your credit balance is too low"}}"#,
            ErrorKind::InsufficientQuota,
            Fault::Account,
            false,
        ),
        (openai, 403, refused, ErrorKind::Forbidden, Fault::Model, true),
        (openai, 404, refused, ErrorKind::ModelNotFound, Fault::Model, true),
        (openai, 404, "<html>secret</html>", ErrorKind::ModelNotFound, Fault::Model, false),
        (openai, 413, refused, ErrorKind::UpstreamRefused, Fault::Target, true),
        (openai, 422, r#"{"detail":[{"loc":["n"],"msg":"secret"}]}"#, ErrorKind::UpstreamRefused, Fault::Caller, false),
        (openai, 429, refused, ErrorKind::RateLimited, Fault::Model, true),
        (anthropic, 529, long, ErrorKind::Upstream, Fault::Provider, true),
        (openai, 503, "busy, secret", ErrorKind::Upstream, Fault::Provider, false),
        (openai, 429, r#"{"error":{"message":"Request too large"}}"#, ErrorKind::RateLimited, Fault::Target, true),
        (openai, 424, refused, ErrorKind::Upstream, Fault::Provider, true),
        (openai, 400, r#"{"code":"Arrearage","message":"x"}"#, ErrorKind::InsufficientQuota, Fault::Account, false),
        (openai, 501, refused, ErrorKind::Upstream, Fault::Target, true),
    ] {
        let error = decode_error(dialect, status, body.into());
        assert_eq!((error.kind, error.fault(), error.status()), (kind, fault, status), "{status} {body}");
        assert_eq!(error.upstream.as_ref().is_some_and(|upstream| upstream.body.is_some()), whole, "{status} {body}");
        assert!(!error.message.contains("secret") && !error.message.contains("long"), "{error}");
        assert!(error.message.contains(&status.to_string()), "{error}");
    }
    // Our key is nobody's business, and a page of a proxy no answer.
    let google = r#"[{"error":{"code":400,"message":"API key not valid. secret","status":"INVALID_ARGUMENT"}}]"#;
    for (status, body) in [(401, refused), (400, google), (502, "<html>secret</html>"), (500, "")] {
        let error = decode_error(openai, status, body.into());
        assert!(error.upstream.is_none() && error.status() == error.kind.status(), "{error:?}");
    }
    let odd = r#"{"error":{"code":"my secret prompt"}}"#;
    assert!(!decode_error(openai, 400, odd.into()).message.contains("secret"));
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
            let mut events = Vec::new();
            drop(Observer::new(&request(api, ""), true, true).observe(frame, &mut events));
            for event in events {
                if let Event::Raw { frame: forwarded, .. } = event {
                    prop_assert!(frame.raw == forwarded || data.contains("\"usage\":null"));
                }
            }
        }
    }
}
