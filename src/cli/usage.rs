//! `mlx-manager usage`: what was used, added up from the audit database.

use std::{io::Write, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use mlx_manager_config::Config;

use super::Failure;
use crate::store::{Grouping, Store, UsageRow};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How far back, such as "24 hours" or "7 days"
    #[arg(long, default_value = "7 days", value_parser = humantime::parse_duration)]
    since: Duration,
    /// What a row stands for
    #[arg(long, value_enum, default_value = "model")]
    by: By,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Model,
    Provider,
    Day,
    Key,
    Outcome,
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Result<(), Failure> {
    let since = Timestamp::now()
        .checked_sub(SignedDuration::try_from(arguments.since)?)
        .context("--since reaches too far back")?;
    let grouping = match arguments.by {
        By::Model => Grouping::Model,
        By::Provider => Grouping::Provider,
        By::Day => Grouping::Day,
        By::Key => Grouping::Key,
        By::Outcome => Grouping::Outcome,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(async {
        let store = Store::open_existing(&config.database).await?;
        let rows = store.usage(since, grouping).await;
        store.close().await;
        rows
    })?;
    let mut stdout = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut stdout, &rows)?;
        writeln!(stdout)?;
    } else {
        stdout.write_all(table(&rows).as_bytes())?;
    }
    Ok(())
}

fn table(rows: &[UsageRow]) -> String {
    const HEAD: [&str; 7] = ["", "requests", "failed", "input", "output", "cached", "cost (USD)"];
    let cells: Vec<[String; 7]> = rows
        .iter()
        .map(|row| {
            [
                printable(&row.group),
                row.requests.to_string(),
                row.failed.to_string(),
                row.input_tokens.to_string(),
                row.output_tokens.to_string(),
                row.cache_read_tokens.to_string(),
                row.cost_usd.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.6}")),
            ]
        })
        .collect();
    let widths: [usize; 7] = std::array::from_fn(|column| {
        cells.iter().map(|row| row[column].chars().count()).chain([HEAD[column].len()]).max().unwrap_or_default()
    });
    let line = |row: [&str; 7]| {
        let numbers: String = (1..7).map(|column| format!("  {:>1$}", row[column], widths[column])).collect();
        format!("{:<1$}{numbers}\n", row[0], widths[0])
    };
    let mut text = line(HEAD);
    for row in &cells {
        text.push_str(&line(std::array::from_fn(|column| row[column].as_str())));
    }
    text
}

/// Model names come from callers, who must not be able to move the terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::{printable, table};
    use crate::store::UsageRow;

    #[test]
    fn a_model_name_is_only_a_name() {
        assert_eq!(printable("a\n\u{1b}[31mb"), "a\u{fffd}\u{fffd}[31mb");
    }

    #[test]
    fn columns_line_up() {
        let row = UsageRow {
            group: "mlx/demo".to_owned(),
            requests: 12,
            failed: 0,
            input_tokens: 1234,
            output_tokens: 56,
            cache_read_tokens: 0,
            cost_usd: None,
        };
        let text = table(&[row]);
        let lengths: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lengths, [lengths[0]; 2]);
        assert!(text.ends_with("1234      56       0           -\n"), "{text}");
    }
}
