//! The page and the OTLP export, made by the events themselves. The global recorder is per process, so these record
//! within a recorder of their own.

mod limits;
mod otlp;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mlx_manager_config::{
    Auth, Breaker, Calls, Color, Format, KeepAlive, Level, LocalConfig, LocalModel, LogConfig, MemoryLimit, ModelPath,
    OtlpConfig, OtlpKind, Protocol, Provider, ProviderKind, RetryBudget, Route, Send, Signal, Sink, SinkKind, Spool,
    Target, Timezone, Unpack,
};
use mlx_manager_llm::{Api, Context, FinishReason, Inference, Outcome, Record, Usage, UsageSource};
use mlx_manager_signal::{event, metric::name, redact::ModelLabel, route::Kind, testing::lines_of};
use tracing::Span;

use super::{Known, Metrics, Settings, limit::Limits};
use crate::build::{Build, TEST_BUILD};

fn metrics_with(limits: Limits, meter_provider: Option<opentelemetry_sdk::metrics::SdkMeterProvider>) -> Metrics {
    let target = |provider: &str| Target { provider: provider.into(), model: None };
    let routes = [
        Route {
            model: "gpt-*".into(),
            targets: vec![target("openai"), target("local")],
            priority: None,
            retry_budget: RetryBudget::default(),
        },
        Route {
            model: "claude-known".into(),
            targets: vec![target("anthropic")],
            priority: None,
            retry_budget: RetryBudget::default(),
        },
    ];
    metrics_of(&routes, limits, meter_provider)
}

fn metrics_of(
    routes: &[Route],
    limits: Limits,
    meter_provider: Option<opentelemetry_sdk::metrics::SdkMeterProvider>,
) -> Metrics {
    let local = LocalConfig {
        models_dir: "models".into(),
        hub_dir: None,
        cache_dir: "cache".into(),
        default_model: Some("demo".into()),
        memory_limit: MemoryLimit::Share(0.75),
        prefix_cache: 512 << 20,
        prefix_disk: 0,
        preload: Vec::new(),
        pin: Vec::new(),
        max_models: None,
        load_timeout: Duration::from_secs(300),
        unpack: Unpack::Auto,
        keep_alive: KeepAlive::Forever,
        max_batch: 16,
        queue: 256,
        queue_tokens: 1_000_000,
        priority: Default::default(),
        models: vec![LocalModel { name: "demo".into(), path: ModelPath::BuiltinDemo, keep_alive: None }],
    };
    let providers = [provider("openai", ProviderKind::OpenAi), provider("anthropic", ProviderKind::Anthropic)];
    let log = LogConfig {
        level: Level::Info,
        directives: Vec::new(),
        targets: Vec::new(),
        dir: "logs".into(),
        timezone: Timezone::Utc,
        failure_story: false,
        sinks: vec![Sink {
            name: "console".into(),
            kind: SinkKind::Console { color: Color::Auto },
            format: Format::Text,
            include: Vec::new(),
            exclude: Vec::new(),
            level: Level::Trace,
        }],
    };
    let otlp = [OtlpConfig {
        name: "collector".into(),
        kind: OtlpKind::Otlp,
        endpoint: "http://127.0.0.1:4318".into(),
        protocol: Protocol::HttpProtobuf,
        token: Default::default(),
        headers: Vec::new(),
        send: Send::Always,
        signals: vec![Signal::Traces, Signal::Metrics],
        timeout: Duration::from_secs(10),
        spool: Some(Spool { dir: "spool".into(), size: 1 }),
    }];
    let known = Known { local: &local, providers: &providers, routes, log: &log, otlp: &otlp };
    let build = Build { commit: "abc", ..TEST_BUILD };
    Metrics::new(Settings { build, known, meter_provider }, limits).unwrap()
}

fn provider(name: &str, kind: ProviderKind) -> Provider {
    Provider {
        name: name.into(),
        kind,
        base_url: "http://127.0.0.1:1".into(),
        api_key: None,
        auth: Auth::Bearer,
        api_key_path: String::new(),
        send_trace_context: false,
        calls: Calls {
            connect_timeout: Duration::from_secs(1),
            first_token_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            total_timeout: Duration::from_secs(1),
            retries: 0,
            breaker: Breaker { failures: 1, open: Duration::from_secs(1) },
        },
    }
}

