//! What is understood of requests, and what is refused.

use mlx_manager_llm::{
    Api, Chat, Content, Ending, Error, ErrorKind, Message, Reasoning, Role, Tool, ToolCall, ToolChoice,
};
use proptest::prelude::*;
use serde_json::json;

use super::decode_head;
use super::{body, golden, request};
use crate::decode_chat;

const OPENAI: Api = Api::ChatCompletions;
const ANTHROPIC: Api = Api::Messages;

fn text(text: &str) -> Vec<Content> {
    vec![Content::Text(text.to_owned())]
}

fn message(role: Role, said: &str) -> Message {
    let content = text(said);
    Message { role, content, reasoning: None, tool_calls: Vec::new(), tool_call_id: None, name: None }
}

fn chat(api: Api, body: &serde_json::Value) -> Result<Chat, Error> {
    decode_chat(&decode_head(api, body.to_string().as_bytes())?)
}

/// A conversation of one message for the local engine.
fn with_message(api: Api, message: &serde_json::Value) -> Result<Chat, Error> {
    chat(api, &json!({"model": "m", "max_tokens": 9, "messages": [message]}))
}

fn assert_refused(refused: Result<impl std::fmt::Debug, Error>, param: &str, what: &str) {
    let error = refused.expect_err(what);
    assert_eq!(error.kind, ErrorKind::InvalidRequest, "{what}");
    assert_eq!(error.param.as_deref(), Some(param), "{what}: {error}");
    assert!(error.message.contains(param), "{what}: {error}");
}

