//! Replays what the reference implementation computed, through the whole thread, and puts the thread under stress.

mod disk;
mod prompts;
mod room;
mod shared;
mod weights;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, mpsc},
    time::Duration,
};

use mlx_manager_llm::{FinishReason, Priority};
use mlx_manager_signal::{route::Kind, span, testing::lines_of};
use serde::Deserialize;
use tokio::{
    sync::{mpsc::UnboundedReceiver, mpsc::unbounded_channel, oneshot},
    time::Instant,
};

use super::{
    EngineSettings, Handle,
    command::{Command, Generate, GenerationEvent, Outbox, Submission, Work},
    step::Core,
};
use crate::{
    error::EngineError,
    mlx::{self, Precision},
    model::{LoadError, Loader, Model, ModelInfo, Progress, Segment, Source},
    sample::SamplingParameters,
};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/engine");

/// Far longer than anything here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Golden {
    prompt_ids: Vec<u32>,
    last_logits: Vec<f32>,
    greedy_ids: Vec<u32>,
}

/// Every case by its folder's name.
fn goldens() -> BTreeMap<String, (PathBuf, Golden)> {
    let entries = fs::read_dir(GOLDENS).expect("the goldens are part of the repository");
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").exists());
    let read = |folder: PathBuf| {
        let golden = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
        (folder.file_name().unwrap().to_string_lossy().into_owned(), (folder, golden))
    };
    let goldens: BTreeMap<_, _> = folders.map(read).collect();
    assert!(goldens.len() >= 14, "only {} goldens are there", goldens.len());
    goldens
}

fn golden(name: &str) -> (PathBuf, Golden) {
    goldens().remove(name).unwrap_or_else(|| panic!("there is no golden {name}"))
}

fn settings() -> EngineSettings {
    EngineSettings { precision: Some(Precision::Float32), ..EngineSettings::default() }
}

/// The way to a thread that isn't there.
fn nobody() -> mpsc::Sender<Command> {
    mpsc::channel().0
}

fn greedy(model: &str, prompt: &[u32], max_tokens: u32) -> Generate {
    Generate {
        model: model.to_owned(),
        prompt: prompt.to_vec(),
        sampling: SamplingParameters::GREEDY,
        max_tokens,
        open_ended: false,
        stop_ids: Vec::new(),
        priority: Priority::Normal,
        span: tracing::Span::none(),
    }
}

/// A thread's core without the thread, with one model, which is `m`.
fn core_with(settings: &EngineSettings, folder: PathBuf) -> Core {
    let mut core = Core::new(settings, Default::default(), nobody());
    core.obey(Work::Load { name: "m".into(), source: folder.into(), reply: oneshot::channel().0 });
    while !core.is_idle() {
        core.step();
    }
    core
}

fn submit(core: &mut Core, prompt: &[u32], max_tokens: u32) -> UnboundedReceiver<GenerationEvent> {
    let (events, receiver) = unbounded_channel();
    let (request, events) = (greedy("m", prompt, max_tokens), Outbox::new(events));
    let (submitted, queue_span) = (Instant::now(), tracing::Span::none());
    core.obey(Work::Generate(Box::new(Submission { request, events, submitted, queue_span })));
    receiver
}

/// What a sequence came to: its tokens and its last event.
async fn drain(mut events: UnboundedReceiver<GenerationEvent>) -> (Vec<u32>, Option<GenerationEvent>) {
    let mut tokens = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            GenerationEvent::Token(id) => tokens.push(id),
            GenerationEvent::Accepted | GenerationEvent::Started { .. } => {}
            last => return (tokens, Some(last)),
        }
    }
    (tokens, None)
}

async fn first_token(events: &mut UnboundedReceiver<GenerationEvent>) {
    loop {
        match events.recv().await {
            Some(GenerationEvent::Token(_)) => return,
            Some(GenerationEvent::Failed(error)) => panic!("{error}"),
            Some(_) => {}
            None => panic!("the engine dropped the sequence"),
        }
    }
}

async fn loaded(engine: &Handle, name: &str) -> (Arc<ModelInfo>, Golden) {
    let (folder, golden) = golden(name);
    (engine.load(name, folder).await.unwrap(), golden)
}

fn load_now(source: impl Into<Source>) -> Box<Model> {
    let mut loader = Loader::new("golden".to_owned(), source, Precision::Float32);
    loop {
        if let Progress::Done(model) = loader.step().unwrap() {
            return model;
        }
    }
}

fn last_logits(model: &Model, prompt: &[u32]) -> Vec<f32> {
    let mut store = model.decoder.new_store();
    store.join(0, None, 0);
    let (last, before) = prompt.split_last().unwrap();
    let mut forward = |tokens: &[u32], logits| {
        let segment = Segment { sequence: 0, tokens: tokens.len() as i32, logits };
        let mut layout = store.arrange(&[segment]).unwrap();
        model.decoder.forward(&mlx::ids(tokens).unwrap(), &mut layout, &mut store).unwrap()
    };
    if !before.is_empty() {
        forward(before, false);
    }
    forward(&[*last], true).unwrap().to_vec_exact::<f32>().unwrap()
}

