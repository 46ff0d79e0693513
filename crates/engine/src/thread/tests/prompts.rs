//! The prefix cache: answers are the same with and without, and nothing is kept that must not be.

use super::*;
use crate::cache::{PrefixLookup, Reason};

/// Tokens of each answer, few enough for all cases of all models.
const TOKENS: u32 = 16;

/// An answer, and how many tokens of its prompt came from the cache.
async fn answered(mut events: UnboundedReceiver<GenerationEvent>) -> (Vec<u32>, usize) {
    let (mut tokens, mut from_cache) = (Vec::new(), None);
    while let Some(event) = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap() {
        match event {
            GenerationEvent::Started { lookup, .. } => from_cache = Some(lookup.restored),
            GenerationEvent::Token(id) => tokens.push(id),
            GenerationEvent::Failed(error) => panic!("{error}"),
            GenerationEvent::Accepted | GenerationEvent::Finished { .. } => {}
        }
    }
    (tokens, from_cache.expect("it started"))
}

async fn ask(engine: &Handle, model: &str, prompt: &[u32]) -> (Vec<u32>, usize) {
    answered(engine.generate(greedy(model, prompt, TOKENS))).await
}

async fn kept_bytes(engine: &Handle) -> u64 {
    engine.stats().await.unwrap().models.iter().map(|(_, bytes)| bytes).sum()
}

/// The golden's prompt, made longer where it is too short to be found.
pub(super) fn long_enough(prompt: &[u32]) -> Vec<u32> {
    let mut prompt = prompt.to_vec();
    prompt.extend((prompt.len()..24).map(|position| (position * 37 % 200) as u32));
    prompt
}

fn joined(parts: &[&[u32]]) -> Vec<u32> {
    parts.concat()
}

#[tokio::test]
async fn answers_are_the_same_from_the_cache() {
    let cold = Handle::start(EngineSettings { prefix_cache: 0, ..settings() }).unwrap();
    let warm = Handle::start(EngineSettings { prefill_chunk: 50, ..settings() }).unwrap();
    for (name, (folder, golden)) in goldens() {
        cold.load(&name, folder.clone()).await.unwrap();
        warm.load(&name, folder).await.unwrap();
        let check = async |what: &str, prompt: &[u32], cached: usize| {
            let (expected, never) = ask(&cold, &name, prompt).await;
            let what = format!("{name}, {what}");
            assert_eq!(ask(&warm, &name, prompt).await, (expected.clone(), cached), "{what}");
            assert_eq!(never, 0, "{what}");
            expected
        };
        let prompt = long_enough(&golden.prompt_ids);
        let length = prompt.len();
        let answer = check("for the first time", &prompt, 0).await;
        if prompt == golden.prompt_ids {
            assert_eq!(answer, golden.greedy_ids[..TOKENS as usize], "{name}");
        }
        // The last token goes through the first step in any case.
        check("once more", &prompt, length - 1).await;
        let other = [prompt[length - 5] + 1, 7];
        check("another end", &joined(&[&prompt[..length - 5], &other]), length - 5).await;
        check("only the beginning", &prompt[..length - 6], length - 7).await;
        let reversed: Vec<u32> = prompt.iter().rev().copied().collect();
        check("another beginning", &reversed, 0).await;
        // The last token of an answer that was cut off was never computed.
        let second = joined(&[&prompt, &answer, &[5, 6, 7]]);
        let second_answer = check("second turn", &second, length + answer.len() - 1).await;
        let third = joined(&[&second, &second_answer, &[8]]);
        check("third turn", &third, second.len() + second_answer.len() - 1).await;

        let tails: Vec<Vec<u32>> = (20..23).map(|token| joined(&[&prompt, &answer, &[token, 9]])).collect();
        let together: Vec<_> = tails.iter().map(|tail| warm.generate(greedy(&name, tail, TOKENS))).collect();
        for (tail, events) in tails.iter().zip(together) {
            let expected = ask(&cold, &name, tail).await.0;
            let shared = length + answer.len();
            assert_eq!(answered(events).await, (expected, shared), "{name}, together");
        }
        // Three wrote behind the same beginning, which is as it was.
        check("third turn once more", &third, third.len() - 1).await;
    }
}

