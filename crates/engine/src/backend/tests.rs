use std::{fs, path::Path, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use mlx_manager_catalogue::Place;
use mlx_manager_config::{KeepAlive, LocalModel, MemoryLimit, ModelPath, Unpack};
use mlx_manager_llm::{Event, FinishReason, ToolCall, Usage};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::Span;

use super::*;
use crate::chat::tests::{conversation, said};

/// Far longer than anything here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(root: &Path) -> LocalConfig {
    LocalConfig {
        models_dir: root.join("models"),
        hub_dir: None,
        cache_dir: root.join("cache"),
        default_model: None,
        memory_limit: MemoryLimit::Share(0.75),
        prefix_cache: 512 << 20,
        prefix_disk: 0,
        preload: Vec::new(),
        pin: Vec::new(),
        max_models: None,
        load_timeout: Duration::from_secs(300),
        unpack: Unpack::Auto,
        keep_alive: KeepAlive::Forever,
        max_batch: 4,
        queue: 256,
        queue_tokens: 1_000_000,
        priority: Default::default(),
        models: vec![
            LocalModel { name: "demo".into(), path: ModelPath::BuiltinDemo, keep_alive: None },
            LocalModel { name: "gone".into(), path: ModelPath::Folder(root.join("nowhere")), keep_alive: None },
        ],
    }
}

/// A copy of the demo model as a folder of the user's.
fn copy_demo(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for entry in fs::read_dir("../../assets/demo-model").unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
}

/// One that knows no end and has room for a very long answer.
fn copy_endless_demo(folder: &Path) {
    let change = |name: &str, change: fn(&mut Value)| {
        let path = folder.join(name);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    copy_demo(folder);
    change("config.json", |config| {
        config["max_position_embeddings"] = json!(10_000_000);
        config["eos_token_id"] = Value::Null;
    });
    change("generation_config.json", |config| config["eos_token_id"] = Value::Null);
    change("tokenizer_config.json", |config| config["eos_token"] = Value::Null);
    change("tokenizer.json", |tokenizer| {
        for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
            token["special"] = json!(false);
        }
    });
}

#[derive(Debug, Default)]
struct Heard {
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    usage: Usage,
    end: Option<(FinishReason, Option<String>)>,
    texts: usize,
}

fn ask(chat: Chat) -> Ask {
    Ask { chat, priority: Priority::Normal, queue_patience: None }
}

