//! Costs against the vendors' published prices, and what has none.

use super::*;

fn usage(input: u64, output: u64) -> Usage {
    Usage { input: Some(input), output: Some(output), ..Usage::default() }
}

fn cost_of(list: &PriceList, model: &str, usage: &Usage) -> Option<f64> {
    let (first, second) = (list.cost_usd(model, model, usage), list.cost_usd(model, model, usage));
    assert_eq!(first, second, "what the list found out does not change a price");
    first
}

fn cost_usd(dialect: Dialect, base_url: &str, model: &str, usage: &Usage) -> Option<f64> {
    cost_of(&PriceList::new(dialect, base_url, "p", &[]), model, usage)
}

fn openai(model: &str, usage: &Usage) -> Option<f64> {
    cost_usd(Dialect::OpenAi, OPENAI, model, usage)
}

fn claude(model: &str, usage: &Usage) -> Option<f64> {
    cost_usd(Dialect::Anthropic, ANTHROPIC, model, usage)
}

#[track_caller]
fn near(found: Option<f64>, expected: f64) {
    assert!(found.is_some_and(|found| (found - expected).abs() < 1e-9), "{found:?} for {expected}");
}

const OPENAI: &str = "https://api.openai.com/v1";
const ANTHROPIC: &str = "https://api.anthropic.com";
const SONNET: &str = "claude-sonnet-4-5";

#[test]
fn known_models_cost_what_their_price_lists_say() {
    let million = usage(1_000_000, 1_000_000);
    // $2.50 and $10 per million tokens.
    assert_eq!(openai("gpt-4o", &million), Some(12.5));
    assert_eq!(cost_usd(Dialect::OpenAi, "http://127.0.0.1:4000/v1", "gpt-4o", &million), Some(12.5));
    // $3 and $15.
    near(claude(SONNET, &usage(100_000, 10_000)), 0.45);
}

#[test]
fn cached_tokens_are_inside_the_input_and_cheaper() {
    // A tenth of the input's price to read, 1.25 times it to write, twice to write for an hour.
    near(claude(SONNET, &Usage { cache_read: Some(100_000), ..usage(100_000, 0) }), 0.03);
    near(claude(SONNET, &Usage { cache_write: Some(100_000), ..usage(100_000, 0) }), 0.375);
    let hour = |written, hour| Usage { cache_write: written, cache_write_1h: Some(hour), ..usage(100_000, 0) };
    near(claude(SONNET, &hour(Some(100_000), 100_000)), 0.6);
    near(claude(SONNET, &Usage { output: Some(1), ..hour(Some(100_000), 100_000) }), 0.600_015);
    near(claude(SONNET, &hour(Some(100_000), 40_000)), 0.465);
    near(claude(SONNET, &hour(Some(100_000), 0)), 0.375);
    assert_eq!(claude(SONNET, &hour(None, 1)), None, "a part of nothing");
    assert_eq!(claude(SONNET, &hour(Some(1), 2)), None, "more than the whole");
}

#[test]
fn searches_of_the_web_are_billed_by_the_thousand() {
    let searched = |searches, usage| Usage { web_searches: Some(searches), ..usage };
    near(claude(SONNET, &searched(5, usage(1000, 0))), 0.053);
    near(claude(SONNET, &searched(0, usage(1000, 0))), 0.003);
    assert_eq!(openai("davinci-002", &searched(1, usage(1000, 10))), None);
    assert!(openai("davinci-002", &searched(0, usage(1000, 10))).is_some());
}

#[test]
fn a_tier_has_its_own_rates_or_no_price() {
    let at = |tier| Usage { tier: Some(tier), ..usage(100_000, 10_000) };
    near(openai("o3", &usage(100_000, 10_000)), 0.28);
    near(openai("o3", &at(ServiceTier::Standard)), 0.28);
    near(openai("o3", &at(ServiceTier::Flex)), 0.14);
    near(openai("o3", &at(ServiceTier::Priority)), 0.49);
    near(openai("o3", &at(ServiceTier::Batch)), 0.14);
    assert_eq!(openai("o3", &at(ServiceTier::Other)), None);
    near(openai("gpt-4o", &at(ServiceTier::Fast)), 0.595);
    assert_eq!(openai("gpt-4o", &at(ServiceTier::Flex)), None, "which it has not");
    near(claude(SONNET, &at(ServiceTier::Batch)), 0.225);
    assert_eq!(claude(SONNET, &at(ServiceTier::Priority)), None, "a commitment");
    assert_eq!(claude(SONNET, &at(ServiceTier::Fast)), None);
    // Other providers' models at Azure are found in OpenAI's list, whose tiers are not Azure's.
    let azure = |tier| cost_usd(Dialect::OpenAi, "https://mine.openai.azure.com/openai/v1", "o3", &at(tier));
    assert_eq!(azure(ServiceTier::Flex), None);
}

#[test]
fn a_part_without_a_price_leaves_none() {
    let list = |model: &str, usage: &Usage| openai(model, usage);
    assert!(list("gpt-4", &usage(1000, 10)).is_some());
    assert_eq!(list("gpt-4", &Usage { cache_read: Some(10), ..usage(1000, 10) }), None);
    assert_eq!(list("gpt-4o", &Usage { cache_write: Some(10), ..usage(1000, 10) }), None);
    assert!(list("gpt-4o", &Usage { cache_read: Some(10), cache_write: Some(0), ..usage(1000, 10) }).is_some());
    assert!(list("text-embedding-3-small", &usage(1000, 0)).is_some());
    assert_eq!(list("text-embedding-3-small", &usage(1000, 10)), None);
}

