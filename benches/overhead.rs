//! What a request through the daemon costs, with telemetry off and fully on, beside a proxy that does nothing.
//!
//! `cargo bench --bench overhead`. The arms run interleaved, so that a noisy machine is noisy for all of them. The first
//! figure is processor time of the gateway process, which stays steady where latency doesn't. benches/README.md says more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod rig {
    pub mod collector;
    pub mod config;
    pub mod connection;
    pub mod cores;
    pub mod cost;
    pub mod load;
    pub mod machine;
    pub mod memory;
    pub mod null_proxy;
    pub mod pace;
    pub mod process;
    pub mod provider;
    pub mod ps;
    pub mod rounds;
    pub mod serve;
    pub mod statistics;
}

use std::{env, fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::time::sleep;

use rig::{
    collector::Collector,
    config::config,
    connection::Connection,
    cores::Cores,
    cost::Used,
    load::{Chat, Load, chat},
    machine::machine,
    memory::resident,
    null_proxy::null_proxy,
    process::{Gateway, free_address},
    provider::{CHUNKS, OUTPUT_TOKENS, Provider},
    rounds::Rounds,
    statistics::{metric, quantile},
};

const ROUNDS: usize = 5;
const CONNECTIONS: usize = 8;
/// Per arm and round, in a closed loop.
const WHOLE: usize = 2000;
const STREAMED: usize = 150;
/// Per arm and round, at a fixed rate, for the latency.
const PACED: usize = 400;
const INTERVAL: Duration = Duration::from_millis(2);
const WARM_UP: usize = 500;
/// What the daemon puts off is its cost too. Its longest delay is the exporter's half second.
const SETTLE: Duration = Duration::from_millis(700);
/// The aim, fully on: processor time per request, and as a multiple of the proxy that does nothing.
const AIM_MICROSECONDS: f64 = 100.0;
const AIM_RATIO: f64 = 1.5;

const DAEMON: &str = env!("CARGO_BIN_EXE_mlx-manager");
/// The first argument of this binary where it is to be the proxy; two addresses follow.
const NULL_PROXY: &str = "null-proxy";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, listen, provider] = arguments.as_slice()
        && role == NULL_PROXY
    {
        let (listen, provider) = (listen.parse()?, provider.parse()?);
        return runtime()?.block_on(null_proxy(listen, provider));
    }
    // Of which the next line may take some away.
    println!("{}", machine());
    let cores = Cores::share_out();
    runtime()?.block_on(measure(cores))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// A way from the load generator to the provider, and what was measured of it.
struct Arm {
    name: &'static str,
    /// `None` is the direct way.
    gateway: Option<Gateway>,
    /// Of a daemon that is scraped.
    metrics: Option<SocketAddr>,
    /// Where chats go.
    address: SocketAddr,
    load: Load,
    sent: usize,
    whole: Rounds,
    streamed: Rounds,
    per_second: Rounds,
    latencies: Vec<f64>,
    _folder: TempDir,
}

async fn measure(cores: Cores) -> Result<()> {
    let (provider, upstream) = Provider::start().await?;
    let (collector, otlp) = Collector::start().await?;
    let mut arms = Vec::new();
    for (name, telemetry) in [
        ("direct", None),
        ("null proxy", None),
        ("telemetry off", Some(Telemetry { scraped: false, spans: false, everything: false })),
        ("+ metrics", Some(Telemetry { scraped: true, spans: false, everything: false })),
        ("+ spans", Some(Telemetry { scraped: true, spans: true, everything: false })),
        ("fully on", Some(Telemetry { scraped: true, spans: true, everything: true })),
    ] {
        arms.push(
            Arm::start(name, telemetry, cores, upstream, otlp)
                .await
                .with_context(|| format!("{name:?} can't start"))?,
        );
    }

    let (whole, streamed) = (chat(false), chat(true));
    for arm in &mut arms {
        arm.load.closed_loop(&whole, WARM_UP).await?;
        arm.load.closed_loop(&streamed, WARM_UP / 10).await?;
        arm.sent += WARM_UP + WARM_UP / 10;
    }
    sleep(SETTLE).await;
    for _ in 0..ROUNDS {
        for arm in &mut arms {
            arm.round(&whole, &streamed).await.with_context(|| format!("{:?} failed", arm.name))?;
        }
    }

    // Figures of work that was not done are worth nothing.
    sleep(SETTLE).await;
    let sent: usize = arms.iter().map(|arm| arm.sent).sum();
    ensure!(provider.served() == sent, "{sent} chats were sent and {} served", provider.served());
    ensure!(collector.bytes() > 0, "no span was exported");
    for arm in &arms {
        arm.check().await.with_context(|| format!("{:?} lost something", arm.name))?;
    }
    report(&arms, cores)
}

