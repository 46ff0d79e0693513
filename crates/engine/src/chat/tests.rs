use std::sync::LazyLock;

use mlx_manager_llm::{Content, Message, Role, Tool, ToolCall};
use serde_json::json;

use super::*;

static DEMO: LazyLock<ChatModel> = LazyLock::new(|| ChatModel::load(Path::new("../../assets/demo-model")).unwrap());

fn info(max_context: Option<u32>) -> ModelInfo {
    ModelInfo {
        name: "demo".into(),
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
pub(crate) fn conversation(case: &Json) -> Chat {
    let text = |value: &Json| value.as_str().map(str::to_owned);
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
            parameters: function["parameters"].to_string(),
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
    let golden: Json =
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
    assert_eq!(DEMO.end_ids(&ModelInfo { end_ids: vec![7], ..info(None) }), [2, 7]);
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
    let defaults = |text: &str| SamplingDefaults::of(&metadata::parse(text.as_bytes()).unwrap());
    let greedy = defaults(r#"{"do_sample": false, "temperature": 0.6}"#);
    let defaults =
        defaults(r#"{"do_sample": true, "temperature": "0.6", "top_k": 20.0, "top_p": 0.95, "min_p": "none"}"#);
    let wanted = Sampling { temperature: Some(0.2), top_k: Some(0), seed: Some(-1), ..Sampling::default() };
    let merged = defaults.merge(&wanted);
    assert_eq!((merged.temperature, merged.top_k, merged.top_p, merged.seed), (0.2, 0, 0.95, Some(u64::MAX)));
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
    tools.tools = vec![Tool { name: "f".into(), description: None, parameters: "{}".into() }];
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
    assert_eq!(prompt.parser.begins, Beginning::Reasoning);

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
        |arguments: Json| json!({"type": "function", "id": "1", "function": {"name": "f", "arguments": arguments}});
    let expected = json!({
        "role": "assistant", "content": "ab", "thinking": "r", "reasoning_content": "r",
        "tool_calls": [function(json!({"b": 1, "a": 2})), function(json!("{broken")), function(json!({}))],
        "tool_call_id": "9", "name": "n",
    });
    assert_eq!(serde_json::to_value(DEMO.forms.message(&full)).unwrap(), expected);
}

fn calls(content: Option<&str>) -> Chat {
    let call = json!([{"id": "1", "function": {"name": "look", "arguments": "{\"x\": 18446744073709551616}"}}]);
    conversation(&json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": content, "tool_calls": call},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ]}))
}

/// What templates do with a turn of calls, and what they get.
#[test]
fn a_turn_of_calls_comes_in_the_form_that_the_template_writes() {
    let by_none = "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}[call {{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}]{% elif m.role == 'assistant' %}[said {{ m.content }}]{% else %}[{{ m.role }} {{ m.content }}]{% endif %}{% endfor %}";
    let by_text = "{% for m in messages %}{% if '</think>' in m.content %}[thought]{% elif m.content | length > 0 %}[{{ m.role }} {{ m.content }}]{% endif %}{% if m.tool_calls %}[call {{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}]{% endif %}{% endfor %}";
    let added = "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '[call ' + c.function.name + ' ' + c.function.arguments + ']' }}{% endfor %}{% else %}[{{ m.role }} {{ m.content }}]{% endif %}{% endfor %}";
    let printed = "{% for m in messages %}[{% if m.tool_calls %}call {{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments }}{% else %}{{ m.role }} {{ m.content or '' }}{% endif %}]{% endfor %}";
    for source in [by_none, by_text, added, printed] {
        let (_folder, model) = model(source);
        let seen = model.render(&calls(None), Zoned::default()).unwrap();
        assert_eq!(seen, r#"[user q][call look {"x": 18446744073709551616}][tool r]"#, "{source}");
    }
    let (_folder, model) = model(by_text);
    let seen = model.render(&calls(Some("wait")), Zoned::default()).unwrap();
    assert_eq!(seen, r#"[user q][assistant wait][call look {"x": 18446744073709551616}][tool r]"#);
}

#[test]
fn content_comes_in_parts_where_the_template_reads_nothing_else() {
    let (_folder, model) = model(
        "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}<{{ part.text }}>{% endif %}{% endfor %}{% endfor %}",
    );
    assert_eq!(model.render(&said("Hi."), Zoned::default()).unwrap(), "<Hi.>");
}

#[test]
fn what_the_template_writes_behind_an_answer_ends_one() {
    let ends = |template: &str| model(template).1.end_ids(&info(None));
    let turns = |end: &str| {
        format!("{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}{end}\n{{% endfor %}}")
    };
    // Without tokenizer_config.json, and configs that name 0 and 2.
    assert_eq!(ends(&turns("<|im_end|>")), [0, 2]);
    let start = DEMO.tokenizer.special_at_start("<|im_start|>").unwrap();
    assert!(ends(&turns("")).contains(&start), "the next turn's beginning, where nothing else ends one");
    assert_eq!(ends(&turns(" and that's all")), [0, 2]);
}

#[test]
fn a_damaged_generation_config_counts_as_none() {
    let (folder, _) = model("{{ messages[0].content }}");
    for text in ["", "{", "[]", "\u{feff}{\"temperature\": NaN, \"top_k\": [1], \"eos_token_id\": {}}"] {
        fs::write(folder.path().join("generation_config.json"), text).unwrap();
        assert_eq!(ChatModel::load(folder.path()).unwrap().defaults, SamplingDefaults::default(), "{text}");
    }
}

/// A conversation that ends with the beginning of an answer.
fn begun(answer: &str) -> Chat {
    let messages = json!([{"role": "user", "content": "Give JSON."}, {"role": "assistant", "content": answer}]);
    Chat { ending: Ending::LastMessage, ..conversation(&json!({ "messages": messages })) }
}

#[test]
fn a_prompt_ends_as_it_is_asked_to() {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{# <think> #}";
    let (_folder, model) = model(template);
    let render = |chat: &Chat| model.render(chat, Zoned::default()).unwrap();
    let mut chat = begun("{\"name\": ");
    assert_eq!(render(&chat), "<user>Give JSON.</s><assistant>{\"name\": ");
    chat.ending = Ending::Nothing;
    assert_eq!(render(&chat), "<user>Give JSON.</s><assistant>{\"name\":</s>");
    chat.ending = Ending::NewTurn;
    assert_eq!(render(&chat), "<user>Give JSON.</s><assistant>{\"name\":</s><assistant>");
    let begins = |answer| model.prepare(&begun(answer), &info(None), Zoned::default()).unwrap().parser.begins;
    assert_eq!(begins("The answer"), Beginning::Answer);
    assert_eq!(begins("<think>\nI"), Beginning::Reasoning);
    assert_eq!(begins("<think>I see.</think>So"), Beginning::Answer);
    assert_eq!(begins(""), Beginning::Start);
}

#[test]
fn a_refusal_that_quotes_the_prompt_quotes_it_as_it_is_gone_on_with() {
    let quoting = "{% set all %}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% endset %}\
                   {{ raise_exception('[' ~ all ~ '] is no talk') }}";
    let (_folder, model) = model(quoting);
    let error = model.render(&begun("Yes, </s> it"), Zoned::default()).unwrap_err();
    assert!(error.message.ends_with("[<user>Give JSON.</s><assistant>Yes, </s> it] is no talk"), "{}", error.message);
}

#[test]
fn an_answer_that_the_template_hides_cant_be_gone_on_with() {
    let (_folder, model) = model("{{ messages[0].content }}");
    let error = model.render(&begun("The answer"), Zoned::default()).unwrap_err();
    assert_eq!((error.kind, error.param.as_deref()), (ErrorKind::InvalidRequest, Some("messages")));
}
