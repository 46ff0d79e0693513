//! `mlx-manager serve`: the daemon.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use mlx_manager_config as config;
use mlx_manager_config::{LoadOptions, Loaded};
use mlx_manager_signal::event::{
    ConfigWarning, DaemonFailed, LogFilesReopened, LogReloaded, ReloadRefused, StopSignalled,
};
use mlx_manager_telemetry::{
    Telemetry,
    log::{LogHandle, Terminal},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::{
    app::{App, BUILD},
    gateway::cloud,
};

/// How long telemetry may take to reach its destinations at the end.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn run(options: LoadOptions, loaded: Loaded, terminal: Terminal) -> Result<(), Failure> {
    cloud::install_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Ports first: when one is busy, that is all there is to say, and no log or database was touched.
    let app = runtime.block_on(App::bind(&loaded.config))?;
    let telemetry = Telemetry::start(&loaded.config, terminal, BUILD)?;
    log_warnings(&loaded);
    let result = runtime.block_on(run_until_told(app, options, loaded, &telemetry));
    if let Err(error) = &result {
        DaemonFailed { error: &**error }.emit();
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
            StopSignalled { signal: name, again: stop.is_cancelled() }.emit();
            stop.cancel();
        }
    };
    tokio::select! {
        result = app.run(&reloading.1.config, telemetry.metrics(), stop.clone()) => Ok(result?),
        never = told => never,
    }
}

/// What SIGHUP asks for: log files are opened anew, and the `[log]` section is read again. `running` is the configuration
/// that the daemon started with, by which everything else goes on.
fn reload(options: &LoadOptions, running: &Loaded, logs: &LogHandle) {
    // First and in any case: it is what logrotate sends after it moved the files away.
    logs.reopen();
    LogFilesReopened.emit();
    let loaded = match config::load(options).and_then(Loaded::startable) {
        Ok(loaded) => loaded,
        Err(problems) => {
            return ReloadRefused::Problems(&problems.lines()).emit();
        }
    };
    // A file that is gone for a moment must not bring the defaults back.
    if loaded.file != running.file {
        let (found, expected) = (loaded.file_name(), running.file_name());
        let problem = format!("{found} would take the place of {expected}: put that back, or restart the daemon");
        return ReloadRefused::Problems(&[problem]).emit();
    }
    if let Err(error) = logs.reload(&loaded.config.log) {
        return ReloadRefused::Error(&error).emit();
    }
    log_warnings(&loaded);
    let needs_restart = running.differences(&loaded, "log");
    let beaten = loaded.beaten_changes(running, "log.");
    LogReloaded { needs_restart: &needs_restart, beaten: &beaten }.emit();
}

fn log_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        ConfigWarning {
            source: &loaded.source_of(warning),
            key: &warning.key,
            hint: warning.hint.as_deref(),
            message: &warning.message,
        }
        .emit();
    }
}
