//! What requests may take, and where they go.

use std::time::Duration;

use globset::Glob;

use super::*;

#[test]
fn a_model_that_thinks_for_ten_minutes_is_waited_for() {
    let config = loaded("").config;
    let calls = &config.providers[0].calls;
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!((calls.first_token_timeout, calls.idle_timeout), (minutes(12), minutes(12)));
    assert_eq!((calls.total_timeout, config.cloud.stream_commit_after), (minutes(60), Duration::from_secs(10)));
    assert_eq!(loaded("cloud.stream_commit_after = \"0 s\"").config.cloud.stream_commit_after, Duration::ZERO);
    let own = "[[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = \"http://h\"\nstream_commit_after = \"1 s\"";
    check(own, &[("5:1 unknown key `providers[0].stream_commit_after`", "")]);
}

#[test]
fn a_route_has_a_budget_of_retries() {
    let budget = |text: &str| {
        let config = loaded(&format!("[[routes]]\nmodel = \"m\"\ntargets = [\"openai\"]\n{text}")).config;
        let RetryBudget { ratio, min_per_minute } = config.cloud.routes[0].retry_budget;
        (ratio, min_per_minute)
    };
    assert_eq!(budget(""), (0.2, 10));
    assert_eq!(RetryBudget::default(), loaded("").config.cloud.routes[0].retry_budget);
    assert_eq!(budget("retry_budget = { ratio = \"50%\" }"), (0.5, 10));
    assert_eq!(budget("retry_budget = { ratio = \"0%\", min_per_minute = 0 }"), (0.0, 0));
    let wrong = |text: &str, start: &str, rest: &str| {
        check(&format!("[[routes]]\nmodel = \"m\"\ntargets = [\"openai\"]\n{text}"), &[(start, rest)]);
    };
    wrong(
        "retry_budget = { ratio = 0.2 }",
        "4:26 `routes[0].retry_budget.ratio` can't be 0.2",
        "in quotes and percent",
    );
    wrong("retry_budget = { ratio = \"120%\" }", "4:26 `routes[0].retry_budget.ratio` can't be \"120%\"", "100%");
    wrong(
        "retry_budget = { ratoi = \"1%\" }",
        "4:18 unknown key `routes[0].retry_budget.ratoi`",
        "did you mean `ratio`?",
    );
    wrong("retry_budget = 3", "4:16 `routes[0].retry_budget` must be a table", "");
}

#[test]
fn what_the_keys_of_both_vendors_open_has_a_default_route() {
    let config = loaded("").config;
    let target = |model: &str| {
        let matches = |route: &&Route| Glob::new(&route.model).unwrap().compile_matcher().is_match(model);
        config.cloud.routes.iter().find(matches).map(|route| route.targets[0].provider.as_str())
    };
    for model in [
        "gpt-4o",
        "gpt-3.5-turbo",
        "gpt-5.2-codex",
        "gpt-audio",
        "chatgpt-4o-latest",
        "o1",
        "o3-mini",
        "o4-mini-deep-research",
        "codex-mini-latest",
        "computer-use-preview",
        "text-embedding-3-small",
        "ft:gpt-4o-mini-2024-07-18:org::id",
    ] {
        assert_eq!(target(model), Some("openai"), "{model}");
    }
    assert_eq!(target("claude-sonnet-4-5"), Some("anthropic"));
    for local in ["gpt-oss-20b", "openai/gpt-oss-20b", "omni-7b", "olmo-2", "demo", "mlx-community/o1-like"] {
        assert_eq!(target(local), None, "{local}");
    }
}

#[test]
fn a_star_in_a_target_has_to_stand_for_something() {
    let text = |rule: &str, target: &str| format!("[[routes]]\nmodel = \"{rule}\"\ntargets = [\"openai/{target}\"]");
    for (rule, target) in [("gpt-*", "*"), ("m", "*"), ("{a,b}-*", "*"), ("gpt-*", "my-gpt-*"), ("*", "org/*")] {
        assert_eq!(loaded(&text(rule, target)).config.cloud.routes[0].targets[0].model.as_deref(), Some(target));
    }
    for rule in ["gpt", "a*b*", "{a,b}-*", "gpt-?*", "[ab]*"] {
        let place = "3:12 `routes[0].targets[0]` has a `*` for what the one `*` of `model` takes, but that is ";
        check(&text(rule, "my-*"), &[(&format!("{place}\"{rule}\""), "such as \"gpt-*\"")]);
    }
    for target in ["**", "*-*", "a*b*"] {
        let start = "3:12 `routes[0].targets[0]` has more than one `*` in its model";
        check(&text("gpt-*", target), &[(start, "keeps the name")]);
    }
}