#[test]
fn logits_are_those_of_the_reference() {
    for (name, (folder, golden)) in goldens() {
        let model = load_now(folder);
        let logits = last_logits(&model, &golden.prompt_ids);
        assert_eq!(logits.len(), golden.last_logits.len(), "{name}");
        let largest = golden.last_logits.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let difference = logits.iter().zip(&golden.last_logits).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(difference <= 1e-3 * largest, "{name}: {difference} of {largest}");
        eprintln!("{name}: {:.1e} of the largest logit", difference / largest);
    }
}

#[tokio::test]
async fn greedy_answers_are_those_of_the_reference() {
    for prefill_chunk in [2048, 7] {
        let engine = Handle::start(EngineSettings { prefill_chunk, ..settings() }).unwrap();
        for (name, (folder, golden)) in goldens() {
            engine.load(&name, folder).await.unwrap();
            let (tokens, last) = drain(engine.generate(greedy(&name, &golden.prompt_ids, 64))).await;
            assert_eq!(tokens, golden.greedy_ids, "{name} in chunks of {prefill_chunk}");
            assert!(matches!(last, Some(GenerationEvent::Finished { reason: FinishReason::Length, tokens: 64, .. })));
        }
    }
}

#[tokio::test]
async fn sequences_together_get_what_they_get_alone() {
    let engine = Handle::start(EngineSettings { max_batch: 3, prefill_chunk: 50, ..settings() }).unwrap();
    let mut expected = Vec::new();
    let mut open = Vec::new();
    for (name, (folder, golden)) in goldens() {
        engine.load(&name, folder).await.unwrap();
        open.push(engine.generate(greedy(&name, &golden.prompt_ids, 64)));
        expected.push((name, golden.greedy_ids));
    }
    for ((name, expected), events) in expected.into_iter().zip(open) {
        assert_eq!(drain(events).await.0, expected, "{name}");
    }
}

#[tokio::test]
async fn an_answer_ends_before_a_stop_token_and_counts_it() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-f32-tied").await;
    let stop = golden.greedy_ids[20];
    let position = golden.greedy_ids.iter().position(|id| *id == stop).unwrap();
    let request = Generate { stop_ids: vec![9999, stop], ..greedy("qwen3-f32-tied", &golden.prompt_ids, 64) };
    let (tokens, last) = drain(engine.generate(request)).await;
    assert_eq!(tokens, golden.greedy_ids[..position]);
    let Some(GenerationEvent::Finished { reason, tokens, stop_id }) = last else { panic!("{last:?}") };
    assert_eq!((reason, tokens, stop_id), (FinishReason::Stop, position as u64 + 1, Some(stop)));
}

#[tokio::test]
async fn a_seed_gives_the_same_answer_whoever_else_asks() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "llama-q4-llama3-tied").await;
    let sampled = |seed| {
        let sampling = SamplingParameters {
            temperature: 1.5,
            top_p: 0.95,
            top_k: 40,
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            seed,
            ..SamplingParameters::GREEDY
        };
        engine.generate(Generate { sampling, ..greedy("llama-q4-llama3-tied", &golden.prompt_ids, 48) })
    };
    let alone = drain(sampled(Some(11))).await.0;
    let crowd: Vec<_> = [Some(11), None, Some(12), Some(11)].into_iter().map(sampled).collect();
    let mut together = Vec::new();
    for events in crowd {
        together.push(drain(events).await.0);
    }
    assert_eq!(alone.len(), 48);
    assert_eq!((&together[0], &together[3]), (&alone, &alone));
    assert_ne!(together[1], alone);
    assert_ne!(together[2], alone);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let engine = Handle::start(EngineSettings { max_batch: 1, prefix_cache: 0, ..settings() }).unwrap();
    let (_, golden) = loaded(&engine, "qwen2-f32-tied").await;
    let endless = || engine.generate(greedy("qwen2-f32-tied", &golden.prompt_ids, 1_000_000));
    let mut running = endless();
    first_token(&mut running).await;
    let gone_while_waiting = endless();
    let mut waiting = endless();
    drop(gone_while_waiting);
    drop(running);
    tokio::time::timeout(PATIENCE, first_token(&mut waiting)).await.expect("the place is free");
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.running, stats.waiting), (1, 0));
    assert!(stats.models[0].1 > 0, "the running sequence has a cache");
    drop(waiting);
    let (tokens, _) = drain(engine.generate(greedy("qwen2-f32-tied", &golden.prompt_ids, 64))).await;
    assert_eq!(tokens, golden.greedy_ids);
    assert_eq!(engine.stats().await.unwrap().models[0].1, 0);
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let engine = Handle::start(EngineSettings { max_batch: 1, queue_limit: 1, ..settings() }).unwrap();
    let (_, golden) = loaded(&engine, "qwen2-f32-tied").await;
    let endless = || engine.generate(greedy("qwen2-f32-tied", &golden.prompt_ids, 1_000_000));
    let mut running = endless();
    first_token(&mut running).await;
    let _waiting = endless();
    let (_, refused) = drain(endless()).await;
    assert!(
        matches!(refused, Some(GenerationEvent::Failed(EngineError::Overloaded { waiting: 1, .. }))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_panic_ends_what_was_open_and_the_next_request_is_served() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
    let mut running = engine.generate(greedy("qwen3-q4-tied", &golden.prompt_ids, 1_000_000));
    first_token(&mut running).await;
    engine.make_it_panic();
    let (_, last) = drain(running).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::Panicked))), "{last:?}");
    let (tokens, _) = drain(engine.generate(greedy("qwen3-q4-tied", &golden.prompt_ids, 64))).await;
    assert_eq!(tokens, golden.greedy_ids);
}

