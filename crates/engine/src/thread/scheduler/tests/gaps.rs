//! Steps keep to their time on machines of any speed.

use std::time::Duration;

use mlx_manager_llm::Priority::{Batch, Interactive, Normal};
use proptest::prelude::*;

use super::{
    super::compose::GATHERING,
    LIMITS, Limits,
    machine::{Machine, World},
    model,
};

const CHUNK: usize = 256;

/// Machines on which four tokens of a prompt of 2,500 fit beside the decode steps.
fn machine() -> impl Strategy<Value = Machine> {
    let milliseconds = |range: std::ops::Range<f64>| range.prop_map(|value| value / 1e3);
    let parts = (milliseconds(2.0..60.0), 0.0..0.2_f64, 0.001..0.04_f64, 0.0..4.0_f64, 0.0..0.05_f64);
    parts.prop_map(|(step, row, token, context, noise)| Machine {
        step,
        row: step * row,
        token: step * token,
        context: step * token * context / 1e3,
        noise,
    })
}

/// A world that has seen some streams and prompts, with so many streams that won't end.
fn warm(machine: Machine, streams: u64) -> World {
    let mut world = World::new(Limits { max_batch: 16, prefill_chunk: CHUNK, ..LIMITS }, machine);
    world.scheduler.loaded(&model(0));
    for id in 0..streams {
        world.submit(id, model(0), Normal, 20, 1_000_000).unwrap();
    }
    for id in 100..102 {
        world.submit(id, model(0), Normal, 2_500, 4).unwrap();
        while world.open.contains_key(&id) {
            world.act();
        }
    }
    for _ in 0..if streams == 0 { 0 } else { 20 } {
        world.act();
    }
    world
}

/// Seconds for a prompt that is alone.
fn alone(machine: Machine, prompt: u64) -> f64 {
    let mut world = warm(Machine { noise: 0.0, ..machine }, 0);
    world.submit(200, model(0), Normal, prompt, 1).unwrap();
    while world.open.contains_key(&200) {
        world.act();
    }
    world.ended[&200].first_token.expect("it answered").as_secs_f64()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_prompt_makes_others_wait_longer_than_three_of_their_usual_gaps(
        machine in machine(), streams in 1..12_u64, prompts in proptest::collection::vec(2..2_500_u64, 1..5),
    ) {
        let mut world = warm(machine, streams);
        for (id, prompt) in (200..).zip(prompts) {
            world.submit(id, model(0), Normal, prompt, 5).unwrap();
        }
        while world.open.len() > streams as usize {
            for gap in world.act() {
                let usual = machine.usual(gap.rows);
                // A prompt gets its least in any case.
                let least = (1.0 + machine.noise) * (usual + machine.chunk(4, 2_500));
                let longest = (3.0 * usual).max(0.03).max(least);
                prop_assert!(gap.seconds <= longest, "{} s where {} s are usual", gap.seconds, usual);
            }
        }
    }

    #[test]
    fn a_prompt_beside_streams_takes_no_more_than_its_share_of_time(machine in machine(), streams in 1..12_u64) {
        let machine = Machine { token: machine.token.min(machine.step / 50.0), ..machine };
        let machine = Machine { context: machine.context.min(machine.token / 500.0), ..machine };
        let mut world = warm(machine, streams);
        world.submit(200, model(0), Normal, 2_000, 1).unwrap();
        while world.open.contains_key(&200) {
            world.act();
        }
        let took = world.ended[&200].first_token.expect("it answered").as_secs_f64();
        let alone = alone(machine, 2_000);
        // With so few readers it has half of the time; with four times as many, half of what four would leave it.
        let rows = streams as usize;
        let prompt = machine.usual(rows.min(4)) * (4.0 / rows.max(4) as f64).sqrt();
        let expected = alone * (1.0 + machine.usual(rows) / prompt);
        prop_assert!(took <= 1.1 * expected + 5.0 * machine.usual(16), "{took} s instead of {alone} s");
    }
}

#[test]
fn a_prompt_that_is_alone_soon_has_the_largest_chunks() {
    let machine = Machine { step: 0.03, row: 0.001, token: 0.001, context: 0.000_002, noise: 0.0 };
    let mut world = World::new(Limits { prefill_chunk: CHUNK, ..LIMITS }, machine);
    world.scheduler.loaded(&model(0));
    world.submit(0, model(0), Normal, 3_000, 1).unwrap();
    let (mut steps, mut before) = (Vec::new(), 0);
    world.act();
    while world.open[&0].left > 0 {
        world.act();
        steps.push(world.open[&0].computed - before);
        before = world.open[&0].computed;
    }
    assert_eq!(&steps[..5], [32, 64, 128, 256, 256], "{steps:?}");
}

#[test]
fn steps_without_readers_are_short_all_the_same() {
    let machine = Machine { step: 0.03, row: 0.001, token: 0.004, context: 0.000_01, noise: 0.0 };
    let mut world = World::new(Limits { prefill_chunk: 2_048, ..LIMITS }, machine);
    world.scheduler.loaded(&model(0));
    world.submit(0, model(0), Normal, 10_000, 1).unwrap();
    world.act();
    let mut longest = 0.0_f64;
    while world.open.contains_key(&0) {
        let before = world.now;
        world.act();
        longest = longest.max((world.now - before).as_secs_f64());
    }
    assert!((0.8..1.1).contains(&longest), "{longest}");
}