#[test]
fn sound_has_prices_of_its_own_that_counts_dont_tell_apart() {
    let audio = |audio| openai("gpt-4o", &Usage { audio: Some(audio), ..usage(100, 10) });
    assert!(audio(0).is_some() && audio(7).is_none());
}

#[test]
fn the_unknown_has_no_price() {
    assert_eq!(openai("our-own-model", &usage(10, 10)), None);
    assert_eq!(cost_usd(Dialect::OpenAi, "http://127.0.0.1:1/v1", "our-own-model", &usage(10, 10)), None);
    let partial = Usage { input: Some(5), ..Usage::default() };
    assert_eq!(openai("gpt-4o", &partial), None);
}

fn own(model: &str, provider: Option<&str>, input: f64, output: f64) -> Price {
    Price {
        model: model.to_owned(),
        provider: provider.map(str::to_owned),
        input,
        output,
        cache_read: None,
        cache_write: None,
        cache_write_1h: None,
        web_search: None,
    }
}

#[test]
fn the_operator_beats_and_extends_the_list() {
    let prices = [
        own("gpt-4o", Some("q"), 100.0, 100.0),
        own("GPT-4o", None, 1.0, 2.0),
        own("ours/*", Some("p"), 0.0, 0.0),
        own("*-mini", None, 4.0, 8.0),
        own("gpt-4o*", None, 50.0, 50.0),
    ];
    let list = PriceList::new(Dialect::OpenAi, OPENAI, "p", &prices);
    let million = usage(1_000_000, 1_000_000);
    for (model, cost) in [
        ("gpt-4o", Some(3.0)),
        ("Gpt-4O", Some(3.0)),
        ("ours/free", Some(0.0)),
        ("gpt-4o-mini", Some(12.0)),
        ("o3", Some(10.0)),
        ("theirs", None),
    ] {
        assert_eq!(cost_of(&list, model, &million), cost, "{model}");
    }
    let dated = list.cost_usd("gpt-4o-2024-08-06", "gpt-4o", &million);
    assert_eq!(dated, Some(3.0), "whoever says what a model costs knows the name that he asks for");
}

#[test]
fn what_the_operator_leaves_out_costs_as_the_next_wider() {
    let list = |price: &Price| PriceList::new(Dialect::Anthropic, ANTHROPIC, "p", std::slice::from_ref(price));
    let cached = Usage {
        cache_read: Some(200_000),
        cache_write: Some(300_000),
        cache_write_1h: Some(100_000),
        ..usage(1_000_000, 100_000)
    };
    let plain = own("m", None, 1.0, 10.0);
    near(cost_of(&list(&plain), "m", &cached), 2.0);
    let read = Price { cache_read: Some(0.0), ..plain.clone() };
    near(cost_of(&list(&read), "m", &cached), 1.8);
    let written = Price { cache_write: Some(2.0), ..read };
    near(cost_of(&list(&written), "m", &cached), 2.1);
    let all = Price { cache_write_1h: Some(4.0), ..written };
    near(cost_of(&list(&all), "m", &cached), 2.3);
    let flex = Usage { tier: Some(ServiceTier::Flex), reasoning: Some(5), ..cached };
    near(cost_of(&list(&all), "m", &flex), 2.3);
    let searched = Usage { web_searches: Some(5), ..cached };
    assert_eq!(cost_of(&list(&all), "m", &searched), None);
    near(cost_of(&list(&Price { web_search: Some(10.0), ..all.clone() }), "m", &searched), 2.35);
    for broken in [
        Usage { cache_read: Some(2_000_000), ..usage(1, 1) },
        Usage { cache_write_1h: Some(1), ..usage(1, 1) },
        Usage { output: None, ..usage(1, 1) },
    ] {
        assert_eq!(cost_of(&list(&all), "m", &broken), None, "{broken:?}");
    }
}

#[test]
fn what_is_kept_of_a_model_says_what_the_list_says() {
    let providers = [(Dialect::OpenAi, OPENAI, "openai"), (Dialect::Anthropic, ANTHROPIC, "anthropic")];
    let models = ["gpt-4o", "gpt-4o-mini", "gpt-5", "o3", SONNET, "claude-opus-4-1", "claude-haiku-4-5", "unknown"];
    let mut priced = 0;
    for (dialect, url, provider) in providers {
        let list = PriceList::new(dialect, url, "p", &[]);
        for model in models {
            for tokens in [0, 1, 7, 999, 4_097, 150_000, 199_999, 200_001, 272_001, 5_000_000] {
                for cached in [None, Some(0), Some(tokens / 3), Some(tokens)] {
                    let usage =
                        Usage { cache_read: cached, cache_write: cached.map(|_| 0), ..usage(tokens, tokens / 2) };
                    let (kept, listed) =
                        (list.cost_usd(model, model, &usage), Bundled { provider, model }.cost_usd(&usage));
                    let difference = kept.zip(listed).map_or(0.0, |(kept, listed)| (kept - listed).abs() / listed);
                    assert!(kept.is_some() == listed.is_some(), "{model} {usage:?}: {kept:?} for {listed:?}");
                    assert!(difference.is_nan() || difference < 1e-12, "{model} {usage:?}: {kept:?} for {listed:?}");
                    priced += usize::from(kept.is_some());
                }
            }
        }
    }
    assert!(priced > 200, "{priced}");
}
