//! Series stay bounded, and those that the configuration names have their room.

use std::time::Duration;

use mlx_manager_config::{RetryBudget, Route, Target};
use mlx_manager_llm::Outcome;
use mlx_manager_signal::{event, testing::lines_of};

use super::{finish, metrics_of, metrics_with, record, sample, series_of};
use crate::metric::limit::Limits;

#[test]
fn hostile_model_names_stay_bounded() {
    let metrics = metrics_with(Limits::default(), None);
    let before = series_of(&metrics.render(), "mlx_manager_requests_total");
    metrics.within(|| {
        for number in 0..10_000 {
            finish(&record(Some("openai"), &format!("failing-{number}"), Outcome::UpstreamError));
        }
    });
    let page = metrics.render();
    assert_eq!(series_of(&page, "mlx_manager_requests_total"), before, "a name that never answered is no label");
    assert!(!page.contains("failing-"));
    metrics.within(|| {
        for number in 0..10_000 {
            finish(&record(Some("openai"), &format!("gpt-{number}"), Outcome::Ok));
        }
    });
    let page = metrics.render();
    assert_eq!(series_of(&page, "mlx_manager_requests_total"), before + 100);
    assert_eq!(
        series_of(&page, "gen_ai_client_operation_duration_seconds_count"),
        101 + 1,
        "100 names, and `_other` well and failed"
    );
    let rest = r#"mlx_manager_requests_total{api="chat_completions",provider="openai",model="_other",stream="true",outcome="ok"}"#;
    assert_eq!(sample(&page, rest), 9_900.0, "none is lost");
    metrics.within(|| finish(&record(Some("mlx"), "demo", Outcome::Ok)));
    let demo =
        r#"mlx_manager_requests_total{api="chat_completions",provider="mlx",model="demo",stream="true",outcome="ok"}"#;
    assert_eq!(sample(&metrics.render(), demo), 1.0, "configured names are not crowded out");
}

#[test]
fn what_the_configuration_names_leaves_room_for_what_requests_bring() {
    let targets = || ["openai", "anthropic"].map(|provider| Target { provider: provider.into(), model: None }).to_vec();
    let named = (0..200).map(|number| Route {
        model: format!("named-{number}"),
        targets: targets(),
        priority: None,
        retry_budget: RetryBudget::default(),
    });
    let routes: Vec<_> = named
        .chain([Route {
            model: "gpt-*".into(),
            targets: targets(),
            priority: None,
            retry_budget: RetryBudget::default(),
        }])
        .collect();
    let metrics = metrics_of(&routes, Limits::default(), None);
    assert!(series_of(&metrics.render(), "mlx_manager_requests_total") > Limits::default().series_per_metric);
    metrics.within(|| {
        for _ in 0..3 {
            finish(&record(Some("openai"), "gpt-4o", Outcome::Ok));
        }
    });
    let page = metrics.render();
    let series = r#"mlx_manager_requests_total{api="chat_completions",provider="openai",model="gpt-4o",stream="true",outcome="ok"}"#;
    assert_eq!(sample(&page, series), 3.0);
    let foreign = page.lines().filter(|line| line.contains(r#"api="messages",provider="openai",model="named-7""#));
    assert_eq!(foreign.count(), 2, "a provider can only refuse what comes by the other API");
}

#[test]
fn names_that_deceive_or_look_like_keys_are_not_learned() {
    let metrics = metrics_with(Limits::default(), None);
    for name in [
        "gpt-\u{1b}[31mred",
        "gpt-\0",
        "gpt-\nsk-abcdefghijklmnopqrst",
        "gpt-sk-abcdefghijklmnopqrst",
        r"gpt-\u{1b}[31mred",
    ] {
        metrics.within(|| finish(&record(Some("openai"), name, Outcome::Ok)));
    }
    let page = metrics.render();
    assert!(!page.contains("red") && !page.contains("sk-") && !page.contains(['\0', '\u{1b}']));
    let rest = r#"mlx_manager_requests_total{api="chat_completions",provider="openai",model="_other",stream="true",outcome="ok"}"#;
    assert_eq!(sample(&page, rest), 5.0);
}

#[test]
fn series_beyond_the_cap_are_counted() {
    let limits = Limits { series_per_metric: 300, ..Limits::default() };
    let metrics = metrics_with(limits, None);
    let lines = lines_of(|| {
        metrics.within(|| {
            for port in 0..310 {
                event::AttemptFinished {
                    provider: "openai",
                    address: "host",
                    port,
                    status: Some(200),
                    error_type: None,
                    duration: Duration::from_millis(1),
                }
                .emit();
            }
        });
    });
    let warnings: Vec<_> = lines.iter().filter(|line| line.level == tracing::Level::WARN).collect();
    assert_eq!(warnings.len(), 1, "it is said once: {warnings:?}");
    assert_eq!(warnings[0].fields["metric"], r#""http_client_request_duration_seconds""#);
    let page = metrics.render();
    assert_eq!(series_of(&page, "http_client_request_duration_seconds_count"), 300);
    let overflow = r#"mlx_manager_metric_series_dropped_total{metric="http_client_request_duration_seconds"}"#;
    assert_eq!(sample(&page, overflow), 10.0);
}

#[test]
fn a_star_in_a_target_is_no_model() {
    let target = |model: &str| vec![Target { provider: "openai".into(), model: Some(model.into()) }];
    let routes = [("groq/llama", "*"), ("groq/*", "*"), ("gpt-*", "my-*"), ("m", "other")].map(|(model, asked)| {
        Route { model: model.into(), targets: target(asked), priority: None, retry_budget: RetryBudget::default() }
    });
    let page = metrics_of(&routes, Limits::default(), None).render();
    let asked = |model: &str| page.contains(&format!(r#"gen_ai_request_model="{model}""#));
    assert!(asked("llama") && asked("other") && asked("_other"));
    assert!(!asked("*") && !asked("my-*"), "{page}");
}
