use std::sync::LazyLock;

use mlx_manager_llm::Role;

use super::*;
use crate::model::Architecture;

static DEMO: LazyLock<ChatModel> = LazyLock::new(|| ChatModel::load(Path::new("../../assets/demo-model")).unwrap());

fn info(max_context: Option<u32>) -> ModelInfo {
    ModelInfo {
        name: "demo".into(),
        architecture: Architecture::Qwen3,
        max_context,
        vocabulary: 1536,
        end_ids: vec![2, 0],
        bytes: 0,
        form: crate::model::Form::Stored,
        needs: crate::model::Needs::default(),
        quantization: None,
        load_duration: std::time::Duration::ZERO,
    }
}

pub(crate) fn said(text: &str) -> Chat {
    conversation(&json!({"messages": [{"role": "user", "content": text}]}))
}

/// A golden conversation, as the API's dialect would have understood it.
pub(crate) fn conversation(case: &Value) -> Chat {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let messages = case["messages"].as_array().unwrap().iter().map(|message| {
        let role = [Role::System, Role::User, Role::Assistant, Role::Tool];
        let calls = message["tool_calls"].as_array().into_iter().flatten().enumerate().map(|(index, call)| {
            let function = call.get("function").unwrap_or(call);
            let arguments = text(&function["arguments"]).unwrap_or_else(|| function["arguments"].to_string());
            let id = text(&call["id"]).unwrap_or_else(|| format!("call_{index}"));
            ToolCall { id, name: text(&function["name"]).unwrap(), arguments }
        });
        Message {
            role: role.into_iter().find(|role| role.as_str() == message["role"]).unwrap(),
            content: text(&message["content"]).map(Content::Text).into_iter().collect(),
            reasoning: text(&message["reasoning_content"]),
            tool_calls: calls.collect(),
            tool_call_id: text(&message["tool_call_id"]).or((message["role"] == "tool").then(|| "call_0".to_owned())),
            name: text(&message["name"]),
        }
    });
    let tools = case["tools"].as_array().into_iter().flatten().map(|tool| {
        let function = &tool["function"];
        Tool {
            name: text(&function["name"]).unwrap(),
            description: text(&function["description"]),
            parameters: function["parameters"].clone(),
        }
    });
    let mut chat = Chat { messages: messages.collect(), tools: tools.collect(), ..Chat::default() };
    if let Some(thinking) = case.get("enable_thinking") {
        chat.template_arguments.insert("enable_thinking".to_owned(), thinking.clone());
    }
    chat
}

#[test]
fn conversations_are_rendered_as_transformers_does() {
    let golden: Value =
        serde_json::from_slice(&fs::read("../../tests/goldens/engine/demo/golden.json").unwrap()).unwrap();
    let conversations = golden["conversations"].as_array().unwrap();
    assert_eq!(conversations.len(), 12);
    for case in conversations {
        let chat = conversation(case);
        assert_eq!(DEMO.render(&chat, Zoned::default()).unwrap(), case["prompt"], "{}", case["name"]);
        let prompt = DEMO.prepare(&chat, &info(Some(2048)), Zoned::default()).unwrap();
        assert_eq!(json!(prompt.ids), case["prompt_ids"], "{}", case["name"]);
        let expected = golden["max_tokens"].as_u64().unwrap();
        assert!(u64::from(prompt.max_tokens) > expected, "the rest of the context");
    }
}

#[test]
fn the_end_ids_of_all_sources_count() {
    assert_eq!(DEMO.end_ids(&ModelInfo { end_ids: vec![7], ..info(None) }), [0, 2, 7]);
}

#[test]
fn a_prompt_must_leave_room() {
    let chat = said("What is the capital of France?");
    let length = DEMO.prepare(&chat, &info(Some(2048)), Zoned::default()).unwrap().ids.len() as u32;
    let error = DEMO.prepare(&chat, &info(Some(length)), Zoned::default()).unwrap_err();
    assert_eq!((error.kind, error.param.as_deref()), (ErrorKind::ContextLength, Some("messages")));
    assert!(error.message.contains(&format!("{length} tokens, but")), "{}", error.message);
    assert!(error.message.contains(&format!("context is {length}")), "{}", error.message);
    let prompt = DEMO.prepare(&chat, &info(Some(length + 1)), Zoned::default()).unwrap();
    assert_eq!(prompt.max_tokens, 1);

    let mut wanted = chat;
    wanted.sampling.max_tokens = Some(5);
    assert_eq!(DEMO.prepare(&wanted, &info(Some(2048)), Zoned::default()).unwrap().max_tokens, 5);
    assert_eq!(DEMO.prepare(&wanted, &info(Some(length + 2)), Zoned::default()).unwrap().max_tokens, 2);
}

