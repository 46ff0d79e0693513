//! What callers notice of a collector that is away for a while: latency and memory before, during and after, beside a
//! daemon whose collector stays.
//!
//! `cargo bench --bench outage`, and `-- 600` for an outage of as many seconds instead of a minute. benches/README.md says
//! more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod rig {
    pub mod collector;
    pub mod config;
    pub mod connection;
    pub mod cores;
    pub mod load;
    pub mod machine;
    pub mod memory;
    pub mod pace;
    pub mod process;
    pub mod provider;
    pub mod ps;
    pub mod serve;
    pub mod statistics;
}

use std::{
    env, fs,
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use tempfile::TempDir;
use tokio::time::sleep;

use rig::{
    collector::Collector,
    config::config,
    connection::Connection,
    cores::Cores,
    load::{Load, chat},
    machine::machine,
    memory::resident,
    process::{Gateway, free_address},
    provider::Provider,
    statistics::{metric, quantile},
};

const CONNECTIONS: usize = 8;
const SECONDS: u64 = 60;
/// How long the collector is there before and after, as a share of the outage.
const AROUND: f64 = 0.25;
/// The arms take turns; chats of a turn, one every interval.
const TURN: usize = 500;
const INTERVAL: Duration = Duration::from_millis(2);
const WARM_UP: usize = 5000;
/// Spans of a chat, those of the audit rows not counted, which chats share.
const SPANS: usize = 4;
/// How long the spool may take to empty when the load is over.
const PATIENCE: Duration = Duration::from_secs(120);

const DAEMON: &str = env!("CARGO_BIN_EXE_mlx-manager");

fn main() -> Result<()> {
    let seconds = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(SECONDS);
    println!("{}", machine());
    let cores = Cores::share_out();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(cores, Duration::from_secs(seconds)))
}

/// A daemon with a collector of its own.
struct Arm {
    name: &'static str,
    gateway: Gateway,
    collector: Collector,
    metrics: SocketAddr,
    load: Load,
    sent: usize,
    _folder: TempDir,
}

async fn measure(cores: Cores, outage: Duration) -> Result<()> {
    let (provider, upstream) = Provider::start().await?;
    let mut arms = Vec::new();
    for name in ["its collector stays", "its collector goes"] {
        arms.push(Arm::start(name, cores, upstream).await.with_context(|| format!("{name:?} can't start"))?);
    }
    for arm in &mut arms {
        arm.load.closed_loop(&chat(false, 0), WARM_UP).await?;
        arm.sent += WARM_UP;
    }
    println!(
        "{:.0} chats a second over {CONNECTIONS} connections, one daemon after the other; latency in ms from when a chat was due\n",
        1.0 / INTERVAL.as_secs_f64()
    );
    println!(
        "{:<22} {:<8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "", "phase", "chats", "p50", "p99", "p99.9", "RSS MB", "spool MB"
    );
    let around = outage.mul_f64(AROUND);
    for (phase, length, status) in [
        ("before", around, StatusCode::OK),
        ("away", outage, StatusCode::SERVICE_UNAVAILABLE),
        ("back", around, StatusCode::OK),
    ] {
        if let Some(arm) = arms.last() {
            arm.collector.status.store(status.as_u16(), Ordering::Relaxed);
        }
        let mut latencies = vec![Vec::new(); arms.len()];
        let started = Instant::now();
        while started.elapsed() < length {
            for (arm, latencies) in arms.iter_mut().zip(&mut latencies) {
                latencies.extend(arm.turn().await.with_context(|| format!("{:?} failed", arm.name))?);
            }
        }
        for (arm, latencies) in arms.iter().zip(&latencies) {
            let spool = metric(&arm.scrape().await?, "mlx_manager_spool_bytes", "");
            println!(
                "{:<22} {phase:<8} {:>8} {:>8.2} {:>8.2} {:>8.2} {:>8.0} {:>9.1}",
                arm.name,
                latencies.len(),
                quantile(latencies, 0.5),
                quantile(latencies, 0.99),
                quantile(latencies, 0.999),
                resident(arm.gateway.child.id())? as f64 / 1e6,
                spool / 1e6,
            );
        }
    }
    let sent: usize = arms.iter().map(|arm| arm.sent).sum();
    ensure!(provider.served() == sent, "{sent} chats were sent and {} served", provider.served());
    for arm in &arms {
        arm.check().await.with_context(|| format!("{:?} is no good", arm.name))?;
    }
    println!("\nevery span was exported; none was dropped or failed");
    Ok(())
}

impl Arm {
    async fn start(name: &'static str, cores: Cores, upstream: SocketAddr) -> Result<Self> {
        let folder = TempDir::new()?;
        let (address, metrics) = (free_address()?, free_address()?);
        let (collector, otlp) = Collector::start().await?;
        let otlp = format!(
            r#"[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "http://{otlp}"
send = "always"
signals = ["traces"]
spool = {{ dir = "spool", size = "10 GB" }}"#
        );
        let config = config(address, Some(metrics), upstream, &otlp);
        fs::write(folder.path().join("config.toml"), config)?;
        let arguments = ["serve", "--config", "config.toml"];
        let gateway = Gateway::start(cores.gateway(DAEMON.as_ref()), &arguments, folder.path(), address)?;
        let load = Load::open(address, CONNECTIONS).await?;
        Ok(Self { name, gateway, collector, metrics, load, sent: 0, _folder: folder })
    }

    /// Milliseconds of each chat.
    async fn turn(&mut self) -> Result<Vec<f64>> {
        let latencies = self.load.open_loop(&chat(false, 0), TURN, INTERVAL).await?;
        self.sent += latencies.len();
        Ok(latencies.iter().map(|latency| latency.as_secs_f64() * 1e3).collect())
    }

    async fn scrape(&self) -> Result<String> {
        Connection::open(self.metrics).await?.get("/metrics").await
    }

    /// Waits until the spool is empty and holds the daemon to what was sent.
    async fn check(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let traces =
            |page: &str, what| metric(page, &format!("mlx_manager_telemetry_{what}_total"), "signal=\"traces\"");
        loop {
            let page = self.scrape().await?;
            let exported = traces(&page, "exported");
            let spooled = metric(&page, "mlx_manager_spool_bytes", "");
            if exported >= (SPANS * self.sent) as f64 && spooled == 0.0 {
                let lost = ["dropped", "failed"].map(|what| traces(&page, what));
                ensure!(lost == [0.0, 0.0], "spans dropped and failed: {lost:?}");
                ensure!(self.collector.bytes() > 0, "nothing came");
                return Ok(());
            }
            ensure!(Instant::now() < end, "{exported} spans of {} chats arrived, {spooled} bytes wait", self.sent);
            sleep(Duration::from_millis(100)).await;
        }
    }
}
