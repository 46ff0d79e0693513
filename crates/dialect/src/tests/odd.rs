//! What holds of any provider's answer, however odd: the goldens with pieces put in, left out and said twice.

use bytes::Bytes;
use mlx_manager_llm::{Api, Error, ErrorKind, Event, FinishReason, Request, ToolCall, Usage};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{golden, identity, request};
use crate::{Observer, StreamEncoder, observe_body, sse};

const STREAMS: [(Api, &str, &str); 2] = [
    (Api::ChatCompletions, golden!("openai/provider.sse"), r#""finish_reason":"stop""#),
    (Api::Messages, golden!("anthropic/provider.sse"), r#""stop_reason":"tool_use""#),
];

/// What is put into a stream, to the byte.
const ODD: [&[u8]; 24] = [
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\xef\xbb\xbf",
    b": note\n\n",
    b"data:\n\n",
    b"data: [DONE]\n\n",
    b"event: message_stop\ndata: {}\n\n",
    b"event: error\n",
    b"id: 7\nretry: x\n",
    b"null",
    b"{}",
    b"[]",
    b"\"",
    b"\\",
    b"\\ud83d",
    b"\xf0\x9f",
    b"-Infinity",
    b"1e999",
    b"\"error\":0,",
    b"\"error\":{\"code\":429},",
    b"\"usage\":null,",
    b"\"usage\":{\"output_tokens\":18446744073709551615},",
    b"\"type\":\"message_delta\",",
];

/// A stream's bytes with some of them replaced by others.
fn odd(stream: &str, changes: &[(Index, usize, Index)]) -> Vec<u8> {
    let mut bytes = stream.as_bytes().to_vec();
    for (at, gone, new) in changes {
        let at = at.index(bytes.len() + 1);
        let end = (at + gone).min(bytes.len());
        bytes.splice(at..end, ODD[new.index(ODD.len())].iter().copied());
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(Index, usize, Index)>> {
    let gone = prop_oneof![3 => Just(0_usize), 1 => 1..4_usize, 1 => 0..400_usize];
    prop::collection::vec((any::<Index>(), gone, any::<Index>()), 0..5)
}

/// What an answer says, and how it ends.
#[derive(Debug)]
struct Read {
    events: Vec<Event>,
    /// What a frame said that is an error.
    failed: Option<Error>,
    /// Whether the answer counts as whole.
    whole: bool,
}

fn read(request: &Request, injected: bool, capture: bool, chunks: &[&[u8]]) -> Read {
    let (mut observer, mut parser) = (Observer::new(request, injected, capture), sse::Parser::new(1 << 20));
    let mut events = Vec::new();
    for chunk in chunks {
        parser.push(chunk);
        while let Some(frame) = parser.next_frame().unwrap() {
            if let Err(error) = observer.observe(&frame, &mut events) {
                return Read { events, failed: Some(error), whole: false };
            }
        }
    }
    let failed = parser.finish().and_then(|last| observer.observe(&last, &mut events).err());
    let whole = failed.is_none() && observer.finish().is_ok();
    Read { events, failed, whole }
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
    let (mut text, mut thoughts, mut calls, mut usage, mut end) =
        (String::new(), String::new(), vec![], Usage::default(), None);
    for event in events {
        match event {
            Event::Text(more) => text.push_str(more),
            Event::Reasoning(more) => thoughts.push_str(more),
            Event::ToolCall(call) => assert!(call.add_to(&mut calls)),
            Event::Started { usage: more, .. } | Event::Usage(more) => usage.update(*more),
            Event::Finished { reason, .. } => end = Some(*reason),
            _ => {}
        }
    }
    (text, thoughts, calls, usage, end)
}

fn asked(api: Api) -> Request {
    let usage = match api {
        Api::ChatCompletions => r#""stream":true,"stream_options":{"include_usage":true}"#,
        Api::Messages => r#""stream":true"#,
    };
    request(api, usage)
}

#[test]
fn an_error_after_a_frame_without_its_blank_line_is_a_frame_of_its_own() {
    for (api, stream, _) in STREAMS {
        let request = asked(api);
        // A connection that ended well in the middle of an answer, without so much as a line end.
        let begun = stream.split("\n\n").take(2).collect::<Vec<_>>().join("\n\n");
        let read = read(&request, false, false, &[begun.as_bytes()]);
        assert!(!read.whole);
        let mut encoder = StreamEncoder::new(&request, identity());
        let sent: Vec<u8> = read.events.iter().flat_map(|event| encoder.encode(event)).collect();
        let error = encoder.error(&Error::new(ErrorKind::Upstream, "cut off"));
        let mut parser = sse::Parser::new(1 << 20);
        parser.push(&[&sent[..], &error[..]].concat());
        let mut frames = Vec::new();
        while let Some(frame) = parser.next_frame().unwrap() {
            frames.push(frame);
        }
        let data = frames.last().unwrap().data.clone().unwrap();
        assert!(serde_json::from_slice::<Value>(&data).unwrap().get("error").is_some(), "{data:?}");
    }
}

#[test]
fn an_answer_without_calls_is_replayed_without_them() {
    let body =
        Bytes::from_static(br#"{"choices":[{"message":{"content":"Hi","tool_calls":null},"finish_reason":"stop"}]}"#);
    let replayed = forwarded(&observe_body(&asked(Api::ChatCompletions), &body, false, false).unwrap());
    assert!(String::from_utf8(replayed).unwrap().contains(r#""tool_calls":null"#));
}

#[test]
fn what_cant_come_in_pieces_is_replayed_where_it_was() {
    let body = Bytes::from_static(
        br#"{"content":[{"type":"text","text":7,"text":"Hi"},{"type":"text","text":1.5}],"stop_reason":"end_turn"}"#,
    );
    let replayed = forwarded(&observe_body(&asked(Api::Messages), &body, false, false).unwrap());
    let replayed = String::from_utf8(replayed).unwrap();
    assert_eq!(replayed.matches("text_delta").count(), 1, "{replayed}");
    assert!(
        replayed.contains(r#"{"type":"text_delta","text":"Hi"}"#) && replayed.contains(r#"{"type":"text","text":1.5}"#)
    );
}

/// What comes of a stream that ended properly: the error that it is in the end, and what was forwarded.
fn ended(api: Api, text: &str) -> (Option<Error>, String, Vec<Event>) {
    let mut observer = Observer::new(&asked(api), false, false);
    let (mut parser, mut events) = (sse::Parser::new(99_999), Vec::new());
    parser.push(text.as_bytes());
    while let Some(frame) = parser.next_frame().unwrap().or_else(|| parser.finish()) {
        observer.observe(&frame, &mut events).unwrap();
    }
    let frames = String::from_utf8(forwarded(&events)).unwrap();
    (observer.finish().err(), frames, events)
}

#[test]
fn words_alone_are_an_error_only_where_no_answer_comes_after_them() {
    let answer = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let words = |error: Option<Error>| error.map(|error| error.upstream.and_then(|upstream| upstream.words));
    for said in [
        "data: {\"message\":\"queued\"}\n\n",
        "event: status\ndata: {\"title\":\"queued\"}\n\n",
        "data: {\"id\":\"7\",\"detail\":{\"reason\":\"queued\"}}\n\n",
        "queued\n\n",
    ] {
        let (error, frames, _) = ended(Api::ChatCompletions, &format!("{said}{answer}{said}"));
        assert!(error.is_none() && frames == format!("{said}{answer}{said}"), "{said}: {error:?}");
        for end in ["", "data: [DONE]\n\n"] {
            let (error, ..) = ended(Api::ChatCompletions, &format!("{said}{end}"));
            assert_eq!(words(error), Some(Some("queued".to_owned())), "{said}{end}");
        }
    }
    let (error, ..) = ended(Api::ChatCompletions, "data: {\"detail\":\"Rate limit reached\"}\n\n");
    assert_eq!(error.unwrap().kind, ErrorKind::RateLimited);
    let (error, ..) = ended(Api::Messages, ": working\n\n{\"error\":{\"message\":\"x\",\"code\":503}}");
    assert_eq!(error.unwrap().status(), 503);
}

#[test]
fn a_reason_that_says_null_is_none() {
    for (api, frame) in [
        (Api::ChatCompletions, r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"null"}]}"#),
        (Api::Messages, r#"{"type":"message_delta","delta":{"stop_reason":"null"}}"#),
    ] {
        let (error, ..) = ended(api, &format!("data: {frame}\n\n"));
        assert_eq!(error.unwrap().message, "the provider cut its answer off", "{frame}");
    }
}

#[test]
fn a_chunk_of_usage_is_kept_back_only_if_nothing_else_is_in_it() {
    let only = r#"data: {"id":"1","object":"o","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":1}}"#;
    for (chunk, kept_back) in [
        (only.to_owned(), true),
        (only.replace("\"choices\":[],", ""), true),
        (only.replace("\"id\"", "\"citations\":[\"x\"],\"id\""), false),
        (only.replace("\"choices\":[]", "\"response\":\"text\""), false),
    ] {
        let chunk = format!("{chunk}\n\n");
        let mut events = Vec::new();
        let mut observer = Observer::new(&asked(Api::ChatCompletions), true, false);
        observer.observe(&super::frames(&chunk, 999)[0], &mut events).unwrap();
        let expected = if kept_back { String::new() } else { chunk.clone() };
        assert_eq!(String::from_utf8(forwarded(&events)).unwrap(), expected, "{chunk}");
        assert!(events.iter().any(|event| matches!(event, Event::Usage(_))), "{chunk}");
    }
}

#[test]
fn usage_counts_in_the_last_places_too() {
    for (api, frame) in [
        (Api::Messages, r#"{"type":"message_stop","usage":{"output_tokens":7}}"#),
        (Api::Messages, r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","usage":{"output_tokens":7}}}"#),
        (Api::ChatCompletions, r#"{"choices":[{"delta":{"usage":{"completion_tokens":7}},"finish_reason":"stop"}]}"#),
    ] {
        let (error, _, events) = ended(api, &format!("data: {frame}\n\n"));
        let counted = events.iter().find_map(|event| match event {
            Event::Usage(usage) => usage.output,
            _ => None,
        });
        assert!(error.is_none() && counted == Some(7), "{frame}: {error:?}");
    }
}

#[test]
fn a_body_of_another_shape_is_forwarded_if_it_was_counted() {
    for (api, body) in [
        (Api::Messages, r#"{"type":"message","content":"text","usage":{"output_tokens":7}}"#),
        (Api::Messages, r#"{"type":"message","content":null,"usage":{"output_tokens":7}}"#),
        (Api::ChatCompletions, r#"{"choices":{"0":"text"},"usage":{"completion_tokens":7}}"#),
        (Api::ChatCompletions, r#"{"object":"response","output":[],"usage":{"output_tokens":7}}"#),
    ] {
        let head = request(api, "");
        let events = observe_body(&head, &body.into(), false, false).unwrap();
        assert_eq!(String::from_utf8(forwarded(&events)).unwrap(), body);
        assert!(events.iter().any(|event| matches!(event, Event::Usage(usage) if usage.output == Some(7))), "{body}");
    }
}

#[test]
fn an_error_that_is_none_spoils_no_answer() {
    for error in ["0", "false", "{}", r#"{"code":0,"message":""}"#, r#"{"code":null,"message":null}"#] {
        let body = format!(r#"{{"choices":[{{"message":{{"content":"a"}}}}],"error":{error}}}"#);
        assert!(observe_body(&asked(Api::ChatCompletions), &body.into(), false, false).is_ok(), "{error}");
        let body = format!(r#"{{"type":"message","content":[],"error":{error}}}"#);
        assert!(observe_body(&asked(Api::Messages), &body.into(), false, false).is_ok(), "{error}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    "[a-zé\u{1f600}\"\\\\\n\r\u{2028} ]{0,8}"
}

fn any_call() -> impl Strategy<Value = (String, String, Value)> {
    ("[a-z]{1,4}", "[a-z]{1,4}", any_text().prop_map(|text| json!({"text": text, "of": [1.5, null]})))
}

proptest! {
    #[test]
    fn what_is_forwarded_is_what_came_however_it_came(
        changes in changes(),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
        capture: bool,
    ) {
        for (api, stream, _) in STREAMS {
            let (request, bytes) = (asked(api), odd(stream, &changes));
            let whole = read(&request, false, capture, &[&bytes]);
            let forwarded = forwarded(&whole.events);
            prop_assert!(bytes.starts_with(&forwarded));
            prop_assert!(whole.failed.is_some() || bytes == forwarded);

            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(format!("{:?}", read(&request, false, capture, &chunks)), format!("{whole:?}"));
        }
    }

    #[test]
    fn of_what_we_asked_for_only_usage_is_left_out(changes in changes()) {
        for (api, stream, _) in STREAMS {
            let bytes = odd(stream, &changes);
            let (kept, all) = (read(&asked(api), true, true, &[&bytes]), read(&asked(api), false, true, &[&bytes]));
            prop_assert_eq!((said(&kept.events), kept.whole), (said(&all.events), all.whole));
            prop_assert!(forwarded(&kept.events).len() <= forwarded(&all.events).len());
        }
    }

    #[test]
    fn counts_never_shrink(changes in changes()) {
        let (api, stream, _) = STREAMS[1];
        let mut before = Usage::default();
        for event in read(&asked(api), false, false, &[&odd(stream, &changes)]).events {
            if let Event::Usage(usage) | Event::Started { usage, .. } = event {
                let mut most = before;
                most.update(usage);
                prop_assert_eq!((most.input, most.output, most.cache_read), (usage.input, usage.output, usage.cache_read));
                before = most;
            }
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_is_not_whole(cut: Index) {
        for (api, stream, reason) in STREAMS {
            let request = asked(api);
            let end = stream.find(reason).unwrap();
            let read = read(&request, false, true, &[&stream.as_bytes()[..cut.index(end)]]);
            prop_assert!(!read.whole);
        }
    }

    #[test]
    fn a_whole_answer_is_read_back_from_its_stream(
        text in any_text(),
        thought in any_text(),
        calls in prop::collection::vec(any_call(), 0..3),
        counts: (u32, u32),
        pretty: bool,
    ) {
        let openai_calls: Vec<Value> = calls
            .iter()
            .map(|(id, name, input)| json!({"id": id, "function": {"name": name, "arguments": input.to_string()}}))
            .collect();
        let openai = json!({"id": "c", "choices": [{"finish_reason": "stop", "message": {
                "role": "assistant", "content": text, "reasoning_content": thought, "tool_calls": openai_calls}}],
            "usage": {"prompt_tokens": counts.0, "completion_tokens": counts.1}});
        let mut content = vec![json!({"type": "thinking", "thinking": thought}), json!({"type": "text", "text": text})];
        content.extend(
            calls.iter().map(|(id, name, input)| json!({"type": "tool_use", "id": id, "name": name, "input": input})),
        );
        let anthropic = json!({"id": "m", "content": content, "stop_reason": "end_turn",
            "usage": {"input_tokens": counts.0, "output_tokens": counts.1}});
        for (api, body) in [(Api::ChatCompletions, openai), (Api::Messages, anthropic)] {
            let request = asked(api);
            let body = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
            let whole = observe_body(&request, &body.into(), false, true).unwrap();
            let stream = forwarded(&whole);
            let again = read(&request, false, true, &[&stream]);
            prop_assert!(again.whole && again.failed.is_none());
            prop_assert_eq!(forwarded(&again.events), stream);
            let (mut told, mut first) = (said(&again.events), said(&whole));
            for calls in [&mut told.2, &mut first.2] {
                for call in calls {
                    // Its layout is the provider's own, and within an event stream on one line.
                    call.arguments = serde_json::from_str::<Value>(&call.arguments).unwrap().to_string();
                }
            }
            prop_assert_eq!(told, first);
        }
    }
}
