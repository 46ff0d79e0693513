//! Memory: what it is said to be for, who gets it, and what happens when there is none.

use super::*;

const OUT_OF_MEMORY: &str = "[malloc] Unable to allocate 123 bytes.";

/// What is said to be held is all that MLX holds, and hardly any of it has no name.
async fn check(engine: &Handle, when: &str) -> crate::thread::command::EngineStats {
    let stats = engine.stats().await.unwrap();
    let held = stats.held;
    let sum = held.weights + held.kv_live + held.prefix_cache + held.other;
    assert_eq!(sum, stats.active_memory, "{when}: {held:?}");
    assert_eq!(held.allocator_cache, stats.cache_memory, "{when}");
    assert!(held.other <= 256 << 10, "{when}: {held:?}");
    stats
}

#[tokio::test]
async fn what_is_held_adds_up_from_loading_to_unloading() {
    let engine = Handle::start(EngineSettings { prefix_cache: 64 << 20, ..settings() }).unwrap();
    let (info, golden) = loaded(&engine, "qwen3-f32-tied").await;
    assert_eq!(check(&engine, "loaded").await.held.weights, info.bytes);
    let mut running = engine.generate(greedy("qwen3-f32-tied", &golden.prompt_ids, 1_000_000));
    first_token(&mut running).await;
    assert!(check(&engine, "running").await.held.kv_live > 0);
    drop(running);
    let mut stats = check(&engine, "left").await;
    while stats.running > 0 {
        tokio::task::yield_now().await;
        stats = check(&engine, "leaving").await;
    }
    assert!(stats.held.kv_live == 0 && stats.held.prefix_cache > 0, "{:?}", stats.held);
    engine.unload("qwen3-f32-tied", "idle").await.unwrap();
    let held = check(&engine, "unloaded").await.held;
    assert_eq!((held.weights, held.kv_live, held.prefix_cache), (0, 0, 0));
}

#[tokio::test]
async fn without_memory_a_step_is_tried_once_more_and_then_fails_its_culprit_alone() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-f32-tied").await;
    let ask = |tokens| engine.generate(greedy("qwen3-f32-tied", &golden.prompt_ids, tokens));
    // Something to give back.
    drain(ask(64)).await;
    engine.fail_steps(vec![OUT_OF_MEMORY]);
    assert_eq!(drain(ask(64)).await.0, golden.greedy_ids, "it goes on as if nothing had been");
    engine.fail_steps(vec![OUT_OF_MEMORY, OUT_OF_MEMORY]);
    let (_, last) = drain(ask(64)).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::OutOfMemory))), "{last:?}");
    assert_eq!(drain(ask(64)).await.0, golden.greedy_ids, "the next one is served");
}

#[tokio::test]
async fn who_has_no_room_waits_for_others_and_who_never_fits_is_told_the_figures() {
    let name = "qwen3-f32-tied";
    let (folder, golden) = golden(name);
    let needs = load_now(folder.clone()).info;
    let prompt = golden.prompt_ids.len() as u64;
    let one = needs.needs.sequence(prompt + 2000) + needs.needs.step(prompt, prompt);
    // Room for one and a half, and what a step of a batch takes besides.
    let limit = needs.bytes + one + one / 2;
    let engine = Handle::start(EngineSettings { memory_limit: Some(limit), prefix_cache: 0, ..settings() }).unwrap();
    engine.load(name, folder).await.unwrap();
    let ask = |tokens| engine.generate(greedy(name, &golden.prompt_ids, tokens));
    let mut first = ask(2000);
    first_token(&mut first).await;
    let second = ask(2000);
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.running, stats.waiting), (1, 1), "it waits, and is not refused");
    let (tokens, last) = drain(ask(1_000_000)).await;
    let Some(GenerationEvent::Failed(error @ EngineError::TooLarge { .. })) = last else { panic!("{last:?}") };
    assert!(tokens.is_empty() && error.to_string().contains(&limit.to_string()), "{error}");
    drop(first);
    assert_eq!(drain(second).await.0.len(), 2000);
}
