//! Whether the daemon's memory stays flat at full rate while nobody takes its telemetry: no receiver, no scraper.
//!
//! `cargo bench --bench memory`, and `-- 600` for as many seconds instead of a minute. benches/README.md says more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod rig {
    pub mod config;
    pub mod connection;
    pub mod cores;
    pub mod load;
    pub mod machine;
    pub mod memory;
    pub mod process;
    pub mod provider;
    pub mod ps;
    pub mod serve;
    pub mod statistics;
}

use std::{
    env, fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use rig::{
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
/// Lines of the report.
const SAMPLES: u32 = 12;
/// Chats of a turn; a tenth as many are streamed.
const TURN: usize = 500;
/// How much the second half may hold beyond the first: the allocator's breath, not a leak's.
const GROWTH: f64 = 1.1;

const DAEMON: &str = env!("CARGO_BIN_EXE_mlx-manager");

fn main() -> Result<()> {
    let seconds = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(SECONDS);
    println!("{}", machine());
    let cores = Cores::share_out();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(soak(cores, Duration::from_secs(seconds)))
}

/// A daemon under load.
struct Arm {
    name: &'static str,
    gateway: Gateway,
    metrics: SocketAddr,
    load: Load,
    sent: usize,
    /// Megabytes.
    resident: Vec<f64>,
    _folder: TempDir,
}

async fn soak(cores: Cores, length: Duration) -> Result<()> {
    let (provider, upstream) = Provider::start().await?;
    let mut arms = Vec::new();
    for (name, spool) in
        [("no receiver", ""), ("no receiver, a spool of 64 MB", "spool = { dir = \"spool\", size = \"64 MB\" }")]
    {
        arms.push(Arm::start(name, spool, cores, upstream).await.with_context(|| format!("{name:?} can't start"))?);
    }
    println!("resident megabytes, {CONNECTIONS} connections in a closed loop, nobody receives, nobody scrapes\n");
    println!(
        "{:>8} {:>10} {}",
        "seconds",
        "chats",
        arms.iter().map(|arm| format!("{:>32}", arm.name)).collect::<String>()
    );
    let (whole, streamed) = (chat(false, 0), chat(true, 0));
    let started = Instant::now();
    for sample in 1..=SAMPLES {
        while started.elapsed() < length * sample / SAMPLES {
            for arm in &mut arms {
                arm.load.closed_loop(&whole, TURN).await?;
                arm.load.closed_loop(&streamed, TURN / 10).await?;
                arm.sent += TURN + TURN / 10;
            }
        }
        for arm in &mut arms {
            arm.resident.push(resident(arm.gateway.child.id())? as f64 / 1e6);
        }
        let shown: String = arms.iter().map(|arm| format!("{:>32.0}", arm.resident.last().unwrap_or(&0.0))).collect();
        println!("{:>8.0} {:>10} {shown}", started.elapsed().as_secs_f64(), provider.served());
    }
    for arm in &arms {
        arm.check().await.with_context(|| format!("{:?} is no good", arm.name))?;
    }
    println!("\nflat: the second half holds at most {GROWTH} times what the first held");
    Ok(())
}

impl Arm {
    async fn start(name: &'static str, spool: &str, cores: Cores, upstream: SocketAddr) -> Result<Self> {
        let folder = TempDir::new()?;
        let (address, metrics, nobody) = (free_address()?, free_address()?, free_address()?);
        let otlp = format!(
            r#"[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "http://{nobody}"
send = "always"
signals = ["traces", "metrics", "logs"]
{spool}"#
        );
        let config = config(address, Some(metrics), upstream, &otlp);
        fs::write(folder.path().join("config.toml"), config)?;
        let arguments = ["serve", "--config", "config.toml"];
        let gateway = Gateway::start(cores.gateway(DAEMON.as_ref()), &arguments, folder.path(), address)?;
        let load = Load::open(address, CONNECTIONS).await?;
        Ok(Self { name, gateway, metrics, load, sent: 0, resident: Vec::new(), _folder: folder })
    }

    /// Holds the daemon to its own counters: every chat was counted, and what nobody took was counted too.
    async fn check(&self) -> Result<()> {
        let page = Connection::open(self.metrics).await?.get("/metrics").await?;
        let counted = metric(&page, "mlx_manager_requests_total", "outcome=\"ok\"");
        ensure!(counted == self.sent as f64, "{} chats were sent and {counted} counted", self.sent);
        ensure!(metric(&page, "mlx_manager_telemetry_exported_total", "") == 0.0, "somebody received something");
        let (first, second) = self.resident.split_at(self.resident.len() / 2);
        let (first, second) = (quantile(first, 1.0), quantile(second, 1.0));
        ensure!(second <= first * GROWTH, "memory grew from {first:.0} to {second:.0} MB");
        Ok(())
    }
}