/// What is switched on.
#[derive(Clone, Copy)]
struct Telemetry {
    scraped: bool,
    spans: bool,
    /// All three log sinks, and OTLP for metrics and logs too.
    everything: bool,
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

impl Arm {
    async fn start(
        name: &'static str,
        telemetry: Option<Telemetry>,
        cores: Cores,
        upstream: SocketAddr,
        otlp: SocketAddr,
    ) -> Result<Self> {
        let folder = TempDir::new()?;
        let (address, metrics) = (free_address()?, free_address()?);
        let gateway = match telemetry {
            Some(telemetry) => {
                fs::write(folder.path().join("config.toml"), telemetry.config(address, metrics, upstream, otlp))?;
                let arguments = ["serve", "--config", "config.toml"];
                Some(Gateway::start(cores.gateway(DAEMON.as_ref()), &arguments, folder.path(), address)?)
            }
            None if name == "direct" => None,
            None => {
                let arguments = [NULL_PROXY, &address.to_string(), &upstream.to_string()];
                let proxy = cores.gateway(env::current_exe()?.as_os_str());
                Some(Gateway::start(proxy, &arguments, folder.path(), address)?)
            }
        };
        let address = if gateway.is_some() { address } else { upstream };
        Ok(Self {
            name,
            gateway,
            metrics: telemetry.filter(|telemetry| telemetry.scraped).map(|_| metrics),
            address,
            load: Load::open(address, CONNECTIONS).await?,
            sent: 0,
            whole: Rounds::default(),
            streamed: Rounds::default(),
            per_second: Rounds::default(),
            latencies: Vec::new(),
            _folder: folder,
        })
    }

    async fn round(&mut self, whole: &Chat, streamed: &Chat) -> Result<()> {
        // While the other arms had their turn, the old connections may have been idle for too long.
        self.load = Load::open(self.address, CONNECTIONS).await?;
        let (cost, elapsed) = self.window(whole, WHOLE).await?;
        self.whole.0.extend(cost);
        self.per_second.0.push(WHOLE as f64 / elapsed.as_secs_f64());
        let (cost, _) = self.window(streamed, STREAMED).await?;
        self.streamed.0.extend(cost);
        let latencies = self.load.open_loop(whole, PACED, INTERVAL).await?;
        self.sent += PACED;
        self.latencies.extend(latencies.iter().map(|latency| latency.as_secs_f64() * 1e3));
        Ok(())
    }

    /// Sends chats and returns the gateway's microseconds for each, all that it put off included, and how long it took.
    async fn window(&mut self, chat: &Chat, count: usize) -> Result<(Option<f64>, Duration)> {
        let before = self.used()?;
        let started = std::time::Instant::now();
        self.load.closed_loop(chat, count).await?;
        self.sent += count;
        let elapsed = started.elapsed();
        self.scrape().await?;
        sleep(SETTLE).await;
        let used = self.used()?.zip(before).map(|(after, before)| after.since(&before));
        Ok((used.map(|used| used.as_secs_f64() * 1e6 / count as f64), elapsed))
    }

