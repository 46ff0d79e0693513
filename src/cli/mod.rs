//! The command line: one file per command. Results go to stdout, talk goes to stderr.
//!
//! Exit codes: 0 well, 1 failed, 2 wrong usage or configuration.

pub mod check;
mod logs;
mod metrics;
mod models;
mod serve;
mod usage;

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Parser, Subcommand};
use mlx_manager_config as config;
use mlx_manager_config::{Environment, LoadOptions, Loaded};
use mlx_manager_telemetry::log::{Terminal, is_journal};

use crate::gateway::local;

/// Serves language models through the OpenAI and Anthropic APIs, and shows everything it does.
#[derive(Debug, Parser)]
#[command(version, long_version = long_version(), propagate_version = true)]
struct Arguments {
    /// The configuration file [default: ./config.toml, then ~/.config/mlx-manager/config.toml, then the built-in one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A value that beats the file and the environment, such as `--set server.listen=127.0.0.1:8080`
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve,
    /// Check the configuration
    Check {
        /// Print every effective value and where it came from
        #[arg(long)]
        show: bool,
    },
    /// Show local models and get more
    Models {
        #[command(subcommand)]
        command: models::Command,
    },
    /// Examine log files and where records go
    Logs {
        #[command(subcommand)]
        command: logs::Command,
    },
    /// Show what was used, from the audit database
    Usage(usage::Arguments),
    /// List every metric: its type, unit, labels and meaning
    ///
    /// The list is the same whatever is configured, so `--config` and `--set` change nothing here and are not read.
    Metrics(metrics::Arguments),
}

/// A command's failure and its exit code.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: 1, error: error.into() }
    }
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options =
        LoadOptions { config: arguments.config, overrides: arguments.set, environment: Environment::from_process() };
    let terminal = Terminal {
        is_terminal: std::io::stderr().is_terminal(),
        no_color: options.environment.refuses_color(),
        journald: options.environment.set("JOURNAL_STREAM").is_some_and(|name| is_journal(name, std::io::stderr())),
    };
    let color = terminal.is_terminal && !terminal.no_color;
    let mut loaded = config::load(&options);
    if matches!(arguments.command, Command::Serve | Command::Check { .. }) {
        loaded = loaded.and_then(Loaded::startable);
    }
    let result = match (loaded, arguments.command) {
        (loaded, Command::Check { show }) => {
            let options = check::CheckOptions { show, color };
            check::run(&loaded, options, &mut std::io::stdout(), &mut std::io::stderr()).map_err(Failure::from)
        }
        // What is measured doesn't depend on the configuration.
        (_, Command::Metrics(arguments)) => {
            metrics::run(&arguments, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS).map_err(Failure::from)
        }
        // Files from anywhere can be verified, also beside a configuration that is broken.
        (_, Command::Logs { command: logs::Command::Verify { files } }) => logs::verify_files(&files),
        (Err(problems), _) => {
            let shown = std::io::stderr().write_all(problems.render(color).as_bytes());
            shown.map(|()| ExitCode::from(2)).map_err(Failure::from)
        }
        (Ok(loaded), Command::Serve) => serve::run(options, loaded, terminal).map(|()| ExitCode::SUCCESS),
        (Ok(loaded), Command::Models { command }) => {
            models::run(&loaded.config, &options.environment, terminal, &command).map(|()| ExitCode::SUCCESS)
        }
        (Ok(loaded), Command::Logs { command: logs::Command::Explain { target, level } }) => {
            logs::explain_event(&loaded, &target, level).map(|()| ExitCode::SUCCESS)
        }
        (Ok(loaded), Command::Usage(arguments)) => usage::run(&loaded.config, &arguments).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(Failure { code, error }) => {
            // The one place where an error that ends the process is printed: the whole chain, on one line.
            say(format_args!("mlx-manager: {error:#}"));
            ExitCode::from(code)
        }
    }
}

/// What `--version` adds to `-V`.
fn long_version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| format!("{}\nengine: {}, {}", env!("CARGO_PKG_VERSION"), local::NAME, local::kernels()));
    &VERSION
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("it has the form KEY=VALUE".to_owned()),
    }
}

/// Writes a line to stderr. When even that is gone there is nobody left to tell.
fn say(line: std::fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}
