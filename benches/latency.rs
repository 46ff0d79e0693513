//! What the daemon adds to a request's latency at half of its load, with everything on, and what scrapes, rotations and an
//! absent collector change about it.
//!
//! `cargo bench --bench latency`, with `-- pinned` where the daemon has a core for itself, and with `-- contention` for the
//! locks that its threads wait for under the same load, and whose they are. benches/README.md says more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod rig {
    pub mod collector;
    pub mod config;
    pub mod connection;
    pub mod cores;
    pub mod cost;
    pub mod daemon;
    pub mod latency {
        pub mod condition;
        pub mod contention;
    }
    pub mod load;
    pub mod machine;
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
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

use rig::{
    cores::Cores,
    latency::{
        condition::{CONNECTIONS, Condition, SETTLE, Trouble},
        contention::contention,
    },
    load::{Load, chat},
    machine::machine,
    provider::Provider,
    rounds::Rounds,
    statistics::quantile,
};

const ROUNDS: usize = 5;
/// Of one arm, and of the direct way before it.
const WINDOW: Duration = Duration::from_secs(2);
const WARM_UP: usize = 5000;
/// Windows that look for the capacity, and the chats of each.
const LOOKS: usize = 3;
const LOOK: usize = 10_000;
/// How much of the capacity is asked for.
const LOAD: f64 = 0.5;
/// The aims, in milliseconds beyond the direct way.
const AIM_P50: f64 = 0.3;
const AIM_P99: f64 = 1.5;

fn main() -> Result<()> {
    let is_asked = |what: &str| env::args().any(|argument| argument == what);
    println!("{}", machine());
    // As a rule everybody shares the cores: a gateway with one for itself would have one worker, and it would never wait.
    let cores = if is_asked("pinned") { Cores::share_out() } else { Cores::Shared };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if is_asked("contention") { runtime.block_on(locks(cores)) } else { runtime.block_on(measure(cores)) }
}

/// The interval between two chats at half of what the daemon can do.
async fn half_load(condition: &mut Condition) -> Result<Duration> {
    let chat = chat(false, 0);
    condition.load.closed_loop(&chat, WARM_UP).await?;
    condition.sent += WARM_UP;
    let mut capacity = Rounds::default();
    for _ in 0..LOOKS {
        let started = Instant::now();
        condition.load.closed_loop(&chat, LOOK).await?;
        condition.sent += LOOK;
        capacity.0.push(LOOK as f64 / started.elapsed().as_secs_f64());
        sleep(SETTLE).await;
    }
    let rate = capacity.median() * LOAD;
    println!("{capacity} chats a second in a closed loop over {CONNECTIONS} connections; half of it is {rate:.0}");
    Ok(Duration::from_secs_f64(1.0 / rate))
}

async fn measure(cores: Cores) -> Result<()> {
    let (provider, upstream) = Provider::start().await?;
    let mut conditions = Vec::new();
    for (name, troubles) in [
        ("quiet", &[][..]),
        ("a scrape each 100 ms", &[Trouble::Scrapes]),
        ("log files rotate", &[Trouble::Rotations]),
        ("the spool is written", &[Trouble::Outage]),
        ("all of it", &[Trouble::Scrapes, Trouble::Rotations, Trouble::Outage]),
    ] {
        let condition = Condition::start(name, troubles, cores, upstream).await;
        conditions.push(condition.with_context(|| format!("{name:?} can't start"))?);
    }
    let interval = half_load(conditions.first_mut().context("there is a quiet one")?).await?;
    let count = (WINDOW.as_secs_f64() / interval.as_secs_f64()) as usize;
    let direct = Load::open(upstream, CONNECTIONS).await?;
    let chat = chat(false, 0);
    direct.closed_loop(&chat, WARM_UP).await?;
    let mut sent_directly = WARM_UP;
    for condition in &mut conditions[1..] {
        condition.load.closed_loop(&chat, WARM_UP).await?;
        condition.sent += WARM_UP;
    }
    sleep(SETTLE).await;
    for _ in 0..ROUNDS {
        for condition in &mut conditions {
            let latencies = direct.open_loop(&chat, count, interval).await?;
            sent_directly += count;
            condition.direct.push(milliseconds(&latencies));
            let window = condition.window(&chat, count, interval).await;
            window.with_context(|| format!("{:?} failed", condition.name))?;
        }
    }

    let sent: usize = conditions.iter().map(|condition| condition.sent).sum::<usize>() + sent_directly;
    ensure!(provider.served() == sent, "{sent} chats were sent and {} served", provider.served());
    println!(
        "{ROUNDS} rounds of {:.0} s for each line, and before each as long of the direct way; ms from when a chat was due; µs a chat that the daemon\ncomputes, and that its threads which answer queue for a core\n",
        WINDOW.as_secs_f64()
    );
    println!(
        "{:<22} {:>23} {:>23} {:>23} {:>19} {:>6} {:>9} {:>8} {:>5}",
        "",
        "direct p50, p99, p99.9",
        "gateway",
        "added",
        "p99, lowest–highest",
        "CPU",
        "rotations",
        "spool MB",
        "pages"
    );
    for condition in &conditions {
        let seen = condition.check().await.with_context(|| format!("{:?} is no good", condition.name))?;
        let (direct, gateway) = (quantiles(&condition.direct.concat()), quantiles(&condition.latencies.concat()));
        let added = [gateway[0] - direct[0], gateway[1] - direct[1], gateway[2] - direct[2]];
        let by_round = condition.latencies.iter().zip(&condition.direct);
        let by_round = Rounds(by_round.map(|(with, without)| quantiles(with)[1] - quantiles(without)[1]).collect());
        println!(
            "{:<22} {:>23} {:>23} {:>23} {:>19} {:>6.0} {:>7.0} {:>9} {:>8.1} {:>5}",
            condition.name,
            three(direct),
            three(gateway),
            three(added),
            format!("{:.2}–{:.2}", quantile(&by_round.0, 0.0), quantile(&by_round.0, 1.0)),
            condition.costs.median(),
            condition.queued.median(),
            seen.rotations,
            seen.spool as f64 / 1e6,
            seen.pages,
        );
    }
    println!();
    for condition in &conditions {
        let (direct, gateway) = (quantiles(&condition.direct.concat()), quantiles(&condition.latencies.concat()));
        for (what, at, aim) in [("p50", 0, AIM_P50), ("p99", 1, AIM_P99)] {
            let added = gateway[at] - direct[at];
            let met = if added <= aim { "met" } else { "missed" };
            println!("aim: {}, {what} at most {aim} ms more: {added:.2} ({met})", condition.name);
        }
    }
    Ok(())
}

/// The locks that threads wait for while everything goes on at once.
async fn locks(cores: Cores) -> Result<()> {
    let (_provider, upstream) = Provider::start().await?;
    let troubles = &[Trouble::Scrapes, Trouble::Rotations, Trouble::Outage];
    let mut condition = Condition::start("all of it", troubles, cores, upstream).await?;
    let interval = half_load(&mut condition).await?;
    contention(&mut condition, interval).await?;
    condition.check().await.map(drop)
}

fn milliseconds(latencies: &[Duration]) -> Vec<f64> {
    latencies.iter().map(|latency| latency.as_secs_f64() * 1e3).collect()
}

fn quantiles(latencies: &[f64]) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|share| quantile(latencies, share))
}

fn three(figures: [f64; 3]) -> String {
    figures.map(|figure| format!("{figure:7.2}")).concat()
}
