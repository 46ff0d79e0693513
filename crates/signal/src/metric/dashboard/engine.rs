//! Local models: queue, prefill, decode, caches, memory.

use super::panel::{Dashboard, Panel, Row, quantile, query};

pub(super) const ENGINE: Dashboard = Dashboard {
    name: "local-engine",
    title: "mlx-manager: local engine",
    description: "Queue, prefill, decode, caches and memory of the models on this machine.",
    rows: &[GLANCE, REQUESTS, STAGES, STEPS, MEMORY],
};

const GLANCE: Row = Row {
    title: "At a glance",
    panels: &[
        Panel {
            title: "Waiting",
            description: "Requests that wait for the engine right now.",
            queries: &[query("", "sum(mlx_manager_queue_depth{$daemon})")],
            ..Panel::STAT
        },
        Panel {
            title: "Local requests",
            description: "Requests that local models answered, per second.",
            unit: "reqps",
            spans: r#"span.gen_ai.provider.name="mlx""#,
            queries: &[query("", r#"sum(rate(mlx_manager_requests_total{$daemon,provider="mlx"}[$rate]))"#)],
            ..Panel::STAT
        },
        Panel {
            title: "Generated",
            description: "Output tokens of all local models per second.",
            unit: "suffix: tok/s",
            spans: r#"name="decode""#,
            queries: &[query(
                "",
                r#"sum(rate(mlx_manager_tokens_total{$daemon,provider="mlx",type="output"}[$rate]))"#,
            )],
            ..Panel::STAT
        },
        Panel {
            title: "Models in memory",
            description: "Local models that are loaded.",
            queries: &[query("", "sum(mlx_manager_model_loaded{$daemon})")],
            ..Panel::STAT
        },
        Panel {
            title: "Weights",
            description: "Memory that the weights of all loaded models take.",
            unit: "bytes",
            queries: &[query("", "sum(mlx_manager_model_memory_bytes{$daemon})")],
            ..Panel::STAT
        },
        Panel {
            title: "Key-value caches",
            description: "Memory that the caches of open sequences take, and the prefix cache.",
            unit: "bytes",
            queries: &[query("", "sum(mlx_manager_kv_cache_bytes{$daemon})")],
            ..Panel::STAT
        },
    ],
};

const REQUESTS: Row = Row {
    title: "Requests to local models",
    panels: &[
        Panel {
            title: "Local requests by outcome",
            description: "How requests to local models ended.",
            unit: "reqps",
            spans: r#"span.gen_ai.provider.name="mlx""#,
            queries: &[query(
                "{{model}} {{outcome}}",
                r#"sum by (model, outcome) (rate(mlx_manager_requests_total{$daemon,provider="mlx"}[$rate])) > 0"#,
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Duration, local",
            description: "From the engine's call to the last token.",
            unit: "s",
            queries: &[
                quantile(0.5, "gen_ai_server_request_duration_seconds", "gen_ai_request_model"),
                quantile(0.95, "gen_ai_server_request_duration_seconds", "gen_ai_request_model"),
                quantile(0.99, "gen_ai_server_request_duration_seconds", "gen_ai_request_model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Time to first token, local",
            description: "From the engine's call to the first token: waiting and prefill.",
            unit: "s",
            queries: &[
                quantile(0.5, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"),
                quantile(0.95, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"),
                quantile(0.99, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"),
            ],
            ..Panel::LINES
        },
    ],
};

const STAGES: Row = Row {
    title: "Queue, prefill, decode",
    panels: &[
        Panel {
            title: "Queue",
            description: "Requests that wait for the engine, and those that it computes.",
            spans: r#"name="queue""#,
            queries: &[
                query("waiting", "sum(mlx_manager_queue_depth{$daemon})"),
                query("computed", "sum(mlx_manager_running_requests{$daemon})"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Queue wait",
            description: "How long requests waited for their turn. When it grows, the machine has too much to do.",
            unit: "s",
            spans: r#"name="queue""#,
            queries: &[
                quantile(0.5, "mlx_manager_queue_wait_seconds", ""),
                quantile(0.95, "mlx_manager_queue_wait_seconds", ""),
                quantile(0.99, "mlx_manager_queue_wait_seconds", ""),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Prefill",
            description: "Time to compute a prompt.",
            unit: "s",
            spans: r#"name="prefill""#,
            queries: &[
                quantile(0.5, "mlx_manager_prefill_seconds", "model"),
                quantile(0.95, "mlx_manager_prefill_seconds", "model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Decode speed",
            description: "Tokens per second of one sequence after its first token: the median, and what the slowest twentieth gets.",
            unit: "suffix: tok/s",
            spans: r#"name="decode""#,
            queries: &[
                quantile(0.05, "mlx_manager_decode_tokens_per_second", "model"),
                quantile(0.5, "mlx_manager_decode_tokens_per_second", "model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Time per token, local",
            description: "Mean time of a token after the first, as a caller sees it.",
            unit: "s",
            queries: &[
                quantile(0.5, "gen_ai_server_time_per_output_token_seconds", "gen_ai_request_model"),
                quantile(0.95, "gen_ai_server_time_per_output_token_seconds", "gen_ai_request_model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Local tokens",
            description: "Tokens per second by type.",
            unit: "suffix: tok/s",
            queries: &[query(
                "{{type}}",
                r#"sum by (type) (rate(mlx_manager_tokens_total{$daemon,provider="mlx",type=~"input|output|reasoning"}[$rate]))"#,
            )],
            ..Panel::LINES
        },
    ],
};

const STEPS: Row = Row {
    title: "Steps",
    panels: &[
        Panel {
            title: "Time of the engine's thread",
            description: "What the steps of the engine are spent on. Waiting is what MLX computes; the rest is ours.",
            unit: "percentunit",
            queries: &[query(
                "{{model}} {{part}}",
                "sum by (model, part) (rate(mlx_manager_step_seconds_sum{$daemon}[$rate]))",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Tokens in a step",
            description: "The mean: one of each sequence that decodes, and some of prompts.",
            queries: &[query(
                "{{model}}",
                "sum by (model) (rate(mlx_manager_step_tokens_sum{$daemon}[$rate])) / (sum by (model) (rate(mlx_manager_step_tokens_count{$daemon}[$rate])) > 0)",
            )],
            ..Panel::LINES
        },
        Panel {
            title: "Time between tokens",
            description: "Between two tokens of one answer: what a reader sees as the pace, and its stutter.",
            unit: "s",
            spans: r#"name="decode""#,
            queries: &[
                quantile(0.5, "mlx_manager_inter_token_seconds", "model"),
                quantile(0.95, "mlx_manager_inter_token_seconds", "model"),
                quantile(0.99, "mlx_manager_inter_token_seconds", "model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Generating",
            description: "From the first token of an answer to its last.",
            unit: "s",
            spans: r#"name="decode""#,
            queries: &[
                quantile(0.5, "mlx_manager_decode_seconds", "model"),
                quantile(0.95, "mlx_manager_decode_seconds", "model"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Sequences that ended",
            description: "How, and those that had to wait once more for a more urgent one.",
            unit: "reqps",
            queries: &[
                query(
                    "{{model}} {{reason}}",
                    "sum by (model, reason) (rate(mlx_manager_engine_sequences_total{$daemon}[$rate])) > 0",
                ),
                query("{{model}} preempted", "sum by (model) (rate(mlx_manager_preemptions_total{$daemon}[$rate]))"),
            ],
            ..Panel::AREAS
        },
        Panel {
            title: "Prompts and answers",
            description: "Tokens of a prompt, and of an answer.",
            queries: &[
                quantile(0.5, "mlx_manager_sequence_prompt_tokens", "model"),
                quantile(0.95, "mlx_manager_sequence_prompt_tokens", "model"),
                quantile(0.5, "mlx_manager_sequence_generated_tokens", "model"),
                quantile(0.95, "mlx_manager_sequence_generated_tokens", "model"),
            ],
            ..Panel::LINES
        },
    ],
};

const MEMORY: Row = Row {
    title: "Caches and memory",
    panels: &[
        Panel {
            title: "Prefix cache",
            description: "Share of prompts that begin like an earlier one, and of their tokens that were not computed again.",
            unit: "percentunit",
            max: Some(1.0),
            spans: r#"name="prefill""#,
            queries: &[
                query(
                    "{{model}} prompts",
                    "sum by (model) (rate(mlx_manager_prefix_cache_hits_total{$daemon}[$rate])) / (sum by (model) (rate(mlx_manager_prefix_cache_lookups_total{$daemon}[$rate])) > 0)",
                ),
                query(
                    "{{model}} tokens",
                    "sum by (model) (rate(mlx_manager_prefix_cache_hit_tokens_total{$daemon}[$rate])) / (sum by (model) (rate(mlx_manager_prefix_cache_queried_tokens_total{$daemon}[$rate])) > 0)",
                ),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Memory",
            description: "What the weights of loaded models take, the key-value caches of open sequences and the prefix cache.",
            unit: "bytes",
            queries: &[
                query("{{model}} weights", "sum by (model) (mlx_manager_model_memory_bytes{$daemon})"),
                query("{{model}} key-value caches", "sum by (model) (mlx_manager_kv_cache_bytes{$daemon})"),
            ],
            ..Panel::AREAS
        },
        Panel {
            title: "Prefix cache on disk",
            description: "What gave way in memory and is kept on disk, if `local.prefix_disk` is set.",
            unit: "bytes",
            queries: &[query("on disk", "sum(mlx_manager_prefix_disk_bytes{$daemon})")],
            ..Panel::AREAS
        },
        Panel {
            title: "Prefix cache to and from disk",
            description: "Runs of tokens written when they gave way in memory, and read when a prompt began with them.",
            unit: "ops",
            queries: &[
                query(
                    "{{model}} written",
                    "sum by (model) (rate(mlx_manager_prefix_disk_writes_total{$daemon}[$rate]))",
                ),
                query("{{model}} read", "sum by (model) (rate(mlx_manager_prefix_disk_reads_total{$daemon}[$rate]))"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Memory of MLX",
            description: "What the engine holds, by what it is for. What is `other` and grows is a leak.",
            unit: "bytes",
            queries: &[query("{{kind}}", "sum by (kind) (mlx_manager_engine_memory_bytes{$daemon})")],
            ..Panel::AREAS
        },
        Panel {
            title: "Loading",
            description: "How much of a model that is being loaded is read.",
            unit: "percentunit",
            max: Some(1.0),
            queries: &[query("{{model}}", "max by (model) (mlx_manager_model_loading_ratio{$daemon})")],
            ..Panel::LINES
        },
        Panel {
            title: "Loaded",
            description: "Which local models are in memory.",
            max: Some(1.0),
            words: &[("0", "on disk"), ("1", "in memory")],
            queries: &[query("{{model}}", "max by (model) (mlx_manager_model_loaded{$daemon})")],
            ..Panel::LINES
        },
        Panel {
            title: "Evictions",
            description: "Models unloaded because they were idle, to make room, or because somebody asked.",
            unit: "cps",
            queries: &[query("{{reason}}", "sum by (reason) (rate(mlx_manager_evictions_total{$daemon}[$rate]))")],
            ..Panel::LINES
        },
    ],
};
