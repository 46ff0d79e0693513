//! `mlx-manager serve`: the daemon.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::{
    app::App,
    config::{Config, Loaded},
    server::cloud,
    telemetry::{Telemetry, log::Terminal},
};

/// How long telemetry may take to reach its destinations at the end.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn run(loaded: Loaded, terminal: Terminal) -> Result<(), Failure> {
    cloud::install_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Ports first: when one is busy, that is all there is to say, and no log or database was touched.
    let app = runtime.block_on(App::bind(&loaded.config))?;
    let telemetry = Telemetry::start(&loaded.config, terminal)?;
    for warning in &loaded.warnings {
        tracing::warn!(
            source = loaded.source_of(warning),
            key = warning.key,
            hint = warning.hint,
            "{}",
            warning.message
        );
    }
    let result = runtime.block_on(run_until_told(app, loaded.config, &telemetry));
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

async fn run_until_told(app: App, config: Config, telemetry: &Telemetry) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
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
                    // What logrotate sends after it moved the files away.
                    telemetry.reopen_logs();
                    tracing::info!("log files reopened");
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
