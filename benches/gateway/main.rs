//! The gateway beside its peers: nginx, LiteLLM with and without telemetry, and Portkey, on the same requests.
//!
//! `make bench-gateway` installs the peers and runs it; `ARGS="--short"` sees in two minutes that it works,
//! `ARGS="--rounds 3"` takes fewer rounds, and `ARGS="nginx on litellm"` measures only what is named. Whatever of the peers is not below the folder that
//! `GATEWAY_PEERS` names is left out, and without that variable, as in `cargo bench`, nothing is measured. The arms run
//! interleaved, round by round. benches/README.md says more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod arm;
mod peers;
mod processes;
mod report;
mod spans;

#[path = "../rig"]
mod rig {
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
}

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use arm::{Arm, Scale, Way, chats};
use peers::{Peer, versions};
use report::Setting;
use rig::{
    collector::Collector,
    cores::Cores,
    kind::{Kind, Telemetry},
    machine::machine,
    nginx,
    null_proxy::null_proxy,
    provider::Provider,
};

const USUAL: Scale = Scale { rounds: 5, window: Duration::from_millis(400), paced: 30 };
const SHORT: Scale = Scale { rounds: 1, window: Duration::from_millis(200), paced: 10 };
/// Where all figures go, from the package's folder.
const FIGURES: &str = "target/bench-gateway.json";

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
    let Some(installed) = env::var_os("GATEWAY_PEERS").map(PathBuf::from) else {
        println!("the gateway is measured beside its peers by `make bench-gateway`");
        return Ok(());
    };
    let (mut scale, mut named) = (USUAL, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--short" => scale = SHORT,
            "--rounds" => scale.rounds = rest.next().context("--rounds wants a number")?.parse()?,
            name => named.push(name),
        }
    }
    let machine = machine();
    println!("{machine}");
    let cores = Cores::share_out();
    runtime()?.block_on(measure(machine, cores, scale, &named, &installed))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The arms by what they are called on the command line.
fn arms() -> Vec<(&'static str, &'static str, Way)> {
    let on = |on| Telemetry { scraped: on, spans: on, everything: on };
    let daemon = |telemetry| Way::Rig(Kind::Daemon(PathBuf::from(DAEMON), telemetry));
    vec![
        ("direct", "no gateway", Way::Rig(Kind::Direct)),
        ("null", "null proxy", Way::Rig(Kind::NullProxy)),
        ("nginx", "nginx", Way::Rig(Kind::Nginx)),
        ("off", "mlx-manager, telemetry off", daemon(on(false))),
        ("on", "mlx-manager, fully on", daemon(on(true))),
        ("litellm", "LiteLLM", Way::Peer(Peer::LiteLlm { callbacks: false })),
        ("litellm-on", "LiteLLM, prometheus and otel", Way::Peer(Peer::LiteLlm { callbacks: true })),
        ("portkey", "Portkey", Way::Peer(Peer::Portkey)),
    ]
}

async fn measure(machine: String, cores: Cores, scale: Scale, named: &[&str], installed: &Path) -> Result<()> {
    let (provider, upstream) = Provider::start().await?;
    let (collector, otlp) = Collector::start().await?;
    let unknown = named.iter().find(|name| arms().iter().all(|(short, ..)| short != *name));
    ensure!(unknown.is_none(), "no arm is called {unknown:?}");

    let (mut running, mut left_out) = (Vec::new(), Vec::new());
    for (short, name, way) in arms() {
        if !named.is_empty() && !named.contains(&short) {
            continue;
        }
        let is_there = match &way {
            Way::Rig(Kind::Nginx) => nginx::program().is_some(),
            Way::Rig(_) => true,
            Way::Peer(peer) => peer.is_installed(installed),
        };
        if is_there {
            let arm = Arm::start(name, way, installed, cores, upstream, otlp).await;
            running.push(arm.with_context(|| format!("{name:?} can't start"))?);
        } else {
            println!("{name} is not installed, so it is left out");
            left_out.push(name);
        }
    }
    let (mut arms, chats) = (running, chats());
    for arm in &mut arms {
        arm.warm_up(&chats, &provider, scale).await.with_context(|| format!("{:?} failed", arm.name))?;
    }
    for _ in 0..scale.rounds {
        for arm in &mut arms {
            arm.round(&chats, &provider, scale).await.with_context(|| format!("{:?} failed", arm.name))?;
        }
    }

    // Figures of work that was not done are worth nothing.
    let sent: usize = arms.iter().map(|arm| arm.sent).sum();
    ensure!(provider.served() == sent, "{sent} requests were sent and {} served", provider.served());
    for arm in &arms {
        ensure!(!arm.exports() || collector.bytes() > 0, "no span was exported");
        arm.check().await.with_context(|| format!("{:?} lost something", arm.name))?;
    }
    let setting = Setting { machine, cores, scale, versions: versions(installed)?, left_out };
    report::print(&arms, &setting)?;
    report::write(&arms, &setting, Path::new(FIGURES))
}
