//! Providers: what they answer, what it costs, and what happens when they don't.

use super::panel::{Dashboard, Panel, Row, quantile, query};

pub(super) const CLOUD: Dashboard = Dashboard {
    name: "cloud",
    title: "mlx-manager: cloud providers",
    description: "Latency, tokens and cost per provider; retries, fallbacks, circuit breakers and rate limits.",
    rows: &[GLANCE, PROVIDERS, TOKENS, CALLS, RESILIENCE],
};

const GLANCE: Row = Row {
    title: "At a glance",
    panels: &[
        Panel {
            title: "Calls",
            description: "Physical calls to providers per second; every retry is one more.",
            unit: "reqps",
            spans: "kind=client && span.http.request.method=\"POST\"",
            queries: &[query("", "sum(rate(http_client_request_duration_seconds_count{$daemon}[$rate]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Failed calls",
            description: "Share of physical calls that failed or were answered with a status of 400 and more.",
            unit: "percentunit",
            max: Some(1.0),
            spans: "kind=client && status=error",
            queries: &[query(
                "",
                r#"sum(rate(http_client_request_duration_seconds_count{$daemon,error_type!=""}[$rate])) / (sum(rate(http_client_request_duration_seconds_count{$daemon}[$rate])) > 0)"#,
            )],
            ..Panel::STAT
        },
        Panel {
            title: "Retries",
            description: "Calls that were tried again, per second.",
            unit: "reqps",
            spans: "span.http.request.resend_count > 0",
            queries: &[query("", "sum(rate(mlx_manager_retries_total{$daemon}[$rate]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Fallbacks",
            description: "Requests that moved on to the next target of their route, per second.",
            unit: "reqps",
            queries: &[query("", "sum(rate(mlx_manager_fallbacks_total{$daemon}[$rate]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Open breakers",
            description: "Providers of which a model is left alone because it failed too often.",
            queries: &[query("", "count(mlx_manager_breaker_state{$daemon} > 1) or vector(0)")],
            ..Panel::STAT
        },
        Panel {
            title: "Cost, 1 h",
            description: "Price of the last hour's calls. A model without a known price adds nothing.",
            unit: "currencyUSD",
            spans: "span.operation.cost > 0",
            queries: &[query("", "sum(increase(mlx_manager_cost_usd_total{$daemon}[1h]))")],
            ..Panel::STAT
        },
    ],
};

const PROVIDERS: Row = Row {
    title: "Per provider",
    panels: &[
        Panel {
            title: "Requests by provider",
            description: "Requests whose last target was this provider, by how they ended.",
            unit: "reqps",
            queries: &[query(
                "{{provider}} {{outcome}}",
                r#"sum by (provider, outcome) (rate(mlx_manager_requests_total{$daemon,provider!~"mlx|_none"}[$rate])) > 0"#,
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Duration, cloud",
            description: "From a provider's call to the last byte of its answer, or its failure.",
            unit: "s",
            spans: r#"kind=client && span.gen_ai.operation.name="chat""#,
            queries: &[
                quantile(0.5, "gen_ai_client_operation_duration_seconds", "mlx_manager_provider"),
                quantile(0.95, "gen_ai_client_operation_duration_seconds", "mlx_manager_provider"),
                quantile(0.99, "gen_ai_client_operation_duration_seconds", "mlx_manager_provider"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Time to first chunk, cloud",
            description: "From a provider's call to the first generated content.",
            unit: "s",
            spans: r#"kind=client && span.gen_ai.operation.name="chat""#,
            queries: &[
                quantile(0.5, "gen_ai_client_operation_time_to_first_chunk_seconds", "mlx_manager_provider"),
                quantile(0.95, "gen_ai_client_operation_time_to_first_chunk_seconds", "mlx_manager_provider"),
                quantile(0.99, "gen_ai_client_operation_time_to_first_chunk_seconds", "mlx_manager_provider"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Time per chunk, cloud",
            description: "Mean time between two chunks of a streamed answer.",
            unit: "s",
            spans: r#"kind=client && span.gen_ai.operation.name="chat""#,
            queries: &[
                quantile(0.5, "gen_ai_client_operation_time_per_output_chunk_seconds", "mlx_manager_provider"),
                quantile(0.95, "gen_ai_client_operation_time_per_output_chunk_seconds", "mlx_manager_provider"),
            ],
            ..Panel::LINES
        },
    ],
};

const TOKENS: Row = Row {
    title: "Tokens and cost",
    panels: &[
        Panel {
            title: "Tokens by provider",
            description: "Input and output tokens per second, cached and reasoning ones included.",
            unit: "suffix: tok/s",
            queries: &[
                query(
                    "{{mlx_manager_provider}} input",
                    "sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_input_tokens_total{$daemon}[$rate]))",
                ),
                query(
                    "{{mlx_manager_provider}} output",
                    "sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_output_tokens_total{$daemon}[$rate]))",
                ),
            ],
            ..Panel::AREAS
        },
        Panel {
            title: "Prompt caches of providers",
            description: "Share of input tokens that came from a provider's cache, and that were written to it.",
            unit: "percentunit",
            max: Some(1.0),
            queries: &[
                query(
                    "{{mlx_manager_provider}} read",
                    "sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_cache_read_input_tokens_total{$daemon}[$rate])) / (sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_input_tokens_total{$daemon}[$rate])) > 0)",
                ),
                query(
                    "{{mlx_manager_provider}} written",
                    "sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_cache_write_input_tokens_total{$daemon}[$rate])) / (sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_input_tokens_total{$daemon}[$rate])) > 0)",
                ),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Reasoning",
            description: "Share of output tokens that went into reasoning.",
            unit: "percentunit",
            max: Some(1.0),
            queries: &[query(
                "{{mlx_manager_provider}}",
                "sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_reasoning_output_tokens_total{$daemon}[$rate])) / (sum by (mlx_manager_provider) (rate(gen_ai_client_inference_usage_output_tokens_total{$daemon}[$rate])) > 0)",
            )],
            ..Panel::LINES
        },
        Panel {
            title: "Tokens of one call",
            description: "How large prompts and answers are.",
            unit: "suffix: tok",
            queries: &[
                quantile(0.5, "gen_ai_client_token_usage", "gen_ai_token_type"),
                quantile(0.95, "gen_ai_client_token_usage", "gen_ai_token_type"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Cost per hour by provider",
            description: "Price of the last hour's calls, as far as it is known.",
            unit: "currencyUSD",
            spans: "span.operation.cost > 0",
            queries: &[query("{{provider}}", "sum by (provider) (increase(mlx_manager_cost_usd_total{$daemon}[1h]))")],
            ..Panel::AREAS
        },
    ],
};

const CALLS: Row = Row {
    title: "Calls",
    panels: &[
        Panel {
            title: "Calls to providers",
            description: "Physical calls by host and answer; a call without a status got none.",
            unit: "reqps",
            queries: &[query(
                "{{server_address}}:{{server_port}} {{status_code}}",
                "sum by (server_address, server_port, status_code) (rate(http_client_request_duration_seconds_count{$daemon}[$rate])) > 0",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Failed calls by kind",
            description: "Physical calls that failed: a status of 400 and more, or connect, timeout, body, decode.",
            unit: "reqps",
            spans: "kind=client && status=error",
            queries: &[query(
                "{{server_address}}:{{server_port}} {{error_type}}",
                r#"sum by (server_address, server_port, error_type) (rate(http_client_request_duration_seconds_count{$daemon,error_type!=""}[$rate]))"#,
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Unreadable frames",
            description: "Frames of streams that reached their callers without being understood here.",
            unit: "suffix: frames/s",
            queries: &[query(
                "{{provider}}",
                "sum by (provider) (rate(mlx_manager_observer_unreadable_total{$daemon}[$rate]))",
            )],
            ..Panel::LINES
        },
        Panel {
            title: "Time to answer",
            description: "From a call's start to the first content of a streamed answer, the end of another, or its failure.",
            unit: "s",
            queries: &[
                quantile(0.5, "http_client_request_duration_seconds", "server_address"),
                quantile(0.99, "http_client_request_duration_seconds", "server_address"),
            ],
            ..Panel::LINES
        },
    ],
};

const RESILIENCE: Row = Row {
    title: "Retries, fallbacks, breakers, rate limits",
    panels: &[
        Panel {
            title: "Retries by reason",
            description: "Calls that were tried again.",
            unit: "reqps",
            spans: "span.http.request.resend_count > 0",
            queries: &[query(
                "{{provider}} {{reason}}",
                "sum by (provider, reason) (rate(mlx_manager_retries_total{$daemon}[$rate])) > 0",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Fallbacks by target",
            description: "Requests that moved on to the next target of their route.",
            unit: "reqps",
            queries: &[query(
                "{{from}} to {{to}}",
                "sum by (from, to) (rate(mlx_manager_fallbacks_total{$daemon}[$rate]))",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Circuit breakers",
            description: "The worst among a provider's models: an open breaker lets no call pass; a half open one lets one pass, to see.",
            max: Some(2.0),
            words: &[("0", "closed"), ("1", "half open"), ("2", "open")],
            queries: &[query("{{provider}}", "max by (provider) (mlx_manager_breaker_state{$daemon})")],
            ..Panel::LINES
        },
        Panel {
            title: "Rate limits",
            description: "What providers said is left of their limits. At 0 they refuse.",
            queries: &[query(
                "{{provider}} {{resource}}",
                "min by (provider, resource) (mlx_manager_ratelimit_remaining{$daemon})",
            )],
            ..Panel::LINES
        },
    ],
};
