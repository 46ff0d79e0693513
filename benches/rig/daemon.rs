//! A daemon with all of its telemetry on: every default sink, the Prometheus page, and three signals to a collector.

use std::{fs, net::SocketAddr};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{
    config::config,
    connection::Connection,
    cores::Cores,
    cost::Used,
    process::{Gateway, free_address},
    statistics::metric,
};

const DAEMON: &str = env!("CARGO_BIN_EXE_mlx-manager");
/// How its configuration is called in its folder.
const CONFIG: &str = "config.toml";

/// A daemon, and the folder that it works in.
pub struct Daemon {
    pub gateway: Gateway,
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub folder: TempDir,
}

impl Daemon {
    /// Starts one in a folder, which may hold a database already; `more` is what its configuration has beyond the rest.
    pub fn start(folder: TempDir, cores: Cores, upstream: SocketAddr, otlp: SocketAddr, more: &str) -> Result<Self> {
        let (address, metrics) = (free_address()?, free_address()?);
        let more = format!(
            r#"[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "http://{otlp}"
send = "always"
signals = ["traces", "metrics", "logs"]
spool = {{ dir = "spool", size = "10 GB" }}
{more}"#
        );
        fs::write(folder.path().join(CONFIG), config(address, Some(metrics), upstream, &more))?;
        let arguments = ["serve", "--config", CONFIG];
        let gateway = Gateway::start(cores.gateway(DAEMON.as_ref()), &arguments, folder.path(), address)?;
        Ok(Self { gateway, address, metrics, folder })
    }

    pub fn id(&self) -> u32 {
        self.gateway.child.id()
    }

    pub fn used(&self) -> Result<Used> {
        Used::of(self.id())
    }

    pub async fn scrape(&self) -> Result<String> {
        Connection::open(self.metrics).await?.get("/metrics").await
    }

    /// Holds what the daemon counted to what was sent. Figures of work that was not done are worth nothing.
    pub async fn check(&self, sent: usize) -> Result<()> {
        let page = self.scrape().await?;
        for (name, label, expected) in [
            ("mlx_manager_requests_total", "outcome=\"ok\"", sent),
            ("mlx_manager_audit_rows_written_total", "", sent),
            ("mlx_manager_audit_rows_dropped_total", "", 0),
            ("mlx_manager_telemetry_dropped_total", "", 0),
            ("mlx_manager_log_records_dropped_total", "", 0),
        ] {
            let counted = metric(&page, name, label);
            ensure!(counted == expected as f64, "{name} is {counted} instead of {expected}");
        }
        Ok(())
    }
}
