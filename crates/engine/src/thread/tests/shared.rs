//! Sequences that begin alike have that in one place, which stays as long as they do.

use super::*;

/// Tokens of each answer.
const TOKENS: u32 = 12;
/// Tokens that the prompts begin with.
const ALIKE: usize = 600;
/// Few enough that a step takes little memory beside the sequences.
const CHUNK: usize = 8;

fn prompt(tail: &[u32]) -> Vec<u32> {
    let token = |position: usize| (position * position * 7 + position) as u32 % 200;
    (0..ALIKE).map(token).chain(tail.iter().copied()).collect()
}

fn run(core: &mut Core) {
    while !core.is_idle() {
        core.step();
    }
}

fn live(core: &Core) -> u64 {
    core.stats().held.kv_live
}

fn kept(core: &Core) -> u64 {
    core.stats().held.prefix_cache
}

/// How many tokens of the prompt came from the cache, and the answer.
fn heard(events: &mut UnboundedReceiver<GenerationEvent>) -> (usize, Vec<u32>) {
    let (mut restored, mut tokens) = (0, Vec::new());
    while let Ok(event) = events.try_recv() {
        match event {
            GenerationEvent::Started { lookup, .. } => restored = lookup.restored,
            GenerationEvent::Token(id) => tokens.push(id),
            GenerationEvent::Failed(error) => panic!("{error}"),
            GenerationEvent::Accepted | GenerationEvent::Finished { .. } => {}
        }
    }
    (restored, tokens)
}

#[test]
fn what_is_there_already_needs_no_room() {
    let (folder, _) = golden("qwen3-f32-tied");
    let info = load_now(folder.clone()).info;
    let prompts: Vec<Vec<u32>> = (0..4).map(|tail| prompt(&[tail, 9])).collect();
    let length = prompts[0].len() as u64;
    let one = info.needs.sequence(length + u64::from(TOKENS));
    // Room for two and a half, and what a step takes besides.
    let limit = Some(info.bytes + info.needs.step(CHUNK as u64, length) + 2 * one + one / 2);
    for (prefix_cache, together) in [(0, 2), (one, 4)] {
        let settings = EngineSettings { memory_limit: limit, prefix_cache, prefill_chunk: CHUNK, ..settings() };
        let mut core = core_with(&settings, folder.clone());
        let mut first = submit(&mut core, &prompt(&[4, 4]), 1);
        run(&mut core);
        assert_eq!(heard(&mut first).1.len(), 1);
        let mut open: Vec<_> = prompts.iter().map(|prompt| submit(&mut core, prompt, TOKENS)).collect();
        let mut most = 0;
        while !core.is_idle() {
            core.step();
            most = most.max(core.stats().running);
        }
        assert_eq!(most, together, "with {prefix_cache} bytes of cache");
        assert!(open.iter_mut().all(|events| heard(events).1.len() == TOKENS as usize));
    }
}

#[test]
fn what_sequences_begin_with_is_there_once_and_stays_while_they_run() {
    let tails: [&[u32]; 4] = [&[3, 4], &[5, 6, 7], &[8], &[9, 1]];
    let (folder, _) = golden("qwen3-f32-tied");
    let mut cold = core_with(&EngineSettings { prefix_cache: 0, ..settings() }, folder.clone());
    let expected = tails.map(|tail| {
        let mut events = submit(&mut cold, &prompt(tail), TOKENS);
        run(&mut cold);
        heard(&mut events).1
    });
    // Alone they have all of it for themselves.
    let mut alone: Vec<_> = tails.iter().map(|tail| submit(&mut cold, &prompt(tail), TOKENS)).collect();
    while heard(&mut alone[0]).1.is_empty() {
        cold.step();
    }
    let alone = live(&cold);

    let mut core = core_with(&settings(), folder);
    let mut before = submit(&mut core, &prompt(&[2, 2]), TOKENS);
    run(&mut core);
    assert_eq!(heard(&mut before).0, 0);
    let first = kept(&core);
    let mut open: Vec<_> = tails.iter().map(|tail| submit(&mut core, &prompt(tail), TOKENS)).collect();
    let mut begun = vec![Vec::new(); tails.len()];
    while begun.iter().any(Vec::is_empty) {
        core.step();
        for (tokens, events) in begun.iter_mut().zip(&mut open) {
            let (restored, new) = heard(events);
            assert!(restored == 0 || restored == ALIKE, "{restored}");
            tokens.extend(new);
        }
    }
    let (apart, span) = (live(&core), first * ALIKE as u64 / (ALIKE + 2 + TOKENS as usize - 1) as u64);
    assert!(apart + 3 * span < alone, "{apart} beside {span}, {alone} alone");
    // Memory may be wanted, but this would not come free.
    core.memory.drop_kept(u64::MAX);
    assert_eq!((kept(&core), live(&core)), (span, apart));
    assert_eq!(core.memory.drop_all_kept(), 0);
    // A failure may have spoilt what is kept; who has it already must not be charged to nobody.
    core.memory.forget_prompts(&"m".into());
    assert_eq!((kept(&core), live(&core)), (0, apart + span));
    run(&mut core);
    for ((tokens, events), expected) in begun.iter_mut().zip(&mut open).zip(&expected) {
        tokens.extend(heard(events).1);
        assert_eq!(tokens, expected);
    }
    assert_eq!(live(&core), 0);
}
