//! Dashboards, alerts and the enum of names say the same.

use std::{collections::BTreeSet, path::Path};

use crate::metric::name::{self, Definition, Kind};
use serde_json::Value;

use super::{DASHBOARDS, Dashboard, panel::SPAN_ATTRIBUTES, written};

/// Metrics that no dashboard shows, each with the reason.
const NOT_SHOWN: [(&str, &str); 5] = [
    ("gen_ai_client_inference_duration_seconds", "the newer name of gen_ai_client_operation_duration_seconds"),
    (
        "gen_ai_client_inference_time_to_first_chunk_seconds",
        "the newer name of gen_ai_client_operation_time_to_first_chunk_seconds, of streamed answers only",
    ),
    (
        "gen_ai_client_inference_time_per_output_chunk_seconds",
        "the newer name of gen_ai_client_operation_time_per_output_chunk_seconds",
    ),
    ("gen_ai_client_inference_operation_input_tokens", "the newer name of gen_ai_client_token_usage"),
    ("gen_ai_client_inference_operation_output_tokens", "the newer name of gen_ai_client_token_usage"),
];

/// Metrics that Prometheus makes itself for each target.
const OF_PROMETHEUS: [&str; 4] = ["up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_series_added"];

/// Labels that Prometheus adds, and a histogram's own.
const ADDED_LABELS: [&str; 3] = ["job", "instance", "le"];

/// Words of PromQL that stand where a metric may.
const WORDS: [&str; 5] = ["or", "and", "unless", "offset", "bool"];

#[test]
#[expect(clippy::disallowed_methods, reason = "a test is asked by its environment to write, not to compare")]
fn dashboards_are_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (path, text) in written() {
        if std::env::var_os("UPDATE_DASHBOARDS").is_some() {
            std::fs::write(root.join(&path), &text).unwrap();
        }
        let committed = std::fs::read_to_string(root.join(&path)).unwrap();
        assert!(
            committed == text,
            "{path} is out of date: UPDATE_DASHBOARDS=1 cargo test -p mlx-manager-signal dashboards_are_written"
        );
    }
    assert_eq!(dashboards().len(), DASHBOARDS.len(), "a file that nothing writes");
}

fn dashboards() -> Vec<(String, Value)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dashboards");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.display().to_string(), serde_json::from_str(&text).unwrap())
        })
        .collect()
}

/// Every query of a dashboard, those of its variables included.
fn expressions(dashboard: &Value) -> Vec<String> {
    let of_panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(|target| target["expr"].as_str().unwrap().to_owned())
    });
    let of_variables = dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|variable| {
        let query = variable["query"]["query"].as_str()?;
        // `label_values(metric{…}, label)` asks for a label of a metric.
        let (metric, label) = query.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(", ")?;
        Some(format!("sum by ({label}) ({metric})"))
    });
    of_panels.chain(of_variables).collect()
}

/// The metrics and the labels that a query names.
#[derive(Debug, Default, PartialEq)]
struct Named {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

/// Reads a query word by word. What is in braces or in the list of a grouping is a label, what is followed by a parenthesis
/// is a function, and every other word is a metric.
fn names_in(expression: &str) -> Named {
    let mut named = Named::default();
    let mut rest = expression;
    let (mut in_braces, mut in_grouping) = (false, false);
    while let Some(character) = rest.chars().next() {
        let tail = &rest[character.len_utf8()..];
        match character {
            '"' => rest = tail.split_once('"').expect("a string ends").1,
            '[' => rest = tail.split_once(']').expect("a range ends").1,
            '{' | '}' => (in_braces, rest) = (character == '{', tail),
            ')' => (in_grouping, rest) = (false, tail),
            _ if character.is_ascii_alphabetic() || character == '_' => {
                let length = rest
                    .find(|next: char| !next.is_ascii_alphanumeric() && next != '_' && next != ':')
                    .unwrap_or(rest.len());
                let (word, after) = rest.split_at(length);
                rest = after;
                let is_call = after.trim_start().starts_with('(');
                if in_braces || in_grouping {
                    named.labels.insert(word.to_owned());
                } else if is_call && ["by", "without", "on", "ignoring", "group_left"].contains(&word) {
                    in_grouping = true;
                } else if !(is_call || after.trim_start().starts_with("by ") || WORDS.contains(&word)) {
                    named.metrics.insert(word.to_owned());
                }
            }
            _ if character.is_ascii_digit() => {
                rest = rest.trim_start_matches(|next: char| next.is_ascii_alphanumeric() || next == '.');
            }
            _ => rest = tail,
        }
    }
    named
}

/// The metric that a name on the page belongs to.
fn definition(series: &str) -> Option<&'static Definition> {
    name::catalogue().find_map(|(kind, definition)| {
        let matches = match kind {
            Kind::Histogram => {
                ["_bucket", "_sum", "_count"].iter().any(|suffix| series.strip_suffix(suffix) == Some(definition.name))
            }
            Kind::Counter | Kind::Gauge => series == definition.name,
        };
        matches.then_some(definition)
    })
}

