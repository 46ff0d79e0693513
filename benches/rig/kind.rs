//! What can stand between the load generator and the provider, and how it is started.

use std::{env, fs, net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{
    config::config,
    cores::Cores,
    nginx,
    process::{Gateway, free_address},
    provider::OUTPUT_TOKENS,
    statistics::metric,
};

/// What an arm is.
pub enum Kind {
    /// No gateway.
    Direct,
    NullProxy,
    Nginx,
    /// A binary of it.
    Daemon(PathBuf, Telemetry),
}

/// What is switched on.
#[derive(Clone, Copy)]
pub struct Telemetry {
    pub scraped: bool,
    pub spans: bool,
    /// All three log sinks, and OTLP for metrics and logs too.
    pub everything: bool,
}

impl Telemetry {
    fn config(self, api: SocketAddr, metrics: SocketAddr, upstream: SocketAddr, otlp: SocketAddr) -> String {
        let signals = match self {
            Self { everything: true, .. } => r#"["traces", "metrics", "logs"]"#,
            _ => r#"["traces"]"#,
        };
        let send = if self.spans { "always" } else { "never" };
        // There are always counters, which off means nobody reads, and there is always the audit, in its file.
        let quiet = if self.everything { "" } else { "[log]\nlevel = \"off\"\nsinks = []\n" };
        let more = format!(
            r#"[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "http://{otlp}"
send = "{send}"
signals = {signals}
{quiet}"#
        );
        config(api, self.scraped.then_some(metrics), upstream, &more)
    }
}

/// An arm that takes requests.
pub struct Running {
    /// `None` is the direct way.
    pub gateway: Option<Gateway>,
    /// Where chats go.
    pub address: SocketAddr,
    /// Where it is scraped, if it is.
    pub metrics: Option<SocketAddr>,
    /// Where its files are, as long as it runs.
    pub _folder: TempDir,
}

impl Kind {
    pub fn start(&self, cores: Cores, upstream: SocketAddr, otlp: SocketAddr) -> Result<Running> {
        let folder = TempDir::new()?;
        let (address, metrics) = (free_address()?, free_address()?);
        let mut scraped = None;
        let gateway = match self {
            Self::Direct => None,
            Self::Nginx => {
                let program = nginx::program().unwrap_or("nginx");
                Some(nginx::nginx(program, cores, address, upstream, folder.path())?)
            }
            Self::NullProxy => {
                let arguments = ["null-proxy", &address.to_string(), &upstream.to_string()];
                let proxy = cores.gateway(env::current_exe()?.as_os_str());
                Some(Gateway::start(proxy, &arguments, folder.path(), address)?)
            }
            Self::Daemon(binary, telemetry) => {
                scraped = telemetry.scraped.then_some(metrics);
                fs::write(folder.path().join("config.toml"), telemetry.config(address, metrics, upstream, otlp))?;
                let arguments = ["serve", "--config", "config.toml"];
                Some(Gateway::start(cores.gateway(binary.as_ref()), &arguments, folder.path(), address)?)
            }
        };
        let address = if gateway.is_some() { address } else { upstream };
        Ok(Running { gateway, address, metrics: scraped, _folder: folder })
    }
}

/// Holds what a daemon's page of metrics counts to what was sent: chats that reached the provider, and those that didn't.
pub fn counted(page: &str, served: usize, uncalled: usize) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, label, expected) in [
        ("mlx_manager_requests_total", "outcome=\"ok\"", served),
        ("mlx_manager_tokens_total", "output", served * usize::try_from(OUTPUT_TOKENS)?),
        ("mlx_manager_audit_rows_written_total", "", served + uncalled),
        ("mlx_manager_audit_rows_dropped_total", "", 0),
        ("mlx_manager_telemetry_dropped_total", "", 0),
        ("mlx_manager_log_records_dropped_total", "", 0),
    ] {
        let counted = metric(page, name, label);
        if counted != expected as f64 {
            wrong.push(format!("{name} is {counted} instead of {expected}"));
            wrong.extend(page.lines().filter(|line| line.starts_with(name)).map(str::to_owned));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