async fn hear(engine: &Engine, model: &str, chat: Chat) -> Result<Heard, Error> {
    let mut events = timeout(PATIENCE, engine.answer(model, ask(chat), &Span::none())).await.unwrap()?.events;
    let mut heard = Heard::default();
    let mut first = true;
    while let Some(event) = timeout(PATIENCE, events.next()).await.unwrap() {
        let event = event?;
        assert_eq!(std::mem::take(&mut first), matches!(event, Event::Started { .. }), "Started comes first");
        assert!(heard.end.is_none(), "{event:?} after the end");
        match event {
            Event::Started { usage, .. } | Event::Usage(usage) => heard.usage.update(usage),
            Event::Text(text) => {
                heard.text.push_str(&text);
                heard.texts += 1;
            }
            Event::Reasoning(text) => heard.reasoning.push_str(&text),
            Event::ToolCall(call) => assert!(call.add_to(&mut heard.calls)),
            Event::ToolCallDropped(_) => panic!("{heard:?}"),
            Event::Finished { reason, stop_sequence } => heard.end = Some((reason, stop_sequence)),
            Event::LateHeader(..) | Event::Queued(_) | Event::ReportedUsage(_) | Event::Raw { .. } => {}
        }
    }
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_answers_as_it_should() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let engine = Engine::start(&config(root.path()), &tasks);
    let answers: Vec<Value> =
        serde_json::from_slice(&fs::read("../../tests/goldens/engine/demo/answers.json").unwrap()).unwrap();
    assert_eq!(answers.len(), 24);
    for answer in &answers {
        let heard = hear(&engine, "demo", conversation(answer)).await.unwrap();
        let expected = &answer["expected"];
        assert_eq!(heard.text, expected["content"], "{answer}");
        assert_eq!(heard.reasoning, expected.get("reasoning").and_then(Value::as_str).unwrap_or_default(), "{answer}");
        let calls = heard.calls.iter().map(|call| {
            assert!(call.id.starts_with("call_"));
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            json!({"name": call.name, "arguments": arguments})
        });
        assert_eq!(calls.collect::<Value>(), *expected.get("tool_calls").unwrap_or(&json!([])), "{answer}");
        let reason = if heard.calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
        assert_eq!(heard.end, Some((reason, None)));
        assert!(heard.texts == 0 || heard.texts > 1 || heard.text.len() < 12, "the text is streamed: {heard:?}");
        assert_eq!(heard.usage.reasoning == Some(0), heard.reasoning.is_empty(), "{heard:?}");
        assert!(heard.usage.reasoning < heard.usage.output);
    }
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_says_what_the_reference_says() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let engine = Engine::start(&config(root.path()), &tasks);
    let golden: Value =
        serde_json::from_slice(&fs::read("../../tests/goldens/engine/demo/golden.json").unwrap()).unwrap();
    let mut compared = 0;
    for case in golden["conversations"].as_array().unwrap() {
        // What the parsers make of the text is compared above; here it is the text as it is.
        let text = case["greedy_text"].as_str().unwrap();
        if text.contains("</think>") || text.contains("<tool_call>\n{") {
            continue;
        }
        let mut chat = conversation(case);
        chat.sampling.max_tokens = golden["max_tokens"].as_u64().map(|tokens| tokens as u32);
        let heard = hear(&engine, "demo", chat).await.unwrap();
        assert_eq!(heard.text, text, "{}", case["name"]);
        compared += 1;
        let ids = |key: &str| case[key].as_array().unwrap().len() as u64;
        assert_eq!(heard.usage.input, Some(ids("prompt_ids")));
        assert_eq!(heard.usage.output, Some(ids("greedy_ids") + 1), "the stop token was generated too");
    }
    assert_eq!(compared, 9);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_and_limits_act() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let engine = Engine::start(&config(root.path()), &tasks);
    let mut chat = said("What is 13 + 13?");
    chat.sampling.stop = vec!["= 2".into()];
    let heard = hear(&engine, "demo", chat).await.unwrap();
    assert_eq!((heard.text.as_str(), heard.end), ("13 + 13 ", Some((FinishReason::Stop, Some("= 2".into())))));

    let mut chat = said("What is 13 + 13?");
    chat.sampling.max_tokens = Some(3);
    let heard = hear(&engine, "demo", chat).await.unwrap();
    assert_eq!(heard.end, Some((FinishReason::Length, None)));
    assert_eq!(heard.usage.output, Some(3));
    assert!("13 + 13 = 26.".starts_with(&heard.text) && !heard.text.is_empty(), "{heard:?}");

    let error = hear(&engine, "demo", said(&"very long ".repeat(2048))).await.unwrap_err();
    assert_eq!((error.kind, error.param.as_deref()), (ErrorKind::ContextLength, Some("messages")));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_stream_ends_the_work() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    // An answer that ended by itself would prove nothing.
    copy_endless_demo(&root.path().join("models/endless"));
    let engine = Engine::start(&config(root.path()), &tasks);
    let chat = said("Tell me a story about a fox.");
    let mut events = engine.answer("endless", ask(chat), &Span::none()).await.unwrap().events;
    let pool = Arc::clone(engine.inner.pool.as_ref().unwrap());
    while !matches!(timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap(), Event::Text(_)) {}
    drop(events);
    let gone = async {
        while pool.thread.stats().await.unwrap().running > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    assert!(pool.is_idle("endless"));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_requests_that_come_together_load_once() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let engine = Engine::start(&config(root.path()), &tasks);
    let pool = engine.inner.pool.as_ref().unwrap();
    let lease = || pool.lease("demo", Place::BuiltinDemo);
    let (a, b, c) = tokio::join!(lease(), lease(), lease());
    let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
    assert!(Arc::ptr_eq(&a.info, &b.info) && Arc::ptr_eq(&b.info, &c.info));
    assert!(std::ptr::eq(&a.chat, &b.chat) && std::ptr::eq(&b.chat, &c.chat));
    assert_eq!(pool.thread.stats().await.unwrap().models.len(), 1);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_model_is_said() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    for name in ["no-weights", "no-tokenizer", "no-template", "cut", "other"] {
        copy_demo(&root.path().join("models").join(name));
    }
    let models = root.path().join("models");
    fs::remove_file(models.join("no-weights/model.safetensors")).unwrap();
    fs::remove_file(models.join("no-tokenizer/tokenizer.json")).unwrap();
    let weights = fs::read(models.join("cut/model.safetensors")).unwrap();
    fs::write(models.join("cut/model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    fs::remove_file(models.join("no-template/chat_template.jinja")).unwrap();
    fs::write(models.join("other/config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    // Folders that hold hardly anything: what is wrong with the config is said, not what else is missing.
    for (name, config) in [("nothing", "{}"), ("foreign", r#"{"model_type": "gpt2"}"#), ("no-json", "model")] {
        fs::create_dir(models.join(name)).unwrap();
        fs::write(models.join(name).join("config.json"), config).unwrap();
        fs::write(models.join(name).join("model.safetensors"), "junk").unwrap();
    }
    fs::create_dir(models.join("junk")).unwrap();
    fs::copy("../../assets/demo-model/config.json", models.join("junk/config.json")).unwrap();
    fs::write(models.join("junk/model.safetensors"), "junk").unwrap();
    let engine = Engine::start(&config(root.path()), &tasks);
    for (model, kind, words) in [
        ("never-heard-of", ErrorKind::ModelNotFound, "never-heard-of"),
        ("gone", ErrorKind::ModelNotFound, "nowhere"),
        ("no-weights", ErrorKind::Unavailable, "safetensors"),
        ("no-tokenizer", ErrorKind::Unavailable, "tokenizer.json"),
        ("no-template", ErrorKind::Unavailable, "no chat template"),
        ("cut", ErrorKind::Unavailable, "model.safetensors is damaged"),
        ("other", ErrorKind::Unavailable, "mamba"),
        ("nothing", ErrorKind::Unavailable, "`model_type` is missing; supported are llama, mistral, qwen2, qwen3"),
        ("foreign", ErrorKind::Unavailable, "\"gpt2\" is not supported; supported are llama, mistral, qwen2, qwen3"),
        ("no-json", ErrorKind::Unavailable, "config.json is not valid"),
        ("junk", ErrorKind::Unavailable, "model.safetensors is damaged"),
    ] {
        let error = hear(&engine, model, said("Hi.")).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words) && error.message.contains(&format!("{model:?}")), "{error}");
        assert!(!error.message.contains(root.path().to_str().unwrap()), "a path of the server's: {error}");
        assert_eq!(error.param.as_deref(), Some("model"));
    }
    // The engine lives, and a repaired folder is taken without a restart.
    fs::write(models.join("cut/model.safetensors"), &weights).unwrap();
    assert_eq!(hear(&engine, "cut", said("What is 13 + 13?")).await.unwrap().text, "13 + 13 = 26.");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_make_room_for_each_other_but_not_while_in_use() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    copy_demo(&root.path().join("models/second"));
    // Room for one of them, and for a short answer.
    let short = || {
        let mut chat = said("Hi.");
        chat.sampling.max_tokens = Some(8);
        chat
    };
    let config = LocalConfig { memory_limit: MemoryLimit::Bytes(2_500_000), ..config(root.path()) };
    let engine = Engine::start(&config, &tasks);
    let pool = Arc::clone(engine.inner.pool.as_ref().unwrap());
    let names = || pool.names();

    let lease = pool.lease("demo", Place::BuiltinDemo).await.unwrap();
    // It waits as long as the other is in use, while that one answers; who gives up leaves no trace.
    let place = || Place::Folder(root.path().join("models/second"));
    let mut second = Box::pin(pool.lease("second", place()));
    let mut third = Box::pin(pool.lease("second", place()));
    for _ in 0..3 {
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        hear(&engine, "demo", short()).await.unwrap();
    }
    drop(second);
    assert_eq!(names(), ["demo"]);
    drop(lease);
    drop(timeout(PATIENCE, third).await.unwrap().unwrap());
    assert_eq!(names(), ["second"]);
    engine.shutdown().await;

    // Not for ever.
    let config = LocalConfig { load_timeout: Duration::from_millis(50), ..config };
    let engine = Engine::start(&config, &tasks);
    let pool = Arc::clone(engine.inner.pool.as_ref().unwrap());
    let lease = pool.lease("demo", Place::BuiltinDemo).await.unwrap();
    let error = hear(&engine, "second", short()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(error.message.contains("local.load_timeout"), "{error}");
    drop(lease);
    hear(&engine, "second", short()).await.unwrap();
    engine.shutdown().await;

    // What is pinned stays, so that another never fits.
    let config = LocalConfig { pin: vec!["demo".into()], preload: vec!["demo".into()], ..config };
    let engine = Engine::start(&config, &tasks);
    hear(&engine, "demo", short()).await.unwrap();
    let error = hear(&engine, "second", short()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("local.pin"), "{error}");
    engine.shutdown().await;

    // By number, where there is memory enough.
    let config = LocalConfig {
        pin: Vec::new(),
        preload: Vec::new(),
        max_models: Some(1),
        memory_limit: MemoryLimit::Share(0.75),
        ..config
    };
    let engine = Engine::start(&config, &tasks);
    for model in ["demo", "second"] {
        hear(&engine, model, short()).await.unwrap();
        assert_eq!(engine.inner.pool.as_ref().unwrap().names(), [model]);
    }
    engine.shutdown().await;

    let config = LocalConfig { memory_limit: MemoryLimit::Bytes(1_000_000), ..config };
    let engine = Engine::start(&config, &tasks);
    let error = hear(&engine, "demo", short()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("local.memory_limit"), "{error}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_model_is_given_back_and_comes_again() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let keep_alive = KeepAlive::For(Duration::from_millis(50));
    let config = LocalConfig { keep_alive, default_model: Some("demo".into()), ..config(root.path()) };
    let engine = Engine::start(&config, &tasks);
    let pool = Arc::clone(engine.inner.pool.as_ref().unwrap());
    for _ in 0..2 {
        hear(&engine, "demo", said("Hi.")).await.unwrap();
        let unloaded = async {
            while !pool.thread.stats().await.unwrap().models.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, unloaded).await.unwrap();
    }
    engine.shutdown().await;
    tasks.close();
    timeout(PATIENCE, tasks.wait()).await.expect("no task is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_model_stays_as_long_as_its_own_key_says() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let mut config = LocalConfig { preload: vec!["demo".into(), "second".into()], ..config(root.path()) };
    copy_demo(&root.path().join("models/second"));
    config.models[0].keep_alive = Some(KeepAlive::For(Duration::ZERO));
    let engine = Engine::start(&config, &tasks);
    let pool = Arc::clone(engine.inner.pool.as_ref().unwrap());
    // As soon as nobody uses it: once it is preloaded, and after each request.
    for _ in 0..2 {
        let only_the_other = async {
            while pool.names() != ["second"] {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, only_the_other).await.unwrap();
        hear(&engine, "demo", said("Hi.")).await.unwrap();
    }
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_for_the_default_model() {
    let root = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let config = LocalConfig { default_model: Some("demo".into()), ..config(root.path()) };
    let engine = Engine::start(&config, &tasks);
    assert!(!engine.ready());
    let ready = async {
        while !engine.ready() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap();
    assert!(engine.inner.pool.as_ref().unwrap().has_any());
    assert_eq!(engine.models().into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["demo"]);
    assert!(engine.has("demo") && !engine.has("other"));
    engine.shutdown().await;
}