#[test]
fn names_are_found_in_queries() {
    let query =
        r#"histogram_quantile(0.5, sum by (le, route) (rate(a_bucket{job=~"$job, x",b="c"}[5m]))) / 1e3 or vector(0)"#;
    let named = names_in(query);
    assert_eq!(named.metrics, ["a_bucket".to_owned()].into());
    assert_eq!(named.labels, ["b", "job", "le", "route"].map(str::to_owned).into());
    assert!(definition("mlx_manager_prefill_seconds").is_none(), "a histogram has no series of its bare name");
    assert!(definition("mlx_manager_prefill_seconds_bucket").is_some());
}

#[test]
fn every_query_names_what_exists() {
    let dashboards = dashboards();
    assert!(!dashboards.is_empty());
    for (file, dashboard) in &dashboards {
        for expression in expressions(dashboard) {
            let named = names_in(&expression);
            assert!(!named.metrics.is_empty(), "{file}: {expression}");
            let definitions: Vec<_> = named
                .metrics
                .iter()
                .filter(|metric| !OF_PROMETHEUS.contains(&metric.as_str()))
                .map(|metric| definition(metric).unwrap_or_else(|| panic!("{file}: no metric {metric}: {expression}")))
                .collect();
            for label in &named.labels {
                let exists = ADDED_LABELS.contains(&label.as_str())
                    || definitions
                        .iter()
                        .any(|definition| definition.labels.iter().any(|known| known.as_str() == label));
                assert!(exists, "{file}: no label {label}: {expression}");
            }
        }
    }
}

#[test]
fn every_metric_is_shown_or_says_why_not() {
    let shown: BTreeSet<&str> = dashboards()
        .iter()
        .flat_map(|(_, dashboard)| expressions(dashboard))
        .flat_map(|expression| names_in(&expression).metrics)
        .filter_map(|series| definition(&series))
        .map(|definition| definition.name)
        .collect();
    for (_, definition) in name::catalogue() {
        let excused = NOT_SHOWN.iter().any(|(name, reason)| *name == definition.name && !reason.is_empty());
        assert!(shown.contains(definition.name) != excused, "{} is shown or excused, not both", definition.name);
    }
}

#[test]
fn every_panel_explains_itself() {
    for (file, dashboard) in dashboards() {
        assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 41, "{file}");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        for wanted in ["datasource", "traces", "job", "instance"] {
            assert!(variables.iter().any(|variable| variable["name"] == wanted), "{file}: {wanted}");
        }
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = &panel["title"];
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{file}: {title} has an id twice");
            if panel["type"] == "row" {
                continue;
            }
            assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{file}: {title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{file}: {title}");
            let link = panel["fieldConfig"]["defaults"]["links"][0]["url"].as_str().unwrap();
            assert!(link.starts_with("/explore?") && link.contains("${traces}"), "{file}: {title}: {link}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{file}: {title}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{file}: {title}");
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                let selectors = expression.matches(r#"job=~"$job",instance=~"$instance""#).count();
                assert_eq!(selectors, expression.matches('{').count(), "{file}: {title} ignores a variable");
            }
        }
    }
}

/// The values of a key in the alerts' YAML, which are written on one line each.
fn values_in_alerts(key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dashboards/alerts.yml")).unwrap();
    let values =
        text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(": "));
    values.map(str::to_owned).collect()
}

#[test]
fn alerts_name_what_exists() {
    let records = values_in_alerts("record");
    let expressions = values_in_alerts("expr");
    assert_eq!(expressions.len(), records.len() + values_in_alerts("alert").len());
    assert!(records.len() > 3 && expressions.len() > 15, "{expressions:?}");
    for expression in expressions {
        let named = names_in(&expression);
        assert!(!named.metrics.is_empty(), "{expression}");
        let mut definitions = Vec::new();
        for metric in named.metrics {
            if !(OF_PROMETHEUS.contains(&metric.as_str()) || records.contains(&metric)) {
                definitions.push(definition(&metric).unwrap_or_else(|| panic!("no metric {metric}: {expression}")));
            }
        }
        for label in named.labels {
            let exists =
                definitions.iter().flat_map(|definition| definition.labels).any(|known| known.as_str() == label);
            let is_recorded = definitions.is_empty() && name::Label::ALL.iter().any(|known| known.as_str() == label);
            assert!(exists || is_recorded || ADDED_LABELS.contains(&label.as_str()), "no label {label}: {expression}");
        }
    }
}

#[test]
fn links_ask_for_attributes_that_spans_have() {
    let spans = concat!(
        include_str!("../../span/attempt.rs"),
        include_str!("../../span/database.rs"),
        include_str!("../../span/engine.rs"),
        include_str!("../../span/http.rs"),
        include_str!("../../span/inference.rs"),
        include_str!("../../span/pull.rs"),
        include_str!("../../genai.rs")
    );
    let of_panels = DASHBOARDS.iter().flat_map(Dashboard::panels).map(|panel| panel.spans);
    let mut found = 0;
    for condition in of_panels.chain(SPAN_ATTRIBUTES.map(|(_, attribute)| attribute)) {
        for attribute in condition.split_whitespace().filter_map(|word| word.strip_prefix("span.")) {
            let attribute = attribute.split(['=', '!', '<', '>']).next().unwrap();
            assert!(spans.contains(&format!("\"{attribute}\"")), "no span has {attribute}");
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}
