//! The log lines: their targets, levels and fields.

use std::{collections::BTreeMap, time::Duration};

use mlx_manager_llm::{Api, Context, Error, ErrorKind, FinishReason, Outcome, Record, Usage, UsageSource};
use tracing::{Level, Span};

use super::{HttpRequestFinished, RequestFinished};
use crate::{route::Kind, testing::lines_of};

fn record(outcome: Outcome) -> Record {
    Record {
        trace_id: Some("trace".into()),
        requested_model: "claude".into(),
        provider: Some("anthropic".into()),
        response_model: Some("claude-1".into()),
        stream: true,
        outcome,
        status: 504,
        usage: Usage { input: Some(1), output: Some(2), cache_read: Some(3), cache_write: Some(4), ..Usage::default() },
        usage_source: Some(UsageSource::Partial),
        cost_usd: Some(0.5),
        queue: Some(Duration::from_millis(6)),
        time_to_first_token: Some(Duration::from_millis(7)),
        duration: Duration::from_millis(8),
        finish_reason: Some(FinishReason::Length),
        error_kind: Some("timeout_idle"),
        error_message: Some("the provider was silent".into()),
        key_id: Some("key".into()),
        retries: 9,
        ..Record::begin(&Context::new("request", Span::none()), Api::Messages)
    }
}

#[test]
fn a_requests_line_says_everything_the_record_knows() {
    let error = Error::new(ErrorKind::TimeoutIdle, "too slow").with_source(std::io::Error::other("the real cause"));
    let record = record(Outcome::TimeoutIdle);
    let lines = lines_of(|| RequestFinished { record: &record, error: Some(&error) }.emit());
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((line.target.as_str(), line.level), ("mlx_manager::server::dispatch", Level::ERROR));
    let expected = BTreeMap::from([
        ("message", "request finished"),
        ("request_id", "\"request\""),
        ("api", "\"messages\""),
        ("provider", "\"anthropic\""),
        ("model", "\"claude\""),
        ("response_model", "\"claude-1\""),
        ("stream", "true"),
        ("outcome", "\"timeout_idle\""),
        ("status", "504"),
        ("input_tokens", "1"),
        ("output_tokens", "2"),
        ("cache_read_tokens", "3"),
        ("cache_write_tokens", "4"),
        ("usage_source", "\"partial\""),
        ("cost_usd", "0.5"),
        ("queue_ms", "6.0"),
        ("ttft_ms", "7.0"),
        ("duration_ms", "8.0"),
        ("retries", "9"),
        ("finish_reason", "\"length\""),
        ("error_kind", "\"timeout_idle\""),
        ("error", "too slow <- the real cause"),
    ]);
    let found: BTreeMap<_, _> = line.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(found, expected, "the unknown reasoning count is left out");
}

#[test]
fn the_level_says_whose_fault_it_is() {
    for &outcome in Outcome::ALL {
        let record = record(outcome);
        let lines = lines_of(|| RequestFinished { record: &record, error: None }.emit());
        let expected = match outcome {
            Outcome::Ok | Outcome::ClientAbort | Outcome::InvalidRequest | Outcome::NotFound => Level::INFO,
            Outcome::Shutdown
            | Outcome::Unauthorized
            | Outcome::Forbidden
            | Outcome::RateLimited
            | Outcome::Shed
            | Outcome::Unavailable => Level::WARN,
            _ => Level::ERROR,
        };
        assert_eq!(lines[0].level, expected, "{outcome:?}");
    }
}

#[test]
fn a_listeners_line_speaks_for_the_component_of_its_route() {
    let finished_with = |status, kind, error_type| {
        let duration = Duration::from_millis(1);
        let lines = lines_of(|| {
            let (method, route) = ("POST", "/v1/anything");
            HttpRequestFinished { method, route, kind, status, error_type, duration }.emit();
        });
        (lines[0].target.clone(), lines[0].level)
    };
    let finished = |kind, error_type| finished_with(Some(500), kind, error_type);
    let inference = ("mlx_manager::server::http".to_owned(), Level::DEBUG);
    assert_eq!(finished(Kind::Inference, Some("500")), inference, "its failure has a line of its own");
    assert_eq!(finished(Kind::Question, Some("500")), ("mlx_manager::http".to_owned(), Level::WARN));
    assert_eq!(finished(Kind::Question, None), ("mlx_manager::http".to_owned(), Level::DEBUG));
    assert_eq!(
        finished_with(Some(503), Kind::Probe, Some("503")),
        ("mlx_manager::http".to_owned(), Level::DEBUG),
        "an answer"
    );
}