#[tokio::test]
async fn a_broken_folder_is_refused_and_the_engine_goes_on() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-f32-tied").await;
    let mut running = engine.generate(greedy("qwen3-f32-tied", &golden.prompt_ids, 1_000_000));
    first_token(&mut running).await;
    let empty = tempfile::tempdir().unwrap();
    let error = engine.load("broken", empty.path().to_owned()).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Load { source, .. } if matches!(**source, LoadError::Read { .. })),
        "{error}"
    );
    first_token(&mut running).await;
    let (_, last) = drain(engine.generate(greedy("broken", &[1], 1))).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::NotLoaded { .. }))), "{last:?}");
}

#[tokio::test]
async fn a_model_loads_once_and_is_not_unloaded_in_use() {
    let engine = Handle::start(settings()).unwrap();
    let (folder, golden) = golden("mistral-q4-bf16");
    let (first, second) = tokio::join!(engine.load("m", folder.clone()), engine.load("m", folder));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.name, "m");
    assert_eq!(first.vocabulary, 256);
    assert!(first.bytes > 0 && first.quantization.is_some());
    let mut running = engine.generate(greedy("m", &golden.prompt_ids, 1_000_000));
    first_token(&mut running).await;
    assert!(matches!(engine.unload("m", "idle").await, Err(EngineError::InUse { .. })));
    drop(running);
    while engine.unload("m", "idle").await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(matches!(engine.unload("m", "idle").await, Err(EngineError::NotLoaded { .. })));
}

#[tokio::test]
async fn a_shut_down_engine_says_so() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-f32-tied").await;
    let mut running = engine.generate(greedy("qwen3-f32-tied", &golden.prompt_ids, 1_000_000));
    first_token(&mut running).await;
    engine.shutdown().await;
    let (_, last) = drain(running).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::Stopped))), "{last:?}");
    let (_, last) = drain(engine.generate(greedy("qwen3-f32-tied", &golden.prompt_ids, 1))).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::Stopped))), "{last:?}");
}

#[test]
fn where_a_broken_model_is_stands_in_the_log_and_not_in_the_error() {
    let root = tempfile::tempdir().unwrap();
    let (reply, answer) = oneshot::channel();
    let lines = lines_of(|| {
        let settings = EngineSettings { max_batch: 1, queue_limit: 1, ..settings() };
        let mut core = Core::new(&settings, Default::default(), nobody());
        core.obey(Work::Load { name: "m".into(), source: root.path().to_owned().into(), reply });
        while !core.is_idle() {
            core.step();
        }
    });
    let error = answer.blocking_recv().unwrap().unwrap_err().to_string();
    let folder = root.path().to_str().unwrap();
    assert!(error.contains("config.json") && !error.contains(folder), "{error}");
    let line = lines.iter().find(|line| line.fields["message"] == "model failed to load").unwrap();
    assert_eq!(line.fields["folder"], folder, "{line:?}");
}

#[test]
fn what_the_thread_says_of_a_request_names_it() {
    let (folder, golden) = golden("qwen3-f32-tied");
    let lines = lines_of(|| {
        let settings = EngineSettings { max_batch: 1, queue_limit: 1, ..settings() };
        let mut core = Core::new(&settings, Default::default(), nobody());
        core.obey(Work::Load { name: "m".into(), source: folder.into(), reply: oneshot::channel().0 });
        let span = span::http_server(Kind::Inference, "POST", Some("/v1/chat/completions"), None, "req-7");
        let request = Generate { span: span.clone(), ..greedy("m", &golden.prompt_ids, 3) };
        let (events, _kept) = unbounded_channel();
        let queue_span = span::queue(&span, request.priority);
        let submission = Submission { request, events: Outbox::new(events), submitted: Instant::now(), queue_span };
        core.obey(Work::Generate(Box::new(submission)));
        while !core.is_idle() {
            core.step();
        }
    });
    for message in ["turn has come", "prompt computed", "answer generated"] {
        let line = lines
            .iter()
            .find(|line| line.fields["message"] == message)
            .unwrap_or_else(|| panic!("{message}: {lines:?}"));
        // By the spans around it a line gets the request's id and the trace's.
        assert_eq!(line.context.get("request_id").map(String::as_str), Some(r#""req-7""#), "{line:?}");
    }
}
