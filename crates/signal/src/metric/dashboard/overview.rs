//! What everybody looks at first.

use super::panel::{Dashboard, Panel, Row, quantile, query};

pub(super) const OVERVIEW: Dashboard = Dashboard {
    name: "overview",
    title: "mlx-manager: overview",
    description: "Rate, errors, latency, tokens and cost of all inference requests.",
    rows: &[GLANCE, REQUESTS, LATENCY, TOKENS, HTTP],
};

const GLANCE: Row = Row {
    title: "At a glance",
    panels: &[
        Panel {
            title: "Requests",
            description: "Inference requests that ended, per second.",
            unit: "reqps",
            queries: &[query("", "sum(rate(mlx_manager_requests_total{$daemon}[$rate]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Failures",
            description: "Share of requests that failed through no fault of their caller.",
            unit: "percentunit",
            spans: "status=error",
            max: Some(1.0),
            queries: &[query(
                "",
                r#"sum(rate(mlx_manager_requests_total{$daemon,outcome=~"timeout_.*|rate_limited|shed|upstream_error|engine_error|unavailable"}[$rate])) / (sum(rate(mlx_manager_requests_total{$daemon}[$rate])) > 0)"#,
            )],
            ..Panel::STAT
        },
        Panel {
            title: "In progress",
            description: "HTTP requests that are being answered right now.",
            queries: &[query("", "sum(http_server_active_requests{$daemon})")],
            ..Panel::STAT
        },
        Panel {
            title: "Tokens",
            description: "Input and output tokens per second, cached and reasoning ones included.",
            unit: "suffix: tok/s",
            queries: &[query("", r#"sum(rate(mlx_manager_tokens_total{$daemon,type=~"input|output"}[$rate]))"#)],
            ..Panel::STAT
        },
        Panel {
            title: "Cost, 1 h",
            description: "Price of cloud calls in the last hour. A model without a known price adds nothing.",
            unit: "currencyUSD",
            spans: "span.operation.cost > 0",
            queries: &[query("", "sum(increase(mlx_manager_cost_usd_total{$daemon}[1h]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Telemetry lost, 1 h",
            description: "Log records, exported items and audit rows of the last hour that never arrived. Not 0: see the telemetry dashboard.",
            queries: &[query(
                "",
                "sum(increase(mlx_manager_log_records_dropped_total{$daemon}[1h])) + sum(increase(mlx_manager_audit_rows_dropped_total{$daemon}[1h])) + (sum(increase(mlx_manager_telemetry_dropped_total{$daemon}[1h])) or vector(0)) + (sum(increase(mlx_manager_telemetry_failed_total{$daemon}[1h])) or vector(0))",
            )],
            ..Panel::STAT
        },
    ],
};

const REQUESTS: Row = Row {
    title: "Requests",
    panels: &[
        Panel {
            title: "Requests by outcome",
            description: "How inference requests ended. Everything but ok, client_abort and shutdown deserves a look.",
            unit: "reqps",
            queries: &[query("{{outcome}}", "sum by (outcome) (rate(mlx_manager_requests_total{$daemon}[$rate])) > 0")],
            ..Panel::AREAS
        },
        Panel {
            title: "Requests by model",
            description: "Which models are asked. A name that is neither configured, nor in the catalogue, nor ever answered is _other.",
            unit: "reqps",
            queries: &[query(
                "{{provider}} {{model}}",
                "sum by (provider, model) (rate(mlx_manager_requests_total{$daemon}[$rate])) > 0",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Requests by endpoint",
            description: "Which API is used, streaming or not.",
            unit: "reqps",
            queries: &[query(
                "{{api}} stream={{stream}}",
                "sum by (api, stream) (rate(mlx_manager_requests_total{$daemon}[$rate]))",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Routing decisions",
            description: "Which rule found the target: a route's pattern, local for a local model without one, none.",
            unit: "reqps",
            queries: &[query("{{rule}}", "sum by (rule) (rate(mlx_manager_route_decisions_total{$daemon}[$rate]))")],
            ..Panel::LINES
        },
    ],
};

const LATENCY: Row = Row {
    title: "Latency",
    panels: &[
        Panel {
            title: "Duration of inference requests",
            description: "From the first byte in to the last byte out, whole streams included.",
            unit: "s",
            spans: r#"kind=server && span.http.route=~"/v1/(chat/completions|messages)""#,
            queries: &[
                quantile(0.5, r#"http_server_request_duration_seconds{route=~"/v1/(chat/completions|messages)"}"#, ""),
                quantile(0.95, r#"http_server_request_duration_seconds{route=~"/v1/(chat/completions|messages)"}"#, ""),
                quantile(0.99, r#"http_server_request_duration_seconds{route=~"/v1/(chat/completions|messages)"}"#, ""),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Time to first token",
            description: "From a request's arrival to the first generated content, by cloud provider and local model.",
            unit: "s",
            queries: &[
                quantile(0.95, "gen_ai_client_operation_time_to_first_chunk_seconds", "mlx_manager_provider"),
                quantile(0.95, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "The daemon's own time",
            description: "What the daemon adds to a request: decode reads its head, route finds its target, record writes its end.",
            unit: "s",
            queries: &[
                quantile(0.5, "mlx_manager_overhead_seconds", "phase"),
                quantile(0.99, "mlx_manager_overhead_seconds", "phase"),
            ],
            ..Panel::LINES
        },
    ],
};

const TOKENS: Row = Row {
    title: "Tokens and cost",
    panels: &[
        Panel {
            title: "Tokens by type",
            description: "Tokens per second. Cache tokens are part of input, reasoning tokens are part of output.",
            unit: "suffix: tok/s",
            queries: &[query("{{type}}", "sum by (type) (rate(mlx_manager_tokens_total{$daemon}[$rate]))")],
            ..Panel::LINES
        },
        Panel {
            title: "Tokens by model",
            description: "Input and output tokens per second.",
            unit: "suffix: tok/s",
            queries: &[query(
                "{{provider}} {{model}}",
                r#"sum by (provider, model) (rate(mlx_manager_tokens_total{$daemon,type=~"input|output"}[$rate])) > 0"#,
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Cost per hour",
            description: "Price of the last hour's calls, by model, as far as the price is known.",
            unit: "currencyUSD",
            spans: "span.operation.cost > 0",
            queries: &[query(
                "{{provider}} {{model}}",
                "sum by (provider, model) (increase(mlx_manager_cost_usd_total{$daemon}[1h])) > 0",
            )],
            ..Panel::AREAS
        },
    ],
};

const HTTP: Row = Row {
    title: "HTTP",
    panels: &[
        Panel {
            title: "HTTP requests",
            description: "Everything that the API listener answered, health checks included.",
            unit: "reqps",
            spans: "kind=server",
            queries: &[query(
                "{{method}} {{route}} {{status_code}}",
                "sum by (method, route, status_code) (rate(http_server_request_duration_seconds_count{$daemon}[$rate]))",
            )],
            ..Panel::LINES
        },
        Panel {
            title: "HTTP duration",
            description: "From the first byte in to the last byte out, by route.",
            unit: "s",
            spans: "kind=server",
            queries: &[
                quantile(0.5, "http_server_request_duration_seconds", "route"),
                quantile(0.99, "http_server_request_duration_seconds", "route"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "HTTP requests in progress",
            description: "Open exchanges by route; an open stream counts until its end.",
            spans: "kind=server",
            queries: &[query("{{method}} {{route}}", "sum by (method, route) (http_server_active_requests{$daemon})")],
            ..Panel::LINES
        },
        Panel {
            title: "Request bodies held",
            description: "Memory of request bodies until their answers have begun. At server.max_inflight_body further requests get a 503.",
            unit: "bytes",
            queries: &[query("held", "sum(mlx_manager_inflight_body_bytes{$daemon})")],
            ..Panel::LINES
        },
    ],
};