#[tokio::test]
async fn what_was_computed_up_to_a_stop_token_is_kept() {
    for run_ahead in [false, true] {
        stop_after(run_ahead).await;
    }
}

async fn stop_after(run_ahead: bool) {
    let settings = EngineSettings { run_ahead: Some(run_ahead), ..settings() };
    let cold = Handle::start(EngineSettings { prefix_cache: 0, ..settings.clone() }).unwrap();
    let warm = Handle::start(settings).unwrap();
    let (_, golden) = loaded(&warm, "qwen3-f32-tied").await;
    loaded(&cold, "qwen3-f32-tied").await;
    let stop = golden.greedy_ids[20];
    let stopping = Generate { stop_ids: vec![stop], ..greedy("qwen3-f32-tied", &golden.prompt_ids, 64) };
    let (answer, _) = answered(warm.generate(stopping)).await;
    let turn = joined(&[&golden.prompt_ids, &answer, &[stop, 3]]);
    let expected = ask(&cold, "qwen3-f32-tied", &turn).await.0;
    // The stop token itself was computed only if the step after it was begun.
    let computed = turn.len() - if run_ahead { 1 } else { 2 };
    assert_eq!(ask(&warm, "qwen3-f32-tied", &turn).await, (expected, computed));
}

#[tokio::test]
async fn what_a_client_left_behind_is_found() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
    let mut events = engine.generate(greedy("qwen3-q4-tied", &golden.prompt_ids, 1_000_000));
    let mut heard = Vec::new();
    while heard.len() < 5 {
        match events.recv().await {
            Some(GenerationEvent::Token(id)) => heard.push(id),
            Some(GenerationEvent::Failed(error)) => panic!("{error}"),
            Some(_) => {}
            None => panic!("the engine dropped the sequence"),
        }
    }
    assert_eq!(heard, golden.greedy_ids[..5]);
    drop(events);
    let turn = joined(&[&golden.prompt_ids, &heard]);
    let (answer, cached) = ask(&engine, "qwen3-q4-tied", &turn).await;
    assert_eq!((answer.as_slice(), cached), (&golden.greedy_ids[5..5 + TOKENS as usize], turn.len() - 1));
}

#[test]
fn of_a_prompt_that_is_not_wanted_any_more_the_computed_part_is_kept() {
    let (folder, golden) = golden("qwen3-q4-tied");
    let settings = EngineSettings { max_batch: 1, queue_limit: 1, prefill_chunk: 50, ..settings() };
    let mut core = core_with(&settings, folder);
    let submit = |core: &mut Core| submit(core, &golden.prompt_ids, 8);
    let mut computed = Vec::new();
    for _ in 0..2 {
        let mut leaving = submit(&mut core);
        // Its turn comes, then two chunks; it ends within the step after which nothing is to be done.
        for _ in 0..3 {
            core.step();
        }
        assert!(matches!(leaving.try_recv(), Ok(GenerationEvent::Accepted)));
        match leaving.try_recv() {
            Ok(GenerationEvent::Started { lookup, .. }) => computed.push(lookup.restored),
            other => panic!("{other:?}"),
        }
        drop(leaving);
        core.step();
        assert!(core.is_idle());
    }
    let mut events = submit(&mut core);
    while !core.is_idle() {
        core.step();
    }
    let mut tokens = Vec::new();
    let mut from_cache = None;
    while let Ok(event) = events.try_recv() {
        match event {
            GenerationEvent::Started { lookup, .. } => from_cache = Some(lookup.restored),
            GenerationEvent::Token(id) => tokens.push(id),
            _ => {}
        }
    }
    computed.extend(from_cache);
    assert_eq!(tokens, golden.greedy_ids[..8]);
    assert!(computed[0] == 0 && computed.is_sorted_by(|before, after| before < after), "{computed:?}");
}