#[test]
fn the_folder_decides_what_the_caller_leaves_open() {
    let prompt = DEMO.prepare(&said("Hi."), &info(None), Zoned::default()).unwrap();
    assert_eq!(prompt.sampling, SamplingParameters::GREEDY);
    let defaults: SamplingDefaults =
        serde_json::from_str(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#).unwrap();
    let wanted = Sampling { temperature: Some(0.2), top_k: Some(0), seed: Some(-1), ..Sampling::default() };
    let merged = defaults.merge(&wanted);
    assert_eq!((merged.temperature, merged.top_k, merged.top_p, merged.seed), (0.2, 0, 0.95, Some(u64::MAX)));
    let greedy: SamplingDefaults = serde_json::from_str(r#"{"do_sample": false, "temperature": 0.6}"#).unwrap();
    assert_eq!(greedy.merge(&Sampling::default()).temperature, 0.0);
    assert_eq!(greedy.merge(&wanted).temperature, 0.2);
    assert_eq!(SamplingDefaults::default().merge(&Sampling::default()).temperature, 1.0);
}

fn model(template: &str) -> (tempfile::TempDir, ChatModel) {
    let folder = tempfile::tempdir().unwrap();
    fs::copy("../../assets/demo-model/tokenizer.json", folder.path().join("tokenizer.json")).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = ChatModel::load(folder.path()).unwrap();
    (folder, model)
}

#[test]
fn what_a_template_cannot_do_is_refused() {
    let (_folder, plain) = model("{{ messages[0].content }}");
    let mut thinking = said("Hi.");
    thinking.reasoning = Reasoning::On;
    let mut quiet = said("Hi.");
    quiet.reasoning = Reasoning::Off;
    let mut tools = said("Hi.");
    tools.tools = vec![Tool { name: "f".into(), description: None, parameters: json!({}) }];
    let param = |model: &ChatModel, chat: &Chat| model.render(chat, Zoned::default()).map_err(|error| error.param);
    assert_eq!(param(&plain, &thinking), Err(Some("reasoning_effort".into())));
    assert_eq!(param(&plain, &quiet), Ok("Hi.".into()));
    assert_eq!(param(&plain, &tools), Err(Some("tools".into())));
    tools.tool_choice = ToolChoice::None;
    assert_eq!(param(&plain, &tools), Ok("Hi.".into()));

    let mut forged = said("Hi.");
    forged.template_arguments.insert("messages".into(), json!([]));
    assert_eq!(param(&plain, &forged), Err(Some("chat_template_kwargs.messages".into())));

    let (_folder, always) = model("{{ messages[0].content }}<think>");
    assert_eq!(param(&always, &quiet), Err(Some("reasoning_effort".into())));
    assert_eq!(param(&always, &thinking), Ok("Hi.<think>".into()));
    let prompt = always.prepare(&thinking, &info(None), Zoned::default()).unwrap();
    assert!(prompt.parser.begins_in_reasoning);

    let (_folder, refusing) = model("{{ raise_exception('Only one turn') }}");
    let error = refusing.render(&said("Hi."), Zoned::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert!(error.message.contains("Only one turn"));
}

#[test]
fn the_switch_reaches_the_template() {
    let mut chat = said("Hi.");
    chat.reasoning = Reasoning::On;
    assert!(DEMO.render(&chat, Zoned::default()).unwrap().ends_with("assistant\n"));
    chat.reasoning = Reasoning::Off;
    assert!(DEMO.render(&chat, Zoned::default()).unwrap().ends_with("</think>\n\n"));
}

#[test]
fn messages_carry_all_they_have() {
    let call = ToolCall { id: "1".into(), name: "f".into(), arguments: r#"{"b": 1, "a": 2}"#.into() };
    let full = Message {
        role: Role::Assistant,
        content: vec![Content::Text("a".into()), Content::Text("b".into())],
        reasoning: Some("r".into()),
        tool_calls: vec![
            call.clone(),
            ToolCall { arguments: "{broken".into(), ..call.clone() },
            ToolCall { arguments: String::new(), ..call },
        ],
        tool_call_id: Some("9".into()),
        name: Some("n".into()),
    };
    let function =
        |arguments: Value| json!({"type": "function", "id": "1", "function": {"name": "f", "arguments": arguments}});
    let expected = json!({
        "role": "assistant", "content": "ab", "reasoning_content": "r",
        "tool_calls": [function(json!({"b": 1, "a": 2})), function(json!("{broken")), function(json!({}))],
        "tool_call_id": "9", "name": "n",
    });
    assert_eq!(message(&full), expected);
}