fn record(provider: Option<&str>, model: &str, outcome: Outcome) -> Record {
    Record {
        requested_model: model.into(),
        provider: provider.map(Into::into),
        stream: true,
        outcome,
        status: 200,
        usage: Usage {
            input: Some(100),
            output: Some(41),
            cache_read: Some(30),
            cache_write: Some(20),
            reasoning: Some(7),
            ..Usage::default()
        },
        usage_source: Some(UsageSource::Provider),
        cost_usd: Some(0.0125),
        queue: Some(Duration::from_millis(3)),
        time_to_first_token: Some(Duration::from_millis(250)),
        generation: Some(Duration::from_millis(800)),
        chunks: 21,
        duration: Duration::from_millis(1500),
        finish_reason: Some(FinishReason::Stop),
        inference: Some(Inference {
            system: match provider {
                Some("mlx") => "mlx",
                Some("anthropic") => "anthropic",
                _ => "openai",
            },
            model: model.into(),
            duration: Duration::from_millis(1200),
            time_to_first_token: Some(Duration::from_millis(150)),
        }),
        ..Record::begin(&Context::new("id", Span::none()), Api::ChatCompletions)
    }
}

fn finish(record: &Record) {
    event::RequestFinished { record, error: None }.emit();
}

/// The value of the one sample that begins so, labels included.
fn sample(page: &str, series: &str) -> f64 {
    let lines: Vec<&str> =
        page.lines().filter(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' '))).collect();
    assert_eq!(lines.len(), 1, "{series}: {lines:?}");
    lines[0].rsplit(' ').next().unwrap().parse().unwrap()
}

/// The sum of a family's samples.
fn total(page: &str, name: &str) -> f64 {
    let samples = page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Series of a family, a histogram's counted by its `_count`.
fn series_of(page: &str, name: &str) -> usize {
    page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))).count()
}