#[test]
fn what_the_thread_does_between_two_steps_is_time_that_prompts_have_not() {
    let machine = Machine { step: 0.03, row: 0.001, token: 0.001, context: 0.0, noise: 0.0 };
    let mut world = warm(machine, 4);
    world.submit(200, model(0), Normal, 2_000, 1).unwrap();
    for _ in 0..40 {
        world.act();
    }
    let longest = 2.0 * machine.usual(4);
    // Sequences that end are kept: that takes some of the time, or all and more.
    for (milliseconds, computes) in [(10, true), (25, true), (40, false), (0, true)] {
        let (between, left) = (Duration::from_millis(milliseconds), world.open[&200].left);
        world.now += between;
        for gap in world.act() {
            let most = longest.max(machine.usual(4) + between.as_secs_f64());
            assert!(gap.seconds <= 1.01 * most, "{} s after {between:?}", gap.seconds);
        }
        assert_eq!(world.open[&200].left < left, computes, "{between:?}");
    }
}

#[test]
fn streams_of_two_models_share_what_they_can_spare() {
    let machine = Machine { step: 0.03, row: 0.001, token: 0.001, context: 0.000_002, noise: 0.0 };
    let mut world = warm(machine, 2);
    world.scheduler.loaded(&model(1));
    for id in [50, 51] {
        world.submit(id, model(1), Normal, 20, 1_000_000).unwrap();
    }
    for number in [0, 1, 0, 1] {
        for id in [200, 201] {
            world.submit(id, model(number), Normal, 2_000, 3).unwrap();
            let measured = id == 201;
            while world.open.contains_key(&id) {
                for gap in world.act() {
                    let usual = machine.usual(2) + machine.usual(2);
                    assert!(!measured || gap.seconds <= 3.0 * usual, "{} s where {usual} s are usual", gap.seconds);
                }
            }
        }
    }
}

#[test]
fn a_machine_that_was_slow_for_a_moment_is_not_held_to_be_slow() {
    let machine = Machine { step: 0.015, row: 0.0, token: 0.001, context: 0.0, noise: 0.0 };
    let seconds = |slow: std::ops::Range<u64>| {
        let mut world = warm(machine, 4);
        world.submit(200, model(0), Normal, 2_000, 1).unwrap();
        world.act();
        let mut step = 0;
        while world.open.contains_key(&200) {
            let times = if slow.contains(&step) { 3.0 } else { 1.0 };
            world.machine = Machine { step: machine.step * times, token: machine.token * times, ..machine };
            world.act();
            step += 1;
        }
        world.ended[&200].first_token.expect("it answered").as_secs_f64()
    };
    let (with, without) = (seconds(5..10), seconds(0..0));
    assert!(with <= 1.3 * without, "{with} s instead of {without} s");
}

#[test]
fn the_urgent_wait_for_no_worse_ones() {
    let machine = Machine { step: 0.03, row: 0.002, token: 0.000_7, context: 0.0, noise: 0.0 };
    let first_token = |others| {
        let mut world = warm(machine, 0);
        world.submit(200, model(0), Interactive, 100, 8).unwrap();
        for id in 201..216 {
            world.submit(id, model(0), others, 128, 8).unwrap();
        }
        while !world.ended.contains_key(&200) {
            world.act();
        }
        world.ended[&200].first_token.expect("it answered").as_secs_f64()
    };
    let (beside_batch, beside_equals) = (first_token(Batch), first_token(Interactive));
    assert!(beside_batch <= 0.3 && beside_equals > 0.6, "{beside_batch} s, {beside_equals} s");
}

/// A crowd that arrives at once, and what each of it waits for its first token.
fn crowd(machine: Machine, prompts: &[u64], answer: u64) -> (World, Vec<f64>) {
    let mut world = warm(machine, 0);
    for (id, prompt) in (200..).zip(prompts) {
        world.submit(id, model(0), Normal, *prompt, answer).unwrap();
    }
    while !world.open.is_empty() {
        world.act();
    }
    let first = |id| world.ended[&id].first_token.expect("it answered").as_secs_f64();
    let firsts = (200..).zip(prompts).map(|(id, _)| first(id)).collect();
    (world, firsts)
}

#[test]
fn of_a_crowd_most_have_their_first_token_as_if_nobody_read_yet() {
    let machine = Machine { step: 0.03, row: 0.002, token: 0.000_7, context: 0.0, noise: 0.0 };
    let (_, mut firsts) = crowd(machine, &[128; 16], 32);
    firsts.sort_by(f64::total_cmp);
    // Nine prompts, at 256 tokens a step, and a step that decodes.
    let nine = 9.0 * 128.0 * machine.token + 5.0 * machine.usual(0) + machine.usual(9);
    assert!(firsts[8] <= 1.15 * nine, "{} s instead of {nine} s", firsts[8]);
    assert!(firsts[15] <= 4.0 * nine, "{firsts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn nobody_waits_long_for_others_to_be_ready(
        machine in machine(), short in 2..300_u64, others in proptest::collection::vec(2..3_000_u64, 1..15),
    ) {
        let machine = Machine { noise: 0.0, ..machine };
        let alone = alone(machine, short);
        let prompts: Vec<u64> = [short].into_iter().chain(others.iter().copied()).collect();
        let (_, firsts) = crowd(machine, &prompts, 8);
        // The first of them gets going with the first chunk that ends a prompt, of which there may be one before it.
        let earliest = firsts.iter().copied().fold(f64::INFINITY, f64::min);
        let chunk = machine.usual(16) + machine.chunk(CHUNK as u64, 3_000);
        let bound = 15.0 * alone + GATHERING.as_secs_f64() + 2.0 * chunk;
        prop_assert!(earliest <= bound, "{earliest} s where it takes {alone} s alone: {firsts:?}");
    }
}