#[test]
fn the_head_is_read() {
    let head = decode_head(OPENAI, golden!("openai/full.json").as_bytes()).unwrap();
    assert_eq!((head.model.as_str(), head.stream, head.include_usage), ("gpt-test", true, true));
    assert_eq!((head.sampling.temperature, head.sampling.top_p), (Some(1.0), Some(0.9)));
    assert_eq!((head.sampling.max_tokens, head.sampling.seed), (Some(64), Some(9_007_199_254_740_993)));
    assert_eq!(head.sampling.stop, ["END", "\n\n"]);
    assert_eq!((head.sampling.presence_penalty, head.sampling.frequency_penalty), (Some(0.5), Some(-0.5)));
    let head = decode_head(ANTHROPIC, golden!("anthropic/full.json").as_bytes()).unwrap();
    assert_eq!((head.model.as_str(), head.stream, head.include_usage), ("claude-test", true, false));
    assert_eq!((head.sampling.top_k, head.sampling.max_tokens), (Some(40), Some(1024)));
    assert_eq!(head.sampling.stop, ["END"]);
    let both = request(OPENAI, r#""max_tokens":5,"max_completion_tokens":7,"stop":"x","temperature":null"#).sampling;
    assert_eq!((both.max_tokens, both.temperature), (Some(7), None));
    assert_eq!(both.stop, ["x"]);
    // Extensions mean what the provider says, so an odd value is its business.
    assert_eq!(request(OPENAI, r#""top_k":-1"#).sampling.top_k, None);
}

#[test]
fn a_body_that_is_no_request_is_refused_without_quoting_it() {
    for api in [OPENAI, ANTHROPIC] {
        for (text, words) in [
            ("", "line 1 column 0"),
            (r#"{"model": secret}"#, "line 1 column 11"),
            (r#"{"secret": "#, "line 1 column 11"),
            (r#""secret""#, "must be a JSON object"),
            ("[]", "must be a JSON object"),
            ("{\"model\":\"\u{1}secret\"}", "line 1"),
        ] {
            let error = decode_head(api, text.as_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            assert!(error.message.contains(words) && !error.message.contains("secret"), "{text:?}: {error}");
        }
        let many: String = (0..600).map(|index| format!(r#","f{index}":1"#)).collect();
        let error = decode_head(api, format!(r#"{{"model":"m"{many}}}"#).as_bytes()).unwrap_err();
        assert_eq!(error.message, "the body has too many fields");
        assert_refused(decode_head(api, br#"{"messages":[{}]}"#), "model", "no model");
        assert_refused(decode_head(api, br#"{"model":7}"#), "model", "a number");
        assert_refused(decode_head(api, br#"{"model":""}"#), "model", "empty");
        assert_refused(decode_head(api, br#"{"model":"m","stream":"yes"}"#), "stream", "no flag");
    }
}

#[test]
fn values_out_of_range_are_refused_by_a_local_model_alone() {
    for (api, field, param) in [
        (OPENAI, r#""stream_options":1"#, "stream_options"),
        (OPENAI, r#""stream_options":{"include_usage":1}"#, "stream_options.include_usage"),
        (OPENAI, r#""temperature":2.1"#, "temperature"),
        (OPENAI, r#""temperature":-0.1"#, "temperature"),
        (OPENAI, r#""temperature":"hot""#, "temperature"),
        (OPENAI, r#""top_p":0"#, "top_p"),
        (OPENAI, r#""top_p":1.01"#, "top_p"),
        (OPENAI, r#""max_tokens":0"#, "max_tokens"),
        (OPENAI, r#""max_tokens":1.5"#, "max_tokens"),
        (OPENAI, r#""max_completion_tokens":-1"#, "max_completion_tokens"),
        (OPENAI, r#""presence_penalty":3"#, "presence_penalty"),
        (OPENAI, r#""frequency_penalty":-2.5"#, "frequency_penalty"),
        (OPENAI, r#""seed":"x""#, "seed"),
        (OPENAI, r#""stop":7"#, "stop"),
        (OPENAI, r#""stop":"""#, "stop"),
        (OPENAI, r#""stop":["a",""]"#, "stop[1]"),
        (ANTHROPIC, r#""temperature":1.1"#, "temperature"),
        (ANTHROPIC, r#""top_p":0"#, "top_p"),
        (ANTHROPIC, r#""top_k":-1"#, "top_k"),
        (ANTHROPIC, r#""max_tokens":0"#, "max_tokens"),
        (ANTHROPIC, r#""stop_sequences":"x""#, "stop_sequences"),
        (ANTHROPIC, r#""stop_sequences":[""]"#, "stop_sequences[0]"),
    ] {
        // What a provider takes it says itself.
        assert_refused(decode_chat(&decode_head(api, body(api, field).as_bytes()).unwrap()), param, field);
    }
    for api in [OPENAI, ANTHROPIC] {
        let local = |text: &str| decode_chat(&decode_head(api, text.as_bytes()).unwrap());
        assert_refused(local(r#"{"model":"m"}"#), "messages", "none");
        assert_refused(local(r#"{"model":"m","messages":[ ]}"#), "messages", "empty");
        assert_refused(local(r#"{"model":"m","messages":"hi"}"#), "messages", "a string");
    }
    let unbounded = decode_head(ANTHROPIC, br#"{"model":"m","messages":[{}]}"#).unwrap();
    assert_refused(decode_chat(&unbounded), "max_tokens", "required");
}

#[test]
fn what_a_local_model_would_ignore_is_refused() {
    let many = format!(r#""stop":[{}"x"]"#, r#""x","#.repeat(1000));
    let long = format!(r#""stop_sequences":["{}"]"#, "x".repeat(70_000));
    for (api, field, param) in [
        (OPENAI, r#""n":2"#, "n"),
        (OPENAI, r#""logprobs":true"#, "logprobs"),
        (OPENAI, r#""top_logprobs":2"#, "top_logprobs"),
        (OPENAI, r#""logit_bias":{"1":5}"#, "logit_bias"),
        (OPENAI, r#""prediction":{"type":"content","content":"x"}"#, "prediction"),
        (OPENAI, r#""audio":{"voice":"a"}"#, "audio"),
        (OPENAI, r#""modalities":["text","audio"]"#, "modalities"),
        (OPENAI, r#""response_format":{"type":"json_object"}"#, "response_format.type"),
        (OPENAI, r#""response_format":{"type":"json_schema","json_schema":{}}"#, "response_format"),
        (OPENAI, r#""tool_choice":"required""#, "tool_choice"),
        (OPENAI, r#""tool_choice":{"type":"function","function":{"name":"f"}}"#, "tool_choice"),
        (OPENAI, &many, "stop"),
        (ANTHROPIC, &long, "stop_sequences"),
        (OPENAI, r#""parallel_tool_calls":"no""#, "parallel_tool_calls"),
        (OPENAI, r#""continue_final_message":true"#, "continue_final_message"),
        (OPENAI, r#""continue_final_message":true,"add_generation_prompt":true"#, "add_generation_prompt"),
        (OPENAI, r#""tools":[{"type":"custom","custom":{"name":"f"}}]"#, "tools[0].type"),
        (OPENAI, r#""tools":[{"type":"function","function":{"name":"f","strict":"yes"}}]"#, "tools[0].function.strict"),
        (OPENAI, r#""tools":[{"type":"function","function":{}}]"#, "tools[0].function.name"),
        (OPENAI, r#""functions":[{"name":"f"}]"#, "functions"),
        (OPENAI, r#""function_call":"auto""#, "function_call"),
        (OPENAI, r#""store":true"#, "store"),
        (OPENAI, r#""service_tier":"flex""#, "service_tier"),
        (OPENAI, r#""verbosity":"high""#, "verbosity"),
        (OPENAI, r#""web_search_options":{}"#, "web_search_options"),
        (OPENAI, r#""reasoning_effort":"most""#, "reasoning_effort"),
        (OPENAI, r#""chat_template_kwargs":[]"#, "chat_template_kwargs"),
        (OPENAI, r#""stream_options":{}"#, "stream_options"),
        (
            OPENAI,
            r#""stream":true,"stream_options":{"include_obfuscation":true}"#,
            "stream_options.include_obfuscation",
        ),
        (OPENAI, r#""stream":true,"stream_options":{"x":1}"#, "stream_options.x"),
        (OPENAI, r#""top_k":-1"#, "top_k"),
        (OPENAI, r#""min_p":1.5"#, "min_p"),
        (OPENAI, r#""repetition_penalty":0"#, "repetition_penalty"),
        (OPENAI, r#""a_field_of_tomorrow":0"#, "a_field_of_tomorrow"),
        (ANTHROPIC, r#""tools":[{"type":"web_search_20250305","name":"web_search"}]"#, "tools[0].type"),
        (ANTHROPIC, r#""tools":[{"name":"f","input_schema":{},"strict":1}]"#, "tools[0].strict"),
        (ANTHROPIC, r#""tools":[{"name":"f"}]"#, "tools[0].input_schema"),
        (ANTHROPIC, r#""tool_choice":{"type":"any"}"#, "tool_choice.type"),
        (ANTHROPIC, r#""tool_choice":{"type":"tool","name":"f"}"#, "tool_choice.type"),
        (ANTHROPIC, r#""thinking":{"type":"maybe"}"#, "thinking.type"),
        (ANTHROPIC, r#""thinking":{"type":"enabled","budget_tokens":0}"#, "thinking.budget_tokens"),
        (ANTHROPIC, r#""service_tier":"priority""#, "service_tier"),
        (ANTHROPIC, r#""container":"c""#, "container"),
        (ANTHROPIC, r#""mcp_servers":[{}]"#, "mcp_servers"),
        (ANTHROPIC, r#""output_config":{"effort":"low"}"#, "output_config"),
        (ANTHROPIC, r#""system":[{"type":"image"}]"#, "system[0]"),
        (ANTHROPIC, r#""seed":7"#, "seed"),
    ] {
        // The same field is the provider's business on the way to a cloud.
        assert_refused(decode_chat(&request(api, field)), param, field);
    }
}

#[test]
fn what_changes_nothing_is_accepted() {
    for (api, fields) in [
        (OPENAI, r#""n":1,"logprobs":false,"top_logprobs":0,"logit_bias":{},"modalities":["text"],"audio":null"#),
        (OPENAI, r#""user":"u","metadata":{"a":"b"},"store":false,"service_tier":"auto","safety_identifier":"s""#),
        (OPENAI, r#""prompt_cache_key":"k","response_format":{"type":"text"},"parallel_tool_calls":false"#),
        (OPENAI, r#""tool_choice":"auto","verbosity":"medium","tools":[],"functions":null"#),
        (OPENAI, r#""stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}"#),
        (ANTHROPIC, r#""metadata":{"user_id":"u"},"service_tier":"auto","mcp_servers":[],"container":null"#),
        (ANTHROPIC, r#""tool_choice":{"type":"auto","disable_parallel_tool_use":true},"stream":false"#),
    ] {
        let chat = decode_chat(&request(api, fields)).unwrap();
        assert_eq!(chat.messages, [message(Role::User, "hi")], "{fields}");
    }
}

#[test]
fn options_act() {
    let fields =
        r#""top_k":5,"min_p":0.1,"repetition_penalty":1.2,"seed":3,"reasoning_effort":"none","tool_choice":"none""#;
    let chat = decode_chat(&request(OPENAI, fields)).unwrap();
    assert_eq!((chat.sampling.top_k, chat.sampling.min_p), (Some(5), Some(0.1)));
    assert_eq!((chat.sampling.repetition_penalty, chat.sampling.seed), (Some(1.2), Some(3)));
    assert_eq!((chat.reasoning, chat.tool_choice), (Reasoning::Off, ToolChoice::None));
    let chat = decode_chat(&request(OPENAI, r#""reasoning_effort":"low","chat_template_kwargs":{"a":[1]}"#)).unwrap();
    assert_eq!((chat.reasoning, &chat.template_arguments["a"]), (Reasoning::On, &json!([1])));
    for (kind, reasoning) in
        [("enabled", Reasoning::On), ("disabled", Reasoning::Off), ("adaptive", Reasoning::Default)]
    {
        let chat = decode_chat(&request(ANTHROPIC, &format!(r#""thinking":{{"type":"{kind}"}}"#))).unwrap();
        assert_eq!(chat.reasoning, reasoning);
    }
}

#[test]
fn calls_may_be_limited_to_one() {
    for (api, field, one) in [
        (OPENAI, r#""parallel_tool_calls":false"#, true),
        (OPENAI, r#""parallel_tool_calls":true"#, false),
        (ANTHROPIC, r#""tool_choice":{"type":"auto","disable_parallel_tool_use":true}"#, true),
        (ANTHROPIC, r#""tool_choice":{"type":"auto"}"#, false),
    ] {
        assert_eq!(decode_chat(&request(api, field)).unwrap().one_tool_call, one, "{field}");
    }
}

#[test]
fn strict_tools_and_many_stops_are_taken() {
    for strict in ["true", "false", "null"] {
        let field = format!(r#""tools":[{{"type":"function","function":{{"name":"f","strict":{strict}}}}}]"#);
        assert_eq!(decode_chat(&request(OPENAI, &field)).unwrap().tools[0].name, "f");
        let field = format!(r#""tools":[{{"name":"f","input_schema":{{}},"strict":{strict}}}]"#);
        assert_eq!(decode_chat(&request(ANTHROPIC, &field)).unwrap().tools[0].name, "f");
    }
    let many = format!(r#"[{}"x"]"#, r#""x","#.repeat(999));
    for (api, name) in [(OPENAI, "stop"), (ANTHROPIC, "stop_sequences")] {
        let chat = decode_chat(&request(api, &format!(r#""{name}":{many}"#))).unwrap();
        assert_eq!(chat.sampling.stop.len(), 1000);
    }
}

#[test]
fn a_given_answer_is_gone_on_with() {
    let ending = |api, fields: serde_json::Value| {
        let mut body = json!({"model": "m", "max_tokens": 9, "messages": [
            {"role": "user", "content": "Say."}, {"role": "assistant", "content": "The answer is"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        chat(api, &body).unwrap().ending
    };
    let continued = json!({"continue_final_message": true});
    assert_eq!(ending(OPENAI, continued), Ending::LastMessage);
    let both = json!({"continue_final_message": true, "add_generation_prompt": false});
    assert_eq!(ending(OPENAI, both), Ending::LastMessage);
    assert_eq!(ending(OPENAI, json!({"add_generation_prompt": true})), Ending::NewTurn);
    assert_eq!(ending(OPENAI, json!({"add_generation_prompt": false})), Ending::Nothing);
    assert_eq!(ending(ANTHROPIC, json!({})), Ending::LastMessage);
    assert_eq!(decode_chat(&request(ANTHROPIC, r#""top_k":1"#)).unwrap().ending, Ending::NewTurn);
    assert_eq!(decode_chat(&request(OPENAI, r#""continue_final_message":false"#)).unwrap().ending, Ending::NewTurn);
}

/// The same conversation in both dialects gives the same neutral one.
#[test]
fn a_conversation_with_tools_is_understood() {
    let call = ToolCall { id: "c1".to_owned(), name: "weather".to_owned(), arguments: r#"{"city":"Bern"}"#.to_owned() };
    let asked =
        Message { reasoning: Some("Hm.".to_owned()), tool_calls: vec![call], ..message(Role::Assistant, "I look.") };
    let result = Message { tool_call_id: Some("c1".to_owned()), ..message(Role::Tool, "sunny") };
    let conversation = [
        message(Role::System, "Be brief."),
        message(Role::User, "Weather?"),
        asked,
        result,
        message(Role::User, "So?"),
    ];
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let description = Some("Looks.".to_owned());
    let tools = [Tool { name: "weather".to_owned(), description, parameters: schema.to_string() }];

    let openai = json!({"model": "m", "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "refusal": null, "annotations": [],
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Bern\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": "So?"}
    ], "tools": [{"type": "function", "function": {"name": "weather", "description": "Looks.", "parameters": schema}}]});
    let anthropic = json!({"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
            {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}}]}
    ], "tools": [{"name": "weather", "description": "Looks.", "input_schema": schema}]});
    for (api, body) in [(OPENAI, openai), (ANTHROPIC, anthropic)] {
        let chat = chat(api, &body).unwrap();
        assert_eq!(chat.messages, conversation);
        assert_eq!(chat.tools, tools);
    }
}

#[test]
fn a_failed_tool_says_so() {
    for (content, said) in [(json!("no such city"), "Error: no such city"), (json!(null), "Error: the tool failed")] {
        let block = json!({"type": "tool_result", "tool_use_id": "c", "is_error": true, "content": content});
        let chat = with_message(ANTHROPIC, &json!({"role": "user", "content": [block]})).unwrap();
        assert_eq!(chat.messages[0].content, text(said));
    }
}

#[test]
fn messages_that_cant_be_honoured_are_refused_by_their_place() {
    let user = |part: serde_json::Value| json!({"role": "user", "content": [{"type": "text", "text": "a"}, part]});
    for (api, message, param) in [
        (OPENAI, user(json!({"type": "image_url", "image_url": {"url": "u"}})), "messages[0].content[1]"),
        (OPENAI, user(json!({"type": "input_audio", "input_audio": {}})), "messages[0].content[1]"),
        (OPENAI, user(json!({"type": "file", "file": {}})), "messages[0].content[1]"),
        (OPENAI, user(json!({"type": "dance"})), "messages[0].content[1].type"),
        (OPENAI, user(json!({"type": "text"})), "messages[0].content[1].text"),
        (OPENAI, json!({"role": "user"}), "messages[0].content"),
        (OPENAI, json!({"role": "user", "content": 7}), "messages[0].content"),
        (OPENAI, json!({"role": "king", "content": "x"}), "messages[0].role"),
        (OPENAI, json!({"role": "function", "content": "x"}), "messages[0].role"),
        (OPENAI, json!({"content": "x"}), "messages[0].role"),
        (OPENAI, json!({"role": "tool", "content": "x"}), "messages[0].tool_call_id"),
        (OPENAI, json!({"role": "user", "content": "x", "tool_calls": []}), "messages[0].tool_calls"),
        (OPENAI, json!({"role": "user", "content": "x", "mood": "bad"}), "messages[0].mood"),
        (
            OPENAI,
            json!({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (OPENAI, json!("hi"), "messages[0]"),
        (ANTHROPIC, user(json!({"type": "image", "source": {}})), "messages[0].content[1]"),
        (ANTHROPIC, user(json!({"type": "document", "source": {}})), "messages[0].content[1]"),
        (
            ANTHROPIC,
            user(json!({"type": "tool_use", "id": "c", "name": "f", "input": {}})),
            "messages[0].content[1].type",
        ),
        (
            ANTHROPIC,
            user(json!({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]})),
            "messages[0].content[1].content[0]",
        ),
        (ANTHROPIC, json!({"role": "system", "content": "x"}), "messages[0].role"),
        (ANTHROPIC, json!({"role": "user", "content": "x", "name": "n"}), "messages[0].name"),
        (
            ANTHROPIC,
            json!({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}),
            "messages[0].content[0]",
        ),
        (OPENAI, json!({"role": "assistant", "content": "The answer is"}), "messages"),
        (
            ANTHROPIC,
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}),
            "messages",
        ),
    ] {
        assert_refused(with_message(api, &message), param, &message.to_string());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for api in [OPENAI, ANTHROPIC] {
            prop_assert!(decode_head(api, &bytes).is_err());
        }
    }

    /// Any field with any small value: understood or refused, and an error always names a field that was sent or is due.
    #[test]
    fn no_fields_make_a_decoder_panic(
        name in "(messages|tools|tool_choice|system|thinking|stop|n|response_format|stream_options|stream|[a-z]{1,3})",
        value in "(null|true|-1|1|\"x\"|\\[\\]|\\{\\}|\\[\\{\"(role|type|content)\":(\"user\"|\"text\"|\\[1\\]|null)\\}\\]|\\{\"type\":\"auto\"\\})",
    ) {
        for api in [OPENAI, ANTHROPIC] {
            let field = format!("\"{name}\":{value}");
            if let Err(error) = decode_head(api, body(api, &field).as_bytes()).and_then(|head| decode_chat(&head)) {
                prop_assert_eq!(error.kind, ErrorKind::InvalidRequest);
                prop_assert!(error.param.is_some(), "{}", error);
            }
        }
    }
}

#[test]
fn numbers_of_tools_and_calls_are_not_rounded() {
    let schema = r#"{"maximum": 123456789012345678901234567890, "minimum": 1E5}"#;
    let openai = format!(
        r#"{{"model": "m", "messages": [{{"role": "user", "content": "q"}}], "tools": [{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}, {{"type": "function", "function": {{"name": "g"}}}}]}}"#
    );
    let anthropic = format!(
        r#"{{"model": "m", "max_tokens": 9, "tools": [{{"name": "f", "input_schema": {schema}}}], "messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": [{{"type": "text", "text": "t"}}, {{"type": "tool_use", "id": "1", "name": "f", "input": {schema}}}]}}, {{"role": "user", "content": [{{"type": "tool_result", "tool_use_id": "1", "content": "r"}}]}}]}}"#
    );
    let chat = |api, body: &str| decode_chat(&decode_head(api, body.as_bytes()).unwrap()).unwrap();
    let read = chat(OPENAI, &openai);
    assert_eq!(read.tools[0].parameters, schema);
    assert_eq!(read.tools[1].parameters, r#"{"type":"object","properties":{}}"#);
    let read = chat(ANTHROPIC, &anthropic);
    assert_eq!(
        (read.tools[0].parameters.as_str(), read.messages[1].tool_calls[0].arguments.as_str()),
        (schema, schema)
    );
}

#[test]
fn a_prompt_is_as_many_tokens_as_its_text_and_a_picture_as_pictures_are_taken_for() {
    let estimated = |content: serde_json::Value| {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": content }] });
        crate::estimate_prompt(&decode_head(OPENAI, body.to_string().as_bytes()).unwrap())
    };
    let words = "word ".repeat(40_000);
    assert!((50_000..50_020).contains(&estimated(json!(words))));
    let data = "QUJD".repeat(100_000);
    let picture = json!([{ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } }]);
    assert!((1_600..1_650).contains(&estimated(picture)));
    let sound = json!([{ "type": "input_audio", "input_audio": { "data": data, "format": "wav" } }]);
    assert!((1_600..1_650).contains(&estimated(sound)));
}