#[test]
fn a_star_in_a_target_is_what_the_rule_took() {
    let asked_of = |rule: &str, target: &str, asked: &str| {
        let text = format!("[[routes]]\nmodel = '{rule}'\ntargets = [\"openai{target}\"]");
        let route = loaded(&text).config.cloud.routes.remove(0);
        let known = route.known_model_at(&route.targets[0]).map(str::to_owned);
        (route.model_at(&route.targets[0], asked).into_owned(), known)
    };
    for (rule, target, asked, expected, known) in [
        ("gpt-*", "", "gpt-4o", "gpt-4o", None),
        ("gpt-*", "/other", "gpt-4o", "other", Some("other")),
        ("gpt-*", "/*", "gpt-4o", "gpt-4o", None),
        ("groq/*", "/*", "groq/llama-3.3-70b", "llama-3.3-70b", None),
        ("groq/*", "/*", "groq/meta/llama", "meta/llama", None),
        ("a/b/c-*", "/*", "a/b/c-d/e", "c-d/e", None),
        ("groq/llama", "/*", "groq/llama", "llama", Some("llama")),
        ("{a,b}/*", "/*", "a/m", "a/m", None),
        ("m", "/*", "m", "m", Some("m")),
        ("groq/*", "/*", "groq/", "groq/", None),
        ("groq/*", "/*", "groq/*", "groq/*", None),
        ("gpt-*", "/my-gpt-*", "gpt-4o", "my-gpt-4o", None),
        ("gpt-*-mini", "/org/*:m", "gpt-5-mini", "org/5:m", None),
        ("*", "/org/*", "m", "org/m", None),
    ] {
        let found = asked_of(rule, target, asked);
        assert_eq!((found.0.as_str(), found.1.as_deref()), (expected, known), "{rule} → {target} for {asked}");
    }
}

#[test]
fn an_operator_says_what_a_model_costs() {
    assert!(loaded("").config.prices.is_empty());
    let text = "[[prices]]\nmodel = \"llama-*\"\nprovider = \"openai\"\ninput = 1\noutput = 0.5\ncache_read = 0\n\
                cache_write = 2.5\ncache_write_1h = 3\nweb_search = 10\n[[prices]]\nmodel = \"free\"\ninput = 0\noutput = 0\n";
    let price = |model: &str, input, output| Price {
        model: model.to_owned(),
        provider: None,
        input,
        output,
        cache_read: None,
        cache_write: None,
        cache_write_1h: None,
        web_search: None,
    };
    let all = Price {
        provider: Some("openai".to_owned()),
        cache_read: Some(0.0),
        cache_write: Some(2.5),
        cache_write_1h: Some(3.0),
        web_search: Some(10.0),
        ..price("llama-*", 1.0, 0.5)
    };
    assert_eq!(loaded(text).config.prices, [all, price("free", 0.0, 0.0)]);
    check(
        "[[prices]]\nmodel = \"m[\"\nprovider = \"opnai\"\ninput = -1\noutput = \"1\"\ncache_raed = 1\nweb_search = nan",
        &[
            ("2:9 `prices[0].model` isn't a glob", "unclosed"),
            ("3:12 `prices[0].provider` is \"opnai\", which isn't configured", "did you mean `openai`?"),
            ("4:9 `prices[0].input` can't be -1", "0 is free"),
            ("5:10 `prices[0].output` can't be \"1\"", "without quotes"),
            ("6:1 unknown key `prices[0].cache_raed`", "did you mean `cache_read`?"),
            ("7:14 `prices[0].web_search` can't be NaN", ""),
        ],
    );
    check(
        "[[prices]]\nprovider = \"local\"",
        &[
            ("1:1 `prices[0].model` is missing", ""),
            ("1:1 `prices[0].input` is missing", ""),
            ("1:1 `prices[0].output` is missing", ""),
            ("2:12 `prices[0].provider` is \"local\", which isn't configured", "known providers: openai, anthropic"),
        ],
    );
}
