//! `mlx-manager serve`: the daemon.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::{
    app::App,
    config::{self, LoadOptions, Loaded},
    server::cloud,
    telemetry::{
        Telemetry,
        log::{LogHandle, Terminal},
    },
};

/// How long telemetry may take to reach its destinations at the end.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn run(options: LoadOptions, loaded: Loaded, terminal: Terminal) -> Result<(), Failure> {
    cloud::install_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Ports first: when one is busy, that is all there is to say, and no log or database was touched.
    let app = runtime.block_on(App::bind(&loaded.config))?;
    let telemetry = Telemetry::start(&loaded.config, terminal)?;
    log_warnings(&loaded);
    let result = runtime.block_on(run_until_told(app, options, loaded, &telemetry));
    if let Err(error) = &result {
        tracing::error!(error = &**error as &(dyn std::error::Error + 'static), "the daemon can't run");
    }
    // A blocking task that hangs must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if !telemetry.stop(FLUSH_DEADLINE) {
        super::say(format_args!("mlx-manager: some telemetry could not be delivered before the end"));
    }
    Ok(result?)
}

async fn run_until_told(app: App, options: LoadOptions, loaded: Loaded, telemetry: &Telemetry) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let config = loaded.config.clone();
    let reloading = Arc::new((options, loaded, telemetry.logs().clone()));
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP can't be handled")?;
    let told = async {
        // Repeated signals change nothing: whoever supervises us may send several, and the drain has its own limit.
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => {
                    let reloading = Arc::clone(&reloading);
                    // It waits for the disk. One that panicked has said so through the hook.
                    drop(spawn_blocking(move || reload(&reloading.0, &reloading.1, &reloading.2)).await);
                    continue;
                }
            };
            if stop.is_cancelled() {
                tracing::info!(signal = name, "already stopping; open requests have until server.drain_timeout");
            } else {
                tracing::info!(signal = name, "stopping: open requests go on, new ones are refused");
                stop.cancel();
            }
        }
    };
    tokio::select! {
        result = app.run(config, telemetry.metrics(), stop.clone()) => Ok(result?),
        never = told => never,
    }
}

/// What SIGHUP asks for: log files are opened anew, and the `[log]` section is read again. `running` is the configuration
/// that the daemon started with, by which everything else goes on.
fn reload(options: &LoadOptions, running: &Loaded, logs: &LogHandle) {
    // First and in any case: it is what logrotate sends after it moved the files away.
    logs.reopen();
    tracing::info!("log files reopened");
    const REFUSED: &str = "the configuration was not reloaded, the one in effect stays";
    let loaded = match config::load(options).and_then(Loaded::startable) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let lines = problems.lines();
            tracing::error!(count = lines.len(), problems = lines.join(" | "), "{REFUSED}");
            return;
        }
    };
    // A file that is gone for a moment must not bring the defaults back.
    if loaded.file != running.file {
        let (found, expected) = (loaded.file_name(), running.file_name());
        let problems = format!("{found} would take the place of {expected}: put that back, or restart the daemon");
        tracing::error!(count = 1, problems, "{REFUSED}");
        return;
    }
    if let Err(error) = logs.reload(&loaded.config.log) {
        tracing::error!(error = &error as &(dyn std::error::Error + 'static), "{REFUSED}");
        return;
    }
    log_warnings(&loaded);
    let differences = running.differences(&loaded, "log");
    if !differences.is_empty() {
        tracing::warn!("needs a restart: {}", differences.join(", "));
    }
    let beaten = loaded.beaten_changes(running, "log.");
    if !beaten.is_empty() {
        tracing::warn!("changed in the file and beaten from outside: {}", beaten.join(", "));
    }
    tracing::info!("[log] reloaded");
}

fn log_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!(
            source = loaded.source_of(warning),
            key = warning.key,
            hint = warning.hint,
            "{}",
            warning.message
        );
    }
}