/// What is said of the search for a prompt's beginning.
async fn explained(engine: &Handle, model: &str, prompt: &[u32]) -> PrefixLookup {
    let mut events = engine.generate(greedy(model, prompt, 1));
    let mut explained = None;
    while let Some(event) = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap() {
        match event {
            GenerationEvent::Started { lookup, .. } => explained = Some(lookup),
            GenerationEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    explained.expect("it started")
}

#[tokio::test]
async fn a_beginning_that_prompts_share_is_kept_once_and_every_search_says_why_it_found_no_more() {
    let model = "qwen3-q4-tied";
    let cold = Handle::start(EngineSettings { prefix_cache: 0, ..settings() }).unwrap();
    let engine = Handle::start(settings()).unwrap();
    loaded(&cold, model).await;
    let (_, golden) = loaded(&engine, model).await;
    let system = &golden.prompt_ids[..150];
    for user in 0..8 {
        let prompt = joined(&[system, &[3 + user; 20]]);
        let shared = if user == 0 { 0 } else { 150 };
        assert_eq!(ask(&engine, model, &prompt).await, (ask(&cold, model, &prompt).await.0, shared));
        let new = 20 + u64::from(TOKENS) - 1;
        assert_eq!(kept_bytes(&engine).await, 1024 * (150 + new * (u64::from(user) + 1)));
    }
    let cases: [(Vec<u32>, usize, usize, Reason); 5] = [
        (system.to_vec(), 150, 149, Reason::WholePrompt),
        (joined(&[system, &[60, 60]]), 150, 150, Reason::DivergesAt(150)),
        (joined(&[&system[..5], &[61; 30]]), 5, 0, Reason::TooShort),
        (vec![62; 40], 0, 0, Reason::NothingAlike),
        (vec![62; 60], 40, 40, Reason::EndsAt(40)),
    ];
    for (prompt, matched, restored, reason) in cases {
        let expected = PrefixLookup { prompt: prompt.len(), matched, restored, from_disk: 0, reason };
        assert_eq!(explained(&engine, model, &prompt).await, expected);
    }
    assert_eq!(explained(&cold, model, system).await.reason, Reason::Off);
    // Room for one of two.
    let engine = Handle::start(EngineSettings { prefix_cache: 1024 * 100, ..settings() }).unwrap();
    loaded(&engine, model).await;
    for start in [0, 60] {
        ask(&engine, model, &golden.prompt_ids[start..start + 60]).await;
    }
    assert_eq!(explained(&engine, model, &golden.prompt_ids[..60]).await.reason, Reason::Evicted);
}

#[test]
fn who_gives_way_while_its_prompt_is_computed_is_told_once_that_it_started() {
    let (folder, golden) = golden("qwen3-q4-tied");
    let settings = EngineSettings { max_batch: 1, prefill_chunk: 50, ..settings() };
    let mut core = Core::new(&settings, Default::default(), nobody());
    core.obey(Work::Load { name: "m".into(), source: folder.into(), reply: oneshot::channel().0 });
    while !core.is_idle() {
        core.step();
    }
    let submit = |core: &mut Core, priority| {
        let (events, receiver) = unbounded_channel();
        let request = Generate { priority, ..greedy("m", &golden.prompt_ids, 8) };
        let (submitted, queue_span) = (Instant::now(), tracing::Span::none());
        let events = Outbox::new(events);
        core.obey(Work::Generate(Box::new(Submission { request, events, submitted, queue_span })));
        receiver
    };
    let mut first = submit(&mut core, Priority::Batch);
    for _ in 0..3 {
        core.step();
    }
    let mut urgent = submit(&mut core, Priority::Interactive);
    while !core.is_idle() {
        core.step();
    }
    for events in [&mut first, &mut urgent] {
        let (mut starts, mut tokens) = (0, Vec::new());
        while let Ok(event) = events.try_recv() {
            match event {
                GenerationEvent::Started { .. } => starts += 1,
                GenerationEvent::Token(id) => tokens.push(id),
                _ => {}
            }
        }
        assert_eq!((starts, tokens.as_slice()), (1, &golden.greedy_ids[..8]));
    }
}

#[tokio::test]
async fn unloading_gives_the_kept_back_too() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
    let active = async || engine.stats().await.unwrap().active_memory;
    let before = active().await;
    let prompt = &golden.prompt_ids[..40];
    ask(&engine, "qwen3-q4-tied", prompt).await;
    let (held, kept) = (active().await, kept_bytes(&engine).await);
    // Two arrays for each of two layers, of two heads with 32 floats, for the prompt and all of the answer but its end.
    assert_eq!(kept, 2 * 2 * 2 * 32 * 4 * (40 + u64::from(TOKENS) - 1));
    // While it ran it had room for 256 positions.
    assert!(held < before + 2 * kept, "{} bytes are held to keep {kept}", held - before);
    engine.unload("qwen3-q4-tied", "idle").await.unwrap();
    let left = active().await;
    assert!(left + kept < held, "{left} of {held} bytes are still held");
    loaded(&engine, "qwen3-q4-tied").await;
    assert_eq!((kept_bytes(&engine).await, ask(&engine, "qwen3-q4-tied", prompt).await.1), (0, 0));
}

#[tokio::test]
async fn after_a_panic_everything_is_computed_anew() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
    let before = ask(&engine, "qwen3-q4-tied", &golden.prompt_ids).await;
    engine.make_it_panic();
    assert_eq!(ask(&engine, "qwen3-q4-tied", &golden.prompt_ids).await, before);
    assert_eq!(before.1, 0);
}