#[test]
fn a_finished_cloud_request_counts_what_its_record_says() {
    let metrics = metrics_with(Limits::default(), None);
    metrics.within(|| finish(&record(Some("anthropic"), "claude-known", Outcome::Ok)));
    let page = metrics.render();
    let request = r#"{api="chat_completions",provider="anthropic",model="claude-known",stream="true",outcome="ok"}"#;
    assert_eq!(sample(&page, &format!("mlx_manager_requests_total{request}")), 1.0);
    for (kind, tokens) in
        [("input", 100.0), ("output", 41.0), ("cache_read", 30.0), ("cache_write", 20.0), ("reasoning", 7.0)]
    {
        let series = format!(r#"mlx_manager_tokens_total{{provider="anthropic",model="claude-known",type="{kind}"}}"#);
        assert_eq!(sample(&page, &series), tokens);
    }
    let cost = r#"mlx_manager_cost_usd_total{provider="anthropic",model="claude-known"}"#;
    assert_eq!(sample(&page, cost), 0.0125);
    let labels = r#"{gen_ai_operation_name="chat",gen_ai_provider_name="anthropic",mlx_manager_provider="anthropic",gen_ai_request_model="claude-known"}"#;
    assert_eq!(sample(&page, &format!("gen_ai_client_operation_duration_seconds_sum{labels}")), 1.2);
    assert_eq!(sample(&page, &format!("gen_ai_client_operation_time_to_first_chunk_seconds_sum{labels}")), 0.15);
    // 800 ms between 21 chunks are 20 pauses.
    assert_eq!(sample(&page, &format!("gen_ai_client_operation_time_per_output_chunk_seconds_sum{labels}")), 0.04);
    assert_eq!(sample(&page, &format!("gen_ai_client_inference_duration_seconds_sum{labels}")), 1.2);
    assert_eq!(sample(&page, &format!("gen_ai_client_inference_time_to_first_chunk_seconds_sum{labels}")), 0.15);
    assert_eq!(sample(&page, &format!("gen_ai_client_inference_time_per_output_chunk_seconds_sum{labels}")), 0.04);
    assert_eq!(sample(&page, &format!("gen_ai_client_inference_operation_output_tokens_sum{labels}")), 41.0);
    let unknown = labels.replace('}', r#",gen_ai_token_modality="unknown"}"#);
    for (kind, tokens) in [
        ("input_tokens", 100.0),
        ("output_tokens", 41.0),
        ("cache_read_input_tokens", 30.0),
        ("cache_write_input_tokens", 20.0),
        ("reasoning_output_tokens", 7.0),
    ] {
        assert_eq!(sample(&page, &format!("gen_ai_client_inference_usage_{kind}_total{unknown}")), tokens);
    }
    let used = labels.replace('}', r#",gen_ai_token_type="input"}"#);
    assert_eq!(sample(&page, &format!("gen_ai_client_token_usage_sum{used}")), 100.0);
    assert_eq!(
        total(&page, "gen_ai_server_request_duration_seconds_count"),
        0.0,
        "a cloud request is not the engine's"
    );
}

#[test]
fn what_is_measured_again_goes_to_whichever_registry_is_in_effect() {
    let two = [metrics_with(Limits::default(), None), metrics_with(Limits::default(), None)];
    for metrics in two.iter().chain(&two[..1]) {
        metrics.within(|| finish(&record(Some("anthropic"), "claude-known", Outcome::Ok)));
    }
    let request = r#"mlx_manager_requests_total{api="chat_completions",provider="anthropic",model="claude-known",stream="true",outcome="ok"}"#;
    assert_eq!(two.map(|metrics| sample(&metrics.render(), request)), [2.0, 1.0]);
}

#[test]
fn a_finished_local_request_is_measured_as_the_engines() {
    let metrics = metrics_with(Limits::default(), None);
    metrics.within(|| finish(&record(Some("mlx"), "demo", Outcome::Ok)));
    let page = metrics.render();
    let labels = r#"{gen_ai_operation_name="chat",gen_ai_provider_name="mlx",mlx_manager_provider="mlx",gen_ai_request_model="demo"}"#;
    assert_eq!(sample(&page, &format!("gen_ai_server_request_duration_seconds_sum{labels}")), 1.2);
    assert_eq!(sample(&page, &format!("gen_ai_server_time_to_first_token_seconds_sum{labels}")), 0.15);
    // 800 ms for 40 tokens after the first.
    assert_eq!(sample(&page, &format!("gen_ai_server_time_per_output_token_seconds_sum{labels}")), 0.02);
    let bucket = labels.replace('}', r#",le="0.25"}"#);
    assert_eq!(sample(&page, &format!("gen_ai_server_time_to_first_token_seconds_bucket{bucket}")), 1.0);
    assert!(!page.contains("gen_ai_client_operation_duration_seconds_count"));
}

#[test]
fn what_a_target_took_is_its_own_and_named_as_in_its_span() {
    let metrics = metrics_with(Limits::default(), None);
    let mut request = record(Some("backup"), "claude-known", Outcome::Ok);
    let inference = Inference {
        system: "anthropic",
        model: "demo".into(),
        duration: Duration::from_millis(400),
        time_to_first_token: Some(Duration::from_millis(30)),
    };
    request.inference = Some(inference.clone());
    let mut failed = record(Some("openai"), "claude-known", Outcome::ClientAbort);
    failed.inference = Some(Inference { duration: Duration::from_millis(1100), ..inference });
    metrics.within(|| {
        event::InferenceFailedOver { record: &failed, kind: "upstream_error" }.emit();
        finish(&request);
    });
    let page = metrics.render();
    let of = |provider: &str, error: &str| {
        format!(
            r#"{{gen_ai_operation_name="chat",gen_ai_provider_name="anthropic",mlx_manager_provider="{provider}",gen_ai_request_model="demo"{error}}}"#
        )
    };
    let answered = of("backup", "");
    assert_eq!(sample(&page, &format!("gen_ai_client_operation_duration_seconds_sum{answered}")), 0.4);
    assert_eq!(sample(&page, &format!("gen_ai_client_operation_time_to_first_chunk_seconds_sum{answered}")), 0.03);
    let failed = of("openai", r#",error_type="upstream_error""#);
    assert_eq!(sample(&page, &format!("gen_ai_client_operation_duration_seconds_sum{failed}")), 1.1);
    assert_eq!(sample(&page, &format!("gen_ai_client_inference_duration_seconds_sum{failed}")), 1.1);
    assert_eq!(total(&page, "mlx_manager_requests_total"), 1.0, "it was one request");
}

#[test]
fn what_is_unknown_is_not_counted_as_nothing() {
    let metrics = metrics_with(Limits::default(), None);
    let mut unknown = record(Some("openai"), "gpt-x", Outcome::ClientAbort);
    unknown.usage = Usage::default();
    unknown.cost_usd = None;
    unknown.time_to_first_token = None;
    unknown.inference.as_mut().unwrap().time_to_first_token = None;
    unknown.generation = None;
    unknown.chunks = 0;
    metrics.within(|| finish(&unknown));
    let page = metrics.render();
    assert!(!page.contains("gen_ai_client_token_usage_sum"));
    assert!(!page.contains("time_to_first_chunk_seconds_sum"));
    assert!(!page.contains("time_per_output_chunk_seconds_sum"));
    let aborted = r#"gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="openai",mlx_manager_provider="openai",gen_ai_request_model="_other"}"#;
    assert_eq!(sample(&page, aborted), 1.0, "a client that left is no error");
}

#[test]
fn a_refused_request_has_no_provider_and_no_model() {
    let metrics = metrics_with(Limits::default(), None);
    let mut refused = record(None, "", Outcome::InvalidRequest);
    refused.stream = false;
    metrics.within(|| finish(&refused));
    let series = r#"mlx_manager_requests_total{api="chat_completions",provider="_none",model="_other",stream="false",outcome="invalid_request"}"#;
    assert_eq!(sample(&metrics.render(), series), 1.0);
}

#[test]
fn closed_series_exist_before_anything_happens() {
    let page = metrics_with(Limits::default(), None).render();
    for series in [
        r#"mlx_manager_requests_total{api="chat_completions",provider="mlx",model="demo",stream="true",outcome="ok"}"#,
        r#"mlx_manager_requests_total{api="messages",provider="openai",model="_other",stream="false",outcome="invalid_request"}"#,
        r#"mlx_manager_requests_total{api="chat_completions",provider="openai",model="_other",stream="false",outcome="timeout_idle"}"#,
        r#"mlx_manager_requests_total{api="messages",provider="anthropic",model="claude-known",stream="false",outcome="ok"}"#,
        r#"mlx_manager_requests_total{api="messages",provider="_none",model="_other",stream="false",outcome="not_found"}"#,
        r#"mlx_manager_tokens_total{provider="mlx",model="demo",type="output"}"#,
        r#"mlx_manager_cost_usd_total{provider="openai",model="_other"}"#,
        r#"mlx_manager_route_decisions_total{rule="gpt-*"}"#,
        r#"mlx_manager_retries_total{provider="openai",reason="connect"}"#,
        r#"mlx_manager_fallbacks_total{from="openai",to="mlx"}"#,
        r#"mlx_manager_breaker_state{provider="openai"}"#,
        r#"mlx_manager_model_loaded{model="demo"}"#,
        r#"mlx_manager_audit_rows_dropped_total{reason="queue_full"}"#,
        r#"mlx_manager_log_records_dropped_total{sink="console",level="info"}"#,
        r#"mlx_manager_telemetry_dropped_total{signal="traces",destination="collector"}"#,
        r#"mlx_manager_metric_series_dropped_total{metric="mlx_manager_requests_total"}"#,
        "mlx_manager_queue_depth",
        r#"mlx_manager_requests_total{api="messages",provider="_none",model="demo",stream="false",outcome="invalid_request"}"#,
        r#"mlx_manager_requests_total{api="messages",provider="mlx",model="_other",stream="true",outcome="engine_error"}"#,
        r#"mlx_manager_tokens_total{provider="mlx",model="_other",type="output"}"#,
        r#"mlx_manager_overhead_seconds_count{phase="decode"}"#,
        "mlx_manager_queue_wait_seconds_count",
        r#"mlx_manager_prefill_seconds_count{model="demo"}"#,
        r#"mlx_manager_decode_tokens_per_second_count{model="demo"}"#,
        r#"mlx_manager_kv_cache_bytes{model="demo"}"#,
        r#"http_server_active_requests{method="POST",route="/v1/messages"}"#,
        r#"gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="mlx",mlx_manager_provider="mlx",gen_ai_request_model="demo"}"#,
    ] {
        assert_eq!(sample(&page, series), 0.0, "{series}");
    }
    let missing: Vec<_> = name::catalogue()
        .filter(|(_, definition)| !page.contains(&format!("# TYPE {} ", definition.name)))
        .map(|(_, definition)| definition.name)
        .collect();
    let clients = |name: &&str| name.starts_with("gen_ai_client_");
    let rest: Vec<_> = missing.iter().filter(|name| !clients(name)).collect();
    assert_eq!(
        rest,
        [
            &"mlx_manager_ratelimit_remaining",
            &"http_server_request_duration_seconds",
            &"http_client_request_duration_seconds",
            &"db_client_operation_duration_seconds"
        ],
        "docs/metrics.md says which"
    );
    assert_eq!(sample(&page, r#"mlx_manager_build_info{version="1.2.3",commit="abc",engine="mlx"}"#), 1.0);
    assert!(sample(&page, "process_resident_memory_bytes") > 1e6);
    assert!(!page.contains("mlx_manager_ratelimit_remaining{"), "0 left would be a lie");
}

#[test]
fn model_of_the_catalogue_has_its_name_before_it_ever_answered() {
    let metrics = metrics_with(Limits::default(), None);
    metrics.add_local_model("org/found");
    for model in ["org/found", "org/unheard-of"] {
        metrics.within(|| finish(&record(Some("mlx"), model, Outcome::EngineError)));
    }
    let page = metrics.render();
    for model in ["org/found", "_other"] {
        let series = format!(
            r#"mlx_manager_requests_total{{api="chat_completions",provider="mlx",model="{model}",stream="true",outcome="engine_error"}}"#
        );
        assert_eq!(sample(&page, &series), 1.0, "{model}");
    }
}

#[test]
fn every_failed_write_counts_and_one_is_an_error_line() {
    let metrics = metrics_with(Limits::default(), None);
    let error = std::io::Error::other("locked");
    let lines = lines_of(|| {
        metrics.within(|| {
            for again in [false, true, true] {
                event::AuditWriteError { error: &error, again }.emit();
            }
        });
    });
    assert_eq!(sample(&metrics.render(), "mlx_manager_audit_write_errors_total"), 3.0);
    assert_eq!(lines.iter().filter(|line| line.level == tracing::Level::ERROR).count(), 1);
}

#[test]
fn active_requests_return_to_zero() {
    let metrics = metrics_with(Limits::default(), None);
    let series = r#"http_server_active_requests{method="POST",route="/v1/messages"}"#;
    let started = || event::HttpRequestStarted { method: "POST", route: "/v1/messages", kind: Kind::Inference }.emit();
    let finished = |status| {
        event::HttpRequestFinished {
            method: "POST",
            route: "/v1/messages",
            kind: Kind::Inference,
            status,
            error_type: None,
            duration: Duration::from_millis(20),
        }
        .emit();
    };
    metrics.within(started);
    metrics.within(started);
    assert_eq!(sample(&metrics.render(), series), 2.0);
    metrics.within(|| finished(Some(200)));
    metrics.within(|| finished(None));
    let page = metrics.render();
    assert_eq!(sample(&page, series), 0.0);
    let answered =
        r#"http_server_request_duration_seconds_count{method="POST",route="/v1/messages",status_code="200"}"#;
    assert_eq!(sample(&page, answered), 1.0);
    assert_eq!(sample(&page, r#"http_server_request_duration_seconds_count{method="POST",route="/v1/messages"}"#), 1.0);
}

#[test]
fn totals_counted_elsewhere_are_not_added_up() {
    let metrics = metrics_with(Limits::default(), None);
    metrics.add_poller(|| {
        event::LogSinkTotals {
            sink: "console",
            written: &[(tracing::Level::INFO, 5)],
            dropped: &[(tracing::Level::INFO, 2)],
            io_errors: 1,
        }
        .emit();
        event::ExportTotals { destination: "collector", signal: Signal::Traces, exported: 9, dropped: 3, failed: 1 }
            .emit();
    });
    metrics.run_upkeep();
    let page = metrics.render();
    assert_eq!(sample(&page, r#"mlx_manager_log_records_written_total{sink="console",level="info"}"#), 5.0);
    assert_eq!(sample(&page, r#"mlx_manager_telemetry_exported_total{signal="traces",destination="collector"}"#), 9.0);
}

/// Every event there is, so that every metric has a series.
fn emit_everything() {
    let error = std::io::Error::other("away");
    for (provider, model) in [("mlx", "demo"), ("openai", "gpt-4")] {
        finish(&record(Some(provider), model, Outcome::Ok));
        let mut failed = record(Some(provider), model, Outcome::TimeoutIdle);
        failed.error_kind = Some("timeout_idle");
        event::RequestFinished { record: &failed, error: Some(&error) }.emit();
    }
    finish(&record(None, "?", Outcome::Unauthorized));
    event::InferenceFailedOver { record: &record(Some("openai"), "gpt-4", Outcome::ClientAbort), kind: "rate_limited" }
        .emit();
    let demo = ModelLabel::new("demo");
    event::RouteDecided { rule: "local", model: &demo, target: Some("local") }.emit();
    event::AttemptFinished {
        provider: "openai",
        address: "host",
        port: 443,
        status: None,
        error_type: Some("connect"),
        duration: Duration::from_millis(5),
    }
    .emit();
    event::AttemptRetried { provider: "openai", reason: "connect", attempt: 1, delay: Duration::ZERO }.emit();
    event::TargetFailedOver { from: "openai", to: "local", reason: "connect" }.emit();
    let (model, state) = (ModelLabel::new("gpt-4o"), event::BreakerState::Open);
    event::BreakerChanged { provider: "openai", model: &model, state, worst: state }.emit();
    event::FrameUnreadable { provider: "openai", is_first: true }.emit();
    event::RateLimitSeen { provider: "openai", resource: "tokens", remaining: 12.0 }.emit();
    event::ModelLoaded { model: "demo", bytes: 5, duration: Duration::from_millis(3), weights: "stored" }.emit();
    event::EngineMemory { model: "demo", kv_cache_bytes: 9 }.emit();
    event::ModelLoadError { model: "broken", folder: None, error: &error }.emit();
    event::QueueDepth(2).emit();
    event::QueueLeft { wait: Duration::from_millis(2), priority: Default::default() }.emit();
    event::PrefixLookedUp { model: "demo", prompt: 9, matched: 5, restored: 4, from_disk: 0, reason: "whole prompt" }
        .emit();
    event::PrefixDiskHeld(8).emit();
    event::PrefixWritten { model: "demo", bytes: 8, duration: Duration::from_millis(1) }.emit();
    event::PrefixRead { model: "demo", bytes: 8, duration: Duration::from_millis(1) }.emit();
    event::ModelLoading { model: "demo", bytes: 3, total: 6 }.emit();
    event::EngineMemoryHeld { weights: 1, kv_live: 2, prefix_cache: 3, allocator_cache: 4, other: 5 }.emit();
    event::RunningRequests(1).emit();
    event::Preempted { model: "demo", computed: 3 }.emit();
    event::StepFinished {
        model: "demo",
        decoded: 2,
        prefilled: 3,
        graph: Duration::from_micros(1),
        sample: Duration::from_micros(2),
        wait: Duration::from_millis(3),
        tell: Duration::from_micros(4),
    }
    .emit();
    event::TokenFollowed { model: "demo", gap: Duration::from_millis(4) }.emit();
    event::SequenceEnded { model: "demo", reason: "stop", prompt: 9, generated: 11 }.emit();
    event::PrefillFinished { model: "demo", tokens: 9, cached: 0, duration: Duration::from_millis(4) }.emit();
    event::DecodeFinished { model: "demo", tokens: 11, duration: Duration::from_secs(1) }.emit();
    event::ModelUnloaded { model: "demo", reason: "idle" }.emit();
    event::BodiesHeld(5).emit();
    event::HttpRequestStarted { method: "GET", route: "/health", kind: Kind::Probe }.emit();
    event::HttpRequestFinished {
        method: "GET",
        route: "/health",
        kind: Kind::Probe,
        status: Some(500),
        error_type: Some("500"),
        duration: Duration::from_millis(1),
    }
    .emit();
    event::AuditRowsWritten { rows: 3, duration: Duration::from_millis(2) }.emit();
    event::StatementFinished {
        system: "sqlite",
        operation: "INSERT",
        table: "requests",
        failed: true,
        duration: Duration::from_millis(2),
    }
    .emit();
    event::OverheadMeasured { phase: event::Phase::Decode, duration: Duration::from_micros(30) }.emit();
    event::AuditRowsDropped { rows: 4, reason: "queue_full" }.emit();
    event::AuditWriteError { error: &error, again: false }.emit();
    event::AuditQueueDepth(6).emit();
    event::LogSinkTotals { sink: "console", written: &[(tracing::Level::WARN, 1)], dropped: &[], io_errors: 0 }.emit();
    event::ExportTotals { destination: "collector", signal: Signal::Logs, exported: 1, dropped: 0, failed: 0 }.emit();
    event::SpoolSize { destination: "collector", bytes: 77 }.emit();
}

#[test]
fn the_enum_and_the_page_are_the_same() {
    let metrics = metrics_with(Limits::default(), None);
    metrics.within(emit_everything);
    let page = metrics.render();
    let types: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let helps: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')).collect();
    let expected: BTreeMap<&str, &str> = name::catalogue()
        .map(|(kind, definition)| {
            let kind = match kind {
                name::Kind::Counter => "counter",
                name::Kind::Gauge => "gauge",
                name::Kind::Histogram => "histogram",
            };
            (definition.name, kind)
        })
        .collect();
    assert_eq!(types, expected, "a name that nothing emits, one that is missing in ALL, or a summary");
    for (_, definition) in name::catalogue() {
        assert_eq!(helps.get(definition.name), Some(&definition.help));
        let allowed: BTreeSet<&str> = definition.labels.iter().map(|label| label.as_str()).chain(["le"]).collect();
        for line in page.lines().filter(|line| line.starts_with(definition.name)) {
            let Some((_, labels)) = line.split_once('{') else { continue };
            for label in labels.split("\",").filter_map(|label| label.split_once('=')) {
                assert!(allowed.contains(label.0), "{line} has an undeclared label");
                let known = name::Label::ALL.iter().find(|known| known.as_str() == label.0);
                let closed = known.and_then(|known| known.values());
                let value = label.1.split('"').nth(1).unwrap();
                assert!(closed.is_none_or(|values| values.contains(&value)), "{line}: {} can't be {value}", label.0);
            }
        }
        for bound in definition.buckets {
            assert!(page.contains(&format!("le=\"{bound}\"")), "{} lacks bucket {bound}", definition.name);
        }
    }
}

#[test]
fn names_are_distinct_in_both_worlds() {
    let count = name::catalogue().count();
    assert_eq!(name::catalogue().map(|(_, definition)| definition.name).collect::<BTreeSet<_>>().len(), count);
    assert_eq!(name::catalogue().map(|(_, definition)| definition.otlp_name).collect::<BTreeSet<_>>().len(), count);
    for (kind, definition) in name::catalogue() {
        assert_eq!(kind == name::Kind::Counter, definition.name.ends_with("_total"), "{}", definition.name);
        assert!(definition.buckets.is_sorted());
    }
}

#[test]
fn closed_sets_of_values_are_those_of_the_code() {
    let values = |label: name::Label| label.values().unwrap().to_vec();
    assert_eq!(values(name::Label::Outcome), Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect::<Vec<_>>());
    assert_eq!(values(name::Label::Api), Api::ALL.iter().map(|api| api.as_str()).collect::<Vec<_>>());
}
