//! Neutral events to either wire.

use mlx_manager_llm::{Api, Dialect, Error, ErrorKind, Event, FinishReason, ToolCallDelta, UpstreamAnswer, Usage};
use serde_json::{Value, json};

use super::{golden, identity, request};
use crate::{BodyBuilder, ModelEntry, StreamEncoder, encode_error, encode_model, encode_models, prepare};

const APIS: [Api; 2] = [Api::ChatCompletions, Api::Messages];

fn call(index: usize, id: Option<&str>, name: Option<&str>, arguments: &str) -> Event {
    let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
    Event::ToolCall(ToolCallDelta { index, id, name, arguments: arguments.to_owned() })
}

fn finished(reason: FinishReason, stop_sequence: Option<&str>) -> Event {
    Event::Finished { reason, stop_sequence: stop_sequence.map(str::to_owned) }
}

fn answer() -> Vec<Event> {
    let usage = Usage { input: Some(20), cache_read: Some(8), ..Usage::default() };
    vec![
        Event::Started { id: None, model: None, usage },
        Event::Queued(std::time::Duration::from_millis(5)),
        Event::Reasoning("Hm.".to_owned()),
        Event::Text("I ".to_owned()),
        Event::Usage(Usage { output: Some(4), ..Usage::default() }),
        Event::Text("look.".to_owned()),
        call(0, Some("call_1"), Some("weather"), ""),
        call(0, None, None, r#"{"city":"Bern"}"#),
        call(1, Some("call_2"), Some("time"), "{}"),
        finished(FinishReason::ToolCalls, None),
        Event::Usage(Usage { output: Some(9), reasoning: Some(2), ..Usage::default() }),
    ]
}

fn stream(api: Api, fields: &str, events: &[Event]) -> String {
    let mut encoder = StreamEncoder::new(&request(api, fields), identity());
    let mut out: Vec<u8> = events.iter().flat_map(|event| encoder.encode(event)).collect();
    out.extend(encoder.finish());
    String::from_utf8(out).unwrap()
}

fn whole(api: Api, events: Vec<Event>) -> Value {
    let mut builder = BodyBuilder::new(&request(api, ""), identity());
    events.into_iter().for_each(|event| builder.push(event));
    serde_json::from_slice(&builder.finish().unwrap()).unwrap()
}

#[test]
fn streams_are_written_as_the_providers_write_them() {
    let asked = r#""stream":true,"stream_options":{"include_usage":true}"#;
    assert_eq!(stream(Api::ChatCompletions, asked, &answer()), golden!("openai/answer.sse"));
    assert_eq!(stream(Api::Messages, r#""stream":true"#, &answer()), golden!("anthropic/answer.sse"));
    let unasked = stream(Api::ChatCompletions, r#""stream":true"#, &answer());
    assert!(!unasked.contains("usage"), "{unasked}");
}

#[test]
fn bodies_are_written_as_the_providers_write_them() {
    let golden = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(whole(Api::ChatCompletions, answer()), golden(golden!("openai/answer.json")));
    assert_eq!(whole(Api::Messages, answer()), golden(golden!("anthropic/answer.json")));
}

#[test]
fn reasons_have_their_names_on_either_wire() {
    for (reason, stop, openai, anthropic) in [
        (FinishReason::Stop, None, "stop", "end_turn"),
        (FinishReason::Stop, Some("END"), "stop", "stop_sequence"),
        (FinishReason::Length, None, "length", "max_tokens"),
        (FinishReason::ContentFilter, None, "content_filter", "refusal"),
        (FinishReason::Other, None, "stop", "end_turn"),
    ] {
        let body = whole(Api::ChatCompletions, vec![finished(reason, stop)]);
        assert_eq!(body["choices"][0]["finish_reason"], openai);
        assert_eq!(body["choices"][0]["message"]["content"], "");
        let body = whole(Api::Messages, vec![finished(reason, stop)]);
        assert_eq!((&body["stop_reason"], &body["stop_sequence"]), (&json!(anthropic), &json!(stop)));
        assert_eq!(body["content"], json!([]));
    }
}

#[test]
fn arguments_that_are_no_object_stay_visible() {
    for (arguments, input) in
        [("", json!({})), ("{\"a\":", json!({"INVALID_JSON": "{\"a\":"})), ("[1]", json!({"INVALID_JSON": "[1]"}))]
    {
        let events = vec![call(0, Some("c"), Some("f"), arguments), finished(FinishReason::ToolCalls, None)];
        assert_eq!(whole(Api::Messages, events)["content"][0]["input"], input);
    }
}

#[test]
fn an_answer_without_an_end_is_an_error() {
    for api in APIS {
        let cut = &answer()[..6];
        let text = stream(api, "", cut);
        assert!(text.contains("\"error\"") && text.contains("broke off"), "{text}");
        assert!(!text.contains("[DONE]") && !text.contains("message_stop"), "{text}");
        let mut builder = BodyBuilder::new(&request(api, ""), identity());
        cut.iter().for_each(|event| builder.push(event.clone()));
        assert_eq!(builder.finish().unwrap_err().kind, ErrorKind::Internal);
    }
}

#[test]
fn tool_calls_that_cant_be_written_are_an_error() {
    // Anthropic's blocks come one after the other; a closed one can't be gone on with.
    let events = [call(0, Some("a"), Some("f"), "{"), call(1, Some("b"), Some("f"), "{}"), call(0, None, None, "}")];
    let mut events = events.to_vec();
    events.push(finished(FinishReason::ToolCalls, None));
    assert!(stream(Api::Messages, "", &events).contains("event: error"));
    assert_eq!(whole(Api::Messages, events)["content"][0]["input"], json!({}));
    let mut builder = BodyBuilder::new(&request(Api::Messages, ""), identity());
    builder.push(call(usize::MAX, None, None, ""));
    builder.push(finished(FinishReason::ToolCalls, None));
    assert_eq!(builder.finish().unwrap_err().kind, ErrorKind::Internal);
}

#[test]
fn beside_a_raw_frame_nothing_is_written() {
    for api in APIS {
        let mut events = answer();
        events.insert(1, Event::Raw { frame: "one".into(), content: 0 });
        events.push(Event::Raw { frame: "two".into(), content: 0 });
        assert_eq!(stream(api, "", &events), "onetwo");
        let mut builder = BodyBuilder::new(&request(api, ""), identity());
        events.pop();
        events.into_iter().for_each(|event| builder.push(event));
        assert_eq!(builder.finish().unwrap(), "one");
    }
}

#[test]
fn errors_speak_the_callers_dialect() {
    let error = Error::new(ErrorKind::ContextLength, "the prompt has 9 tokens").with_param("messages");
    let (status, body) = encode_error(Dialect::OpenAi, &error, "r1");
    let expected = json!({"error": {"message": "the prompt has 9 tokens", "type": "invalid_request_error",
        "param": "messages", "code": "context_length_exceeded"}});
    assert_eq!((status, serde_json::from_slice::<Value>(&body).unwrap()), (400, expected));
    let (status, body) = encode_error(Dialect::Anthropic, &error, "r1");
    let expected = json!({"type": "error", "request_id": "r1",
        "error": {"type": "invalid_request_error", "message": "messages: the prompt has 9 tokens"}});
    assert_eq!((status, serde_json::from_slice::<Value>(&body).unwrap()), (400, expected));

    let encoder = StreamEncoder::new(&request(Api::ChatCompletions, ""), identity());
    let frame = encoder.error(&Error::new(ErrorKind::TimeoutIdle, "too slow"));
    assert_eq!(
        frame,
        "data: {\"error\":{\"message\":\"too slow\",\"type\":\"server_error\",\"param\":null,\"code\":\"timeout_idle\"}}\n\n"
    );
    let encoder = StreamEncoder::new(&request(Api::Messages, ""), identity());
    let frame = encoder.error(&Error::new(ErrorKind::Overloaded, "later"));
    assert_eq!(
        frame,
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"later\"},\"request_id\":\"r1\"}\n\n"
    );
}

#[test]
fn a_providers_error_is_passed_on_or_put_into_the_callers_dialect() {
    let body = r#"{"error":{"message":"too many","type":"requests","code":"rate_limit_exceeded","extra":1}}"#;
    let mut error = Error::new(ErrorKind::RateLimited, "the provider answered with an error");
    let upstream = UpstreamAnswer {
        dialect: Dialect::OpenAi,
        status: 429,
        body: Some(body.into()),
        words: Some("too many".to_owned()),
    };
    error.upstream = Some(Box::new(upstream));
    assert_eq!(encode_error(Dialect::OpenAi, &error, "r1"), (429, body.into()));
    let (status, other) = encode_error(Dialect::Anthropic, &error, "r1");
    let other: Value = serde_json::from_slice(&other).unwrap();
    assert_eq!(status, 429);
    assert_eq!(other["error"], json!({"type": "rate_limit_error", "message": "too many"}));
}

#[test]
fn models_are_listed_in_either_dialect() {
    let model = |id: &str| ModelEntry { id: id.to_owned(), created: identity().created, owned_by: "mlx".to_owned() };
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let one = json!({"id": "a", "object": "model", "created": 1_700_000_000, "owned_by": "mlx"});
    assert_eq!(read(&encode_model(Dialect::OpenAi, &model("a"))), one);
    assert_eq!(read(&encode_models(Dialect::OpenAi, &[model("a")])), json!({"object": "list", "data": [one]}));
    let one = json!({"type": "model", "id": "a", "display_name": "a", "created_at": "2023-11-14T22:13:20Z"});
    assert_eq!(read(&encode_model(Dialect::Anthropic, &model("a"))), one);
    let list = read(&encode_models(Dialect::Anthropic, &[model("a"), model("b")]));
    assert_eq!((&list["data"][0], &list["has_more"]), (&one, &json!(false)));
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!("a"), &json!("b")));
    assert_eq!(read(&encode_models(Dialect::Anthropic, &[]))["first_id"], Value::Null);
}

#[test]
fn a_provider_gets_what_the_caller_sent() {
    let openai = golden!("openai/full.json");
    let anthropic = golden!("anthropic/full.json");
    for (api, text) in [(Api::ChatCompletions, openai), (Api::Messages, anthropic)] {
        let request = super::decode_head(api, text).unwrap();
        let sent = prepare(&request, &request.model, true);
        assert_eq!(sent.concat(), text.as_bytes());
        assert_eq!(sent[0].as_ptr(), request.body.bytes().as_ptr(), "nothing is copied");
        let renamed = String::from_utf8(prepare(&request, "other", true).concat()).unwrap();
        let model = format!("{:?}", request.model);
        assert_eq!(renamed, text.replacen(&model, "\"other\"", 1));
    }
}

#[test]
fn what_is_changed_for_a_provider_is_no_more_than_that() {
    let sent = |text: &str, model: &str, ask_usage| {
        let request = super::decode_head(Api::ChatCompletions, text).unwrap();
        String::from_utf8(prepare(&request, model, ask_usage).concat()).unwrap()
    };
    let odd = r#"
{ "model":"a", "messages" : [{"z":1e2,"\ud800":"\udfff"}],"x":1,"x":2, "mod\u0065l" :"m","stream":true , "\ud83d":0 }
"#;
    let before = odd.split_once(" }").unwrap().0;
    assert_eq!(sent(odd, "m", false), odd);
    assert_eq!(sent(odd, "m", true), format!("{before},\"stream_options\":{{\"include_usage\":true}} }}\n"));
    assert_eq!(sent(odd, "b\"", false), odd.replace("\"a\"", r#""b\"""#).replace("\"m\"", r#""b\"""#));
    let twice = r#"{"stream_options":1,"model":"m","stream":true,"messages":[1],"stream_options":{"x":1}}"#;
    let asked = r#"{"x":1,"include_usage":true}"#;
    let expected =
        format!(r#"{{"stream_options":{asked},"model":"n","stream":true,"messages":[1],"stream_options":{asked}}}"#);
    assert_eq!(sent(twice, "n", true), expected);
}

#[test]
fn usage_is_asked_for_in_openai_streams() {
    let sent = |api, fields: &str| -> Value {
        let request = request(api, fields);
        serde_json::from_slice(&prepare(&request, &request.model, true).concat()).unwrap()
    };
    let openai = Api::ChatCompletions;
    assert_eq!(sent(openai, r#""stream":true"#)["stream_options"], json!({"include_usage": true}));
    let kept = sent(openai, r#""stream":true,"stream_options":{"include_usage":false,"include_obfuscation":false}"#);
    assert_eq!(kept["stream_options"], json!({"include_usage": true, "include_obfuscation": false}));
    assert_eq!(
        sent(openai, r#""stream":true,"stream_options":null"#)["stream_options"],
        json!({"include_usage": true})
    );
    assert_eq!(sent(openai, "").get("stream_options"), None);
    assert_eq!(sent(Api::Messages, r#""stream":true"#).get("stream_options"), None);
}
