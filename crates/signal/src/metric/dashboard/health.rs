//! Telemetry itself: what was lost, what waits, and the process behind it.

use super::panel::{Dashboard, Panel, Query, Row, query};

pub(super) const HEALTH: Dashboard = Dashboard {
    name: "telemetry",
    title: "mlx-manager: telemetry health",
    description: "Whether logs, traces, metrics and audit rows are complete, and what the process takes.",
    rows: &[GLANCE, LOGS, EXPORT, AUDIT, METRICS, PROCESS],
};

const GLANCE: Row = Row {
    title: "At a glance",
    panels: &[
        Panel {
            title: "Log records lost, 1 h",
            description: "Records that no sink wrote, because its queue was full or its disk away.",
            queries: &[query("", "sum(increase(mlx_manager_log_records_dropped_total{$daemon}[1h]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Exports lost, 1 h",
            description: "Spans, metric points and log records that no OTLP destination took and that nobody will send again.",
            queries: &[query(
                "",
                "(sum(increase(mlx_manager_telemetry_dropped_total{$daemon}[1h])) or vector(0)) + (sum(increase(mlx_manager_telemetry_failed_total{$daemon}[1h])) or vector(0))",
            )],
            ..Panel::STAT
        },
        Panel {
            title: "Audit rows lost, 1 h",
            description: "Finished requests without a row in the database.",
            queries: &[query("", "sum(increase(mlx_manager_audit_rows_dropped_total{$daemon}[1h]))")],
            ..Panel::STAT
        },
        Panel {
            title: "Waiting on disk",
            description: "Batches in the spool, for destinations that are away.",
            unit: "bytes",
            queries: &[query("", "sum(mlx_manager_spool_bytes{$daemon}) or vector(0)")],
            ..Panel::STAT
        },
        Panel {
            title: "Build",
            description: "Version, commit and engine of each daemon.",
            queries: &[query(
                "{{version}} {{commit}} {{engine}}",
                "max by (version, commit, engine) (mlx_manager_build_info{$daemon})",
            )],
            ..Panel::STAT
        },
        Panel {
            title: "Uptime",
            description: "Time since each daemon started.",
            unit: "s",
            queries: &[query("{{instance}}", "time() - process_start_time_seconds{$daemon}")],
            ..Panel::STAT
        },
    ],
};

const LOGS: Row = Row {
    title: "Log sinks",
    panels: &[
        Panel {
            title: "Log records",
            description: "Records written per second, by sink and level.",
            unit: "recps",
            queries: &[query(
                "{{sink}} {{level}}",
                "sum by (sink, level) (rate(mlx_manager_log_records_written_total{$daemon}[$rate])) > 0",
            )],
            ..Panel::AREAS
        },
        Panel {
            title: "Log records lost",
            description: "Records per second that a sink could not take. What was lost is also said in the sink, once it recovers.",
            unit: "recps",
            queries: &[query(
                "{{sink}}",
                "sum by (sink) (rate(mlx_manager_log_records_dropped_total{$daemon}[$rate]))",
            )],
            ..Panel::LINES
        },
        Panel {
            title: "Failed writes",
            description: "Writes that a sink's disk or pipe refused.",
            unit: "cps",
            queries: &[query("{{sink}}", "sum by (sink) (rate(mlx_manager_log_io_errors_total{$daemon}[$rate]))")],
            ..Panel::LINES
        },
    ],
};

const EXPORT: Row = Row {
    title: "OTLP export and spool",
    panels: &[
        Panel {
            title: "Exported",
            description: "Spans, metric points and log records that a destination took, per second.",
            unit: "cps",
            queries: &[query(
                "{{destination}} {{signal}}",
                "sum by (destination, signal) (rate(mlx_manager_telemetry_exported_total{$daemon}[$rate]))",
            )],
            ..Panel::LINES
        },
        Panel {
            title: "Lost exports",
            description: "Items per second lost on this side, and items that their destination refused or that were tried in vain. What waits in the spool is not lost.",
            unit: "cps",
            queries: &[
                query(
                    "{{destination}} {{signal}} lost here",
                    "sum by (destination, signal) (rate(mlx_manager_telemetry_dropped_total{$daemon}[$rate]))",
                ),
                query(
                    "{{destination}} {{signal}} refused",
                    "sum by (destination, signal) (rate(mlx_manager_telemetry_failed_total{$daemon}[$rate]))",
                ),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Spool",
            description: "Batches on disk. It grows while a destination is away and shrinks when it is back.",
            unit: "bytes",
            queries: &[query("{{destination}}", "sum by (destination) (mlx_manager_spool_bytes{$daemon})")],
            ..Panel::LINES
        },
    ],
};

const AUDIT: Row = Row {
    title: "Audit database",
    panels: &[
        Panel {
            title: "Audit rows",
            description: "Rows per second: written, lost, and writes that failed and are tried again.",
            unit: "rowsps",
            spans: "span.db.system.name != nil",
            queries: &[
                query("written", "sum(rate(mlx_manager_audit_rows_written_total{$daemon}[$rate]))"),
                query(
                    "lost, {{reason}}",
                    "sum by (reason) (rate(mlx_manager_audit_rows_dropped_total{$daemon}[$rate]))",
                ),
                query("failed writes", "sum(rate(mlx_manager_audit_write_errors_total{$daemon}[$rate]))"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Audit queue",
            description: "Rows that wait for the database; beyond 8192 they are lost.",
            spans: "span.db.system.name != nil",
            queries: &[query("waiting", "sum(mlx_manager_audit_queue_depth{$daemon})")],
            ..Panel::LINES
        },
        Panel {
            title: "Statement time",
            description: "Time of statements to the audit database.",
            unit: "s",
            spans: "span.db.system.name != nil",
            queries: &[
                query(
                    "{{db_system_name}} {{db_operation_name}} {{db_collection_name}} p50",
                    "histogram_quantile(0.5, sum by (le, db_system_name, db_operation_name, db_collection_name) (rate(db_client_operation_duration_seconds_bucket{$daemon}[$rate]))) >= 0",
                ),
                query(
                    "{{db_system_name}} {{db_operation_name}} {{db_collection_name}} p99",
                    "histogram_quantile(0.99, sum by (le, db_system_name, db_operation_name, db_collection_name) (rate(db_client_operation_duration_seconds_bucket{$daemon}[$rate]))) >= 0",
                ),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Failed statements",
            description: "Statements that the database refused or that never reached it.",
            unit: "cps",
            spans: "span.db.system.name != nil && status=error",
            queries: &[Query {
                may_be_empty: Some("a failure's series begins with the first failure"),
                ..query(
                    "{{db_system_name}} {{db_operation_name}}",
                    r#"sum by (db_system_name, db_operation_name) (rate(db_client_operation_duration_seconds_count{$daemon,error_type!=""}[$rate]))"#,
                )
            }],
            ..Panel::LINES
        },
    ],
};

const METRICS: Row = Row {
    title: "Metrics",
    panels: &[
        Panel {
            title: "Measurements beyond the cap",
            description: "Measurements that were not kept because their metric has as many series as it may.",
            unit: "cps",
            queries: &[query("all metrics", "sum(rate(mlx_manager_metric_series_dropped_total{$daemon}[$rate]))")],
            ..Panel::LINES
        },
        Panel {
            title: "Series",
            description: "Samples on one page, and how many of them were new.",
            queries: &[
                query("{{instance}} samples", "scrape_samples_scraped{$daemon}"),
                query("{{instance}} new", "scrape_series_added{$daemon}"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Scrape",
            description: "How long a scrape takes.",
            unit: "s",
            queries: &[query("{{instance}}", "scrape_duration_seconds{$daemon}")],
            ..Panel::LINES
        },
    ],
};

const PROCESS: Row = Row {
    title: "Process",
    panels: &[
        Panel {
            title: "CPU",
            description: "Cores in use.",
            unit: "suffix: cores",
            queries: &[query("{{instance}}", "sum by (instance) (rate(process_cpu_seconds_total{$daemon}[$rate]))")],
            ..Panel::LINES
        },
        Panel {
            title: "Memory of the process",
            description: "Resident and virtual memory.",
            unit: "bytes",
            queries: &[
                query("{{instance}} resident", "process_resident_memory_bytes{$daemon}"),
                query("{{instance}} virtual", "process_virtual_memory_bytes{$daemon}"),
            ],
            ..Panel::LINES
        },
        Panel {
            title: "Files and threads",
            description: "Open files against their limit, and threads.",
            queries: &[
                query("{{instance}} files", "process_open_fds{$daemon}"),
                query("{{instance}} limit of files", "process_max_fds{$daemon}"),
                query("{{instance}} threads", "process_threads{$daemon}"),
            ],
            ..Panel::LINES
        },
    ],
};