#[tokio::test]
async fn what_mlx_failed_at_is_not_kept_nor_what_it_began_with() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
    let before = ask(&engine, "qwen3-q4-tied", &golden.prompt_ids).await;
    let mut running = engine.generate(greedy("qwen3-q4-tied", &golden.prompt_ids, 1_000_000));
    first_token(&mut running).await;
    engine.make_it_fail();
    let (_, last) = drain(running).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::Mlx(_)))), "{last:?}");
    assert_eq!(kept_bytes(&engine).await, 0);
    assert_eq!(ask(&engine, "qwen3-q4-tied", &golden.prompt_ids).await, before);
}

#[tokio::test]
async fn models_do_not_share_what_they_computed() {
    let engine = Handle::start(settings()).unwrap();
    let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
    let prompt = &golden.prompt_ids[..40];
    engine.load("twin", super::golden("qwen3-f32-tied").0).await.unwrap();
    assert_eq!(ask(&engine, "qwen3-q4-tied", prompt).await.1, 0);
    assert_eq!(ask(&engine, "twin", prompt).await.1, 0);
    assert_eq!(ask(&engine, "twin", prompt).await.1, 39);
}

#[tokio::test]
async fn the_bound_on_bytes_holds() {
    // Of the 55 positions that a prompt of 40 and its answer keep, twice as many and some more.
    let limit = 2 * 55 * 1024 + 1000;
    for prefix_cache in [limit, 55 * 1024 - 1, 0] {
        let engine = Handle::start(EngineSettings { prefix_cache, ..settings() }).unwrap();
        let (_, golden) = loaded(&engine, "qwen3-q4-tied").await;
        for start in 0..6 {
            let prompt = &golden.prompt_ids[start * 40..start * 40 + 40];
            assert_eq!(ask(&engine, "qwen3-q4-tied", prompt).await.1, 0);
            let kept = kept_bytes(&engine).await;
            let most = if prefix_cache < limit { 0 } else { 55 * 1024 * (start as u64 + 1).min(2) };
            // They may begin with a token in common, which is kept once.
            assert!(kept <= most && kept + 10 * 1024 > most, "{kept} of {prefix_cache}");
            let again = ask(&engine, "qwen3-q4-tied", prompt).await.1;
            assert_eq!(again, if prefix_cache < limit { 0 } else { 39 });
        }
    }
}

#[tokio::test]
async fn what_is_kept_goes_before_memory_runs_out() {
    let engine = Handle::start(settings()).unwrap();
    let (info, golden) = loaded(&engine, "qwen3-q4-tied").await;
    drop(engine);
    let prompt = golden.prompt_ids.len() as u64;
    let own = info.needs.sequence(prompt + u64::from(TOKENS))
        + info.needs.step(prompt.min(settings().prefill_chunk as u64), prompt);
    // With room for one sequence, what is kept of the one before it goes.
    for (memory_limit, cached) in [(info.bytes + own, 0), (1 << 30, golden.prompt_ids.len() - 1)] {
        let engine = Handle::start(EngineSettings { memory_limit: Some(memory_limit), ..settings() }).unwrap();
        loaded(&engine, "qwen3-q4-tied").await;
        ask(&engine, "qwen3-q4-tied", &golden.prompt_ids).await;
        assert!(kept_bytes(&engine).await > 0);
        assert_eq!(ask(&engine, "qwen3-q4-tied", &golden.prompt_ids).await.1, cached);
    }
}
