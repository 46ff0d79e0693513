//! `mlx-manager metrics`: every metric there is, with its type, unit, labels and meaning.
//!
//! `docs/metrics.md` is this command's Markdown; a test holds the two together.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use mlx_manager_signal::metric::name::{self, Definition, Kind, Label};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How to print the list
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Paragraphs for a terminal
    Text,
    /// The page docs/metrics.md
    Markdown,
}

pub(super) fn run(arguments: &Arguments, results: &mut impl Write) -> io::Result<()> {
    let text = match arguments.format {
        Format::Text => text(),
        Format::Markdown => markdown(),
    };
    results.write_all(text.as_bytes())?;
    results.flush()
}

fn text() -> String {
    let mut text = String::new();
    for (kind, definition) in name::catalogue() {
        let Definition { name, unit, help, labels, .. } = definition;
        text.push_str(&format!("{name}\n  {}, unit {unit}\n", kind_name(kind)));
        if !labels.is_empty() {
            text.push_str(&format!("  labels: {}\n", joined(labels, Label::as_str)));
        }
        text.push_str(&format!("  {help}\n\n"));
    }
    text.push_str("labels\n");
    for label in Label::ALL {
        text.push_str(&format!("  {}: {}\n", label.as_str(), label.help().replace('`', "")));
        if let Some(values) = label.values() {
            text.push_str(&format!("    {}\n", values.join(", ")));
        }
    }
    text
}

const PREFACE: &str = "\
# Metrics

What the daemon measures, as `mlx-manager metrics --format markdown` prints it. The Prometheus page has the names of the first
column; by OTLP the same numbers go out once more, as OpenTelemetry names them. Units are UCUM's. A histogram `x` has the
series `x_bucket`, `x_sum` and `x_count`.

Series whose labels are known beforehand exist at 0 from the start, so that `rate()` sees the first event. The others come with
their first event: the durations of `http_*` and `db_*`, for every status and failure a series; `gen_ai_client_*` histograms,
which would be many; and rate limits, of which 0 left would be a lie.

A model's name is a label only if it is configured, in the catalogue, or among the first 100 that answered; all others are
`_other`, and so is a name that looks like a key or has other characters than letters, digits and `-_.:/@+`. Beside the series
that the configuration names, a metric takes 2000 at most; a warning in the log says when that is reached, and
`mlx_manager_metric_series_dropped_total` counts what was not kept. No key, user or request id is ever a label.

`gen_ai_*` metrics count what inference spans cover, and have their attributes for labels: each target by itself, from its call
on, by the model that it was asked for. `mlx_manager_*` metrics count requests, by the model that the caller asked for and the
last target.

The conventions for GenAI gave the metrics of clients new names in 2026: `gen_ai_client_inference_*`. Both generations are
recorded.
";

fn markdown() -> String {
    let mut text = PREFACE.to_owned();
    for (kind, title) in [(Kind::Counter, "Counters"), (Kind::Gauge, "Gauges"), (Kind::Histogram, "Histograms")] {
        text.push_str(&format!(
            "\n## {title}\n\n| name | unit | labels | meaning | in OTLP |\n|---|---|---|---|---|\n"
        ));
        for (_, definition) in name::catalogue().filter(|(of, _)| *of == kind) {
            let Definition { name, otlp_name, unit, help, labels, .. } = definition;
            let labels = joined(labels, |label| label.as_str());
            text.push_str(&format!("| `{name}` | `{unit}` | {labels} | {help} | `{otlp_name}` |\n"));
        }
    }
    text.push_str("\n## Buckets\n\nUpper bounds of the histograms' buckets; one without a bound follows.\n\n| name | bounds |\n|---|---|\n");
    for histogram in name::Histogram::ALL {
        let Definition { name, buckets, .. } = histogram.definition();
        let bounds: Vec<String> = buckets.iter().map(f64::to_string).collect();
        text.push_str(&format!("| `{name}` | {} |\n", bounds.join(", ")));
    }
    text.push_str("\n## Labels\n\n| label | meaning | values | in OTLP |\n|---|---|---|---|\n");
    for label in Label::ALL {
        let values: Vec<String> = label.values().into_iter().flatten().map(|value| format!("`{value}`")).collect();
        let (name, help, otlp_name) = (label.as_str(), label.help(), label.otlp_name());
        text.push_str(&format!("| `{name}` | {help} | {} | `{otlp_name}` |\n", values.join(", ")));
    }
    text
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

fn joined(labels: &[Label], name: impl Fn(Label) -> &'static str) -> String {
    labels.iter().map(|label| name(*label)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use mlx_manager_signal::metric::name::{self, Label};

    use super::{markdown, text};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test is asked by its environment to write, not to compare")]
    fn metrics_page_is_written() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("UPDATE_METRICS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == markdown(),
            "docs/metrics.md is out of date: UPDATE_METRICS=1 cargo test --lib metrics_page_is_written"
        );
    }

    #[test]
    fn help_says_that_the_configuration_does_not_matter() {
        use clap::CommandFactory;
        let mut command = crate::cli::Arguments::command();
        let help = command.find_subcommand_mut("metrics").unwrap().render_long_help().to_string();
        assert!(help.contains("`--config` and `--set` change nothing here"), "{help}");
    }

    #[test]
    fn nothing_is_left_out() {
        for printed in [text(), markdown()] {
            for (_, definition) in name::catalogue() {
                for said in [definition.name, definition.unit, definition.help] {
                    assert!(printed.contains(said), "{said}");
                }
            }
            assert!(Label::ALL.iter().all(|label| printed.contains(label.as_str())));
        }
    }
}
