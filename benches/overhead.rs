//! What a request through the daemon costs, with telemetry off and fully on, beside nginx and a proxy that does nothing.
//!
//! `cargo bench --bench overhead`. The arms run interleaved, so that a noisy machine is noisy for all of them. The first
//! figure is processor time of the gateway process, which stays steady where latency doesn't. benches/README.md says more.
//! `cargo bench --bench overhead -- pinned nginx off on` measures only what is named, with other binaries of the daemon
//! beside it where `OVERHEAD_BESIDE` names some, as `PATH` does folders.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod rig {
    pub mod arm;
    pub mod collector;
    pub mod config;
    pub mod connection;
    pub mod cores;
    pub mod cost;
    pub mod kind;
    pub mod load;
    pub mod machine;
    pub mod memory;
    pub mod nginx;
    pub mod null_proxy;
    pub mod pace;
    pub mod process;
    pub mod provider;
    pub mod ps;
    pub mod rounds;
    pub mod serve;
    pub mod statistics;
    pub mod uncalled;
}

use std::{env, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

use rig::{
    arm::{Arm, CONNECTIONS, INTERVAL, PACED, SETTLE, STREAMED, WHOLE, Work, Works},
    collector::Collector,
    cores::Cores,
    kind::{Kind, Telemetry},
    machine::machine,
    null_proxy::null_proxy,
    provider::{CHUNKS, Provider},
    statistics::quantile,
};

const ROUNDS: usize = 5;
/// The aims, as multiples of what nginx costs in the same rounds.
const AIM_OFF: f64 = 2.0;
const AIM_ON: f64 = 4.5;
const AIM_LARGE: f64 = 1.5;
/// A streamed chunk, as a multiple of the null proxy's.
const AIM_CHUNK: f64 = 1.3;

const DAEMON: &str = env!("CARGO_BIN_EXE_mlx-manager");
/// The first argument of this binary where it is to be the proxy; two addresses follow.
const NULL_PROXY: &str = "null-proxy";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [role, listen, provider] = arguments.as_slice()
        && role == NULL_PROXY
    {
        let (listen, provider) = (listen.parse()?, provider.parse()?);
        return runtime()?.block_on(null_proxy(listen, provider));
    }
    let is_place = |argument: &&String| ["pinned", "unpinned"].contains(&argument.as_str());
    if let Some(place) = arguments.iter().find(is_place) {
        let cores = if place == "pinned" { Cores::share_out() } else { Cores::Shared };
        let named = arguments.iter().filter(|argument| !is_place(argument)).map(String::as_str).collect();
        return runtime()?.block_on(measure(cores, named));
    }
    println!("{}", machine());
    // Each in a process of its own, since a process that moved to one core doesn't come back.
    for place in ["pinned", "unpinned"] {
        println!("\n## {place}\n");
        let status = Command::new(env::current_exe()?).arg(place).args(&arguments).status()?;
        ensure!(status.success(), "{place}: {status}");
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The arms by what they are called on the command line.
fn arms() -> Vec<(&'static str, &'static str, Kind)> {
    let daemon = PathBuf::from(DAEMON);
    let on = |scraped, spans, everything| Telemetry { scraped, spans, everything };
    let (off, everything) = (on(false, false, false), on(true, true, true));
    let mut arms = vec![
        ("direct", "direct", Kind::Direct),
        ("null", "null proxy", Kind::NullProxy),
        ("nginx", "nginx", Kind::Nginx),
        ("off", "telemetry off", Kind::Daemon(daemon.clone(), off)),
        ("metrics", "+ metrics", Kind::Daemon(daemon.clone(), on(true, false, false))),
        ("spans", "+ spans", Kind::Daemon(daemon.clone(), on(true, true, false))),
        ("on", "fully on", Kind::Daemon(daemon, everything)),
    ];
    let others = env::var_os("OVERHEAD_BESIDE").unwrap_or_default();
    for other in env::split_paths(&others).filter(|path| !path.as_os_str().is_empty()) {
        // A few for the process's life.
        let name = |what: &str| -> &'static str {
            format!("{what}, {}", other.file_name().unwrap_or_default().display()).leak()
        };
        arms.push(("off", name("off"), Kind::Daemon(other.clone(), off)));
        arms.push(("on", name("on"), Kind::Daemon(other.clone(), everything)));
    }
    arms
}

async fn measure(cores: Cores, named: Vec<&str>) -> Result<()> {
    let (provider, upstream) = Provider::start().await?;
    let (collector, otlp) = Collector::start().await?;
    let mut arms_measured = Vec::new();
    for (short, name, kind) in arms() {
        if !named.is_empty() && !named.contains(&short) {
            continue;
        }
        if matches!(kind, Kind::Nginx) && rig::nginx::program().is_none() {
            println!("nginx is not installed, so nothing is compared with it");
            continue;
        }
        let arm = Arm::start(name, kind, cores, upstream, otlp).await;
        arms_measured.push(arm.with_context(|| format!("{name:?} can't start"))?);
    }
    let mut arms = arms_measured;
    let works = Works::new();
    for arm in &mut arms {
        arm.warm_up(&works).await?;
    }
    sleep(SETTLE).await;
    for _ in 0..ROUNDS {
        for arm in &mut arms {
            arm.round(&works).await.with_context(|| format!("{:?} failed", arm.name))?;
        }
    }

    // Figures of work that was not done are worth nothing.
    sleep(SETTLE).await;
    let sent: usize = arms.iter().map(|arm| arm.sent).sum();
    ensure!(provider.served() == sent, "{sent} chats were sent and {} served", provider.served());
    for arm in &arms {
        ensure!(!arm.exports() || collector.bytes() > 0, "no span was exported");
        arm.check().await.with_context(|| format!("{:?} lost something", arm.name))?;
    }
    report(&arms, cores)
}

fn report(arms: &[Arm], cores: Cores) -> Result<()> {
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
    println!("medians (lowest–highest round); CPU is the gateway's, in µs, and × is of nginx's\n");
    let median = |name: &str, work| arms.iter().find(|arm| arm.name == name).map(|arm| arm.cost(work).median());
    let times = |figure: f64, of: Option<f64>| of.map_or_else(|| "–".to_owned(), |of| format!("{:.2}", figure / of));
    println!(
        "{:<18} {:>17} {:>6} {:>9} {:>8} {:>6} {:>8} {:>6} {:>8} {:>8} {:>8} {:>7}",
        "", "CPU/request", "×", "CPU/chunk", "100 kB", "×", "1 MB", "×", "req/s", "p50 ms", "p99 ms", "RSS MB"
    );
    for arm in arms {
        let shown = |figure: String| if arm.is_measured() { figure } else { "–".to_owned() };
        let whole = arm.cost(Work::Whole);
        let of = |work| shown(times(arm.cost(work).median(), median("nginx", work)));
        println!(
            "{:<18} {:>17} {:>6} {:>9} {:>8} {:>6} {:>8} {:>6} {:>8.0} {:>8.2} {:>8.2} {:>7}",
            arm.name,
            whole.to_string(),
            of(Work::Whole),
            shown(format!("{:.1}", arm.chunk())),
            shown(format!("{:.0}", arm.cost(Work::Hundred).median())),
            of(Work::Hundred),
            shown(format!("{:.0}", arm.cost(Work::Megabyte).median())),
            of(Work::Megabyte),
            arm.per_second.median(),
            quantile(&arm.latencies, 0.5),
            quantile(&arm.latencies, 0.99),
            shown(format!("{:.0}", arm.resident()? as f64 / 1e6)),
        );
    }
    println!("\na whole chat by thread, µs");
    for arm in arms.iter().filter(|arm| arm.is_measured()) {
        println!("{:<18} {}", arm.name, arm.threads());
    }
    println!(
        "\nby what is done: a probe; a chat that is refused once it was understood; a whole one; what the daemon calls its own"
    );
    for arm in arms.iter().filter(|arm| arm.is_daemon()) {
        let [probe, refused, whole] = [Work::Probe, Work::Refused, Work::Whole].map(|work| arm.cost(work).median());
        println!("{:<18} {probe:>6.0} {refused:>6.0} {whole:>6.0}   {}", arm.name, arm.phases);
    }

    println!();
    for (name, work, of, aim) in [
        ("telemetry off", Work::Whole, "nginx", AIM_OFF),
        ("fully on", Work::Whole, "nginx", AIM_ON),
        ("telemetry off", Work::Megabyte, "nginx", AIM_LARGE),
        ("fully on", Work::Megabyte, "nginx", AIM_LARGE),
    ] {
        if let (Some(cost), Some(peer)) = (median(name, work), median(of, work)) {
            verdict(&format!("{name}, {}", work.name()), cost / peer, aim, of);
        }
    }
    if let Some(null) = arms.iter().find(|arm| arm.name == "null proxy") {
        for arm in arms.iter().filter(|arm| ["telemetry off", "fully on"].contains(&arm.name)) {
            verdict(&format!("{}, a chunk", arm.name), arm.chunk() / null.chunk(), AIM_CHUNK, null.name);
        }
    }
    Ok(())
}

fn verdict(what: &str, ratio: f64, aim: f64, of: &str) {
    let met = if ratio <= aim { "met" } else { "missed" };
    println!("aim: {what} at most {aim} × {of}: {ratio:.2} ({met})");
}

/// How long the daemon puts work off at most.
const _: () = assert!(SETTLE.as_millis() > Duration::from_millis(500).as_millis());
