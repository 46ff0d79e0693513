//! `mlx-manager models pull`: a download, traced like the daemon's own calls.

use std::{io::Write, time::Duration};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use mlx_manager_catalogue::{Catalogue, Place, SUPPORTED};
use mlx_manager_config::{Config, Environment, HubConfig, SinkKind};
use mlx_manager_telemetry::{Telemetry, log::Terminal};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    app::BUILD,
    cli::{Failure, say},
    gateway::{cloud, local},
    manager::models::download::{self, Outcome, Progress, Pull, Pulled, Source},
};

/// How long telemetry may take to reach its destinations at the end.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

const BAR: &str = "{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg}";

pub(super) fn run(
    config: &Config,
    environment: &Environment,
    terminal: Terminal,
    source: &Source,
) -> Result<(), Failure> {
    let hub = HubConfig::from_environment(environment).map_err(|error| Failure { code: 2, error: error.into() })?;
    cloud::install_tls();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let telemetry = Telemetry::start(&beside_daemon(config, terminal), terminal, BUILD)?;
    let pull = Pull { source, hub: &hub, models_dir: config.local.models_dir.clone(), supported: &SUPPORTED };
    let result = runtime.block_on(pull_until_interrupted(&pull));
    if !telemetry.stop(FLUSH_DEADLINE) {
        say(format_args!("mlx-manager: some telemetry could not be delivered before the end"));
    }
    let pulled = result?;
    tell(config, source, &pulled);
    writeln!(std::io::stdout(), "{}", pulled.folder.display())?;
    Ok(())
}

/// The configuration for a short-lived process beside the daemon: log files and spools are the daemon's own, and what is
/// known of requests before the first one comes is its to report.
fn beside_daemon(config: &Config, terminal: Terminal) -> Config {
    let mut config = config.clone();
    // On a terminal the progress bar tells it all, and lines would tear it.
    config.log.sinks.retain(|sink| matches!(sink.kind, SinkKind::Console { .. }) && !terminal.is_terminal);
    config.otlp.iter_mut().for_each(|destination| destination.spool = None);
    config.providers.clear();
    config.cloud.routes.clear();
    config.local.models.clear();
    config.local.default_model = None;
    config
}

async fn pull_until_interrupted(pull: &Pull<'_>) -> anyhow::Result<Pulled> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    // Without a terminal it is invisible, and the log says the same.
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(BAR)?);
    let progress = |progress: Progress<'_>| show(&bar, progress);
    let result = tokio::select! {
        result = download::pull(pull, &progress) => {
            result.map_err(|error| {
                let remedy = error.remedy();
                anyhow!("{:#}; {remedy}", anyhow::Error::from(error))
            })
        }
        _ = interrupt.recv() => Err(anyhow!("interrupted; the same command goes on where this one stopped")),
        _ = terminate.recv() => Err(anyhow!("terminated; the same command goes on where this one stopped")),
    };
    bar.finish_and_clear();
    result
}

fn show(bar: &ProgressBar, progress: Progress<'_>) {
    match progress {
        Progress::File(name) => bar.set_message(name.to_owned()),
        Progress::Bytes(there, all) => {
            let begins = bar.length() != Some(all);
            bar.set_length(all);
            bar.set_position(there);
            if begins {
                // What an earlier attempt left says nothing of the speed.
                bar.reset_eta();
            }
        }
        Progress::Waiting(reason, delay) => bar.println(format!("{reason}: trying again in {delay:.1?}")),
    }
}

/// Says what is there now, and how to use it.
fn tell(config: &Config, source: &Source, pulled: &Pulled) {
    let name = source.repository.to_string();
    let done = match pulled.outcome {
        Outcome::Pulled => "is there",
        Outcome::Updated => "is up to date",
        Outcome::Present => "is already there, complete",
    };
    say(format_args!("{name} {done}: {} at commit {}", bytesize::ByteSize(pulled.bytes), pulled.commit));
    if BUILD.engine == local::NONE {
        say(format_args!("This build serves no local models: build one with the feature mlx."));
        return;
    }
    if Catalogue::new(&config.local).find(&name) != Some(Place::Folder(pulled.folder.clone())) {
        say(format_args!(
            "Requests for {name} go elsewhere, by an entry of [[local.models]]: rename that, or add to the configuration\n\
             \n  [[local.models]]\n  name = \"another name\"\n  path = \"{}\"\n",
            pulled.folder.display()
        ));
        return;
    }
    let when = match pulled.outcome {
        Outcome::Updated => "A daemon that has loaded the old files serves these after a restart.",
        Outcome::Pulled | Outcome::Present => "A running daemon finds it by itself.",
    };
    say(format_args!(
        "{when} To ask it:\n\
         \n  curl http://{}/v1/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"model\": \"{name}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\
         \nTo have it loaded at start, put into the configuration, and restart:\n\
         \n  [local]\n  default_model = \"{name}\"\n",
        config.server.listen
    ));
}