    fn used(&self) -> Result<Option<Used>> {
        self.gateway.as_ref().map(|gateway| Used::of(gateway.child.id())).transpose()
    }

    async fn scrape(&self) -> Result<Option<String>> {
        match self.metrics {
            Some(address) => Ok(Some(Connection::open(address).await?.get("/metrics").await?)),
            None => Ok(None),
        }
    }

    /// Holds what the daemon counted to what was sent.
    async fn check(&self) -> Result<()> {
        let Some(page) = self.scrape().await? else { return Ok(()) };
        let mut wrong = Vec::new();
        for (name, label, expected) in [
            ("mlx_manager_requests_total", "outcome=\"ok\"", self.sent),
            ("mlx_manager_tokens_total", "output", self.sent * usize::try_from(OUTPUT_TOKENS)?),
            ("mlx_manager_audit_rows_written_total", "", self.sent),
            ("mlx_manager_audit_rows_dropped_total", "", 0),
            ("mlx_manager_telemetry_dropped_total", "", 0),
            ("mlx_manager_log_records_dropped_total", "", 0),
        ] {
            let counted = metric(&page, name, label);
            if counted != expected as f64 {
                wrong.push(format!("{name} is {counted} instead of {expected}"));
                wrong.extend(page.lines().filter(|line| line.starts_with(name)).map(str::to_owned));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}

fn report(arms: &[Arm], cores: Cores) -> Result<()> {
    let null = arms.iter().find(|arm| arm.name == "null proxy").context("there is no null proxy")?;
    println!(
        "{ROUNDS} rounds; per arm and round {WHOLE} whole and {STREAMED} streamed chats of {CHUNKS} chunks over {CONNECTIONS} connections,"
    );
    println!(
        "then {PACED} chats at {:.0} a second for the latency; {}",
        1.0 / INTERVAL.as_secs_f64(),
        match cores {
            Cores::Pinned => "the gateway has one core, load and peers another",
            Cores::Shared => "gateway, load and peers share the cores",
        }
    );
    println!("medians (lowest–highest round); CPU is the gateway process's, in µs\n");
    println!(
        "{:<14} {:>17} {:>6} {:>20} {:>6} {:>9} {:>8} {:>8} {:>8} {:>7}",
        "", "CPU/request", "× null", "CPU/streamed", "× null", "CPU/chunk", "req/s", "p50 ms", "p99 ms", "RSS MB"
    );
    for arm in arms {
        let measured = arm.gateway.is_some();
        let shown = |figure: String| if measured { figure } else { "–".to_owned() };
        let (whole, streamed) = (arm.whole.median(), arm.streamed.median());
        let resident =
            arm.gateway.as_ref().map(|gateway| resident(gateway.child.id())).transpose()?.unwrap_or_default();
        println!(
            "{:<14} {:>17} {:>6} {:>20} {:>6} {:>9} {:>8.0} {:>8.2} {:>8.2} {:>7}",
            arm.name,
            arm.whole.to_string(),
            shown(format!("{:.2}", whole / null.whole.median())),
            arm.streamed.to_string(),
            shown(format!("{:.2}", streamed / null.streamed.median())),
            // What a streamed chat costs beyond a whole one is its chunks.
            shown(format!("{:.1}", (streamed - whole) / CHUNKS as f64)),
            arm.per_second.median(),
            quantile(&arm.latencies, 0.5),
            quantile(&arm.latencies, 0.99),
            shown(format!("{:.0}", resident as f64 / 1e6)),
        );
    }
    let full = arms.last().context("there are no arms")?.whole.median();
    let ratio = full / null.whole.median();
    let verdict = |met| if met { "met" } else { "missed" };
    println!("\naim, fully on: at most {AIM_MICROSECONDS} µs a request ({})", verdict(full <= AIM_MICROSECONDS));
    println!("               at most {AIM_RATIO} × the null proxy ({})", verdict(ratio <= AIM_RATIO));
    Ok(())
}
