//! What a log event costs: the daemon's log beside the ones that people would otherwise take.
//!
//! `make bench` runs it; `cargo run --release -- NAME…` in this folder runs only the named loggers. Every measurement is a
//! process of its own, and the loggers take turns, so that a noisy machine is noisy for all. ../README.md says more.
#![expect(clippy::disallowed_macros, reason = "loggers are compared by what they are called with")]

mod child;
mod disk;
mod peer;
#[path = "../../rig/rounds.rs"]
mod rounds;
#[path = "../../rig/statistics.rs"]
#[expect(dead_code, reason = "shared with benchmarks that need more of it")]
mod statistics;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::available_parallelism,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use child::{CountingAllocator, Found, Scenario, clock_cost, play};
use disk::{Pipes, lines_below};
use rounds::Rounds;
use statistics::quantile;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const ROUNDS: usize = 7;
const CALLS: u64 = 100_000;
const RATE: u64 = 400_000;
const ALLOCATIONS: u64 = 10_000;
const DISABLED: u64 = 5_000_000;
const DEBUG: u64 = 500_000;
/// Four seconds and a half, at the pace of the scenario.
const STALL: u64 = 90_000;
const STALL_LASTS: Duration = Duration::from_secs(2);
const ENDS: u64 = 20_000;
/// Python is so much slower that it gets a tenth of the work.
const PYTHON_SHARE: u64 = 10;

/// A logger and how to start the process that uses it.
struct Arm {
    name: &'static str,
    note: &'static str,
    /// The interpreter of the Python environment, for the one that needs it.
    python: Option<PathBuf>,
    p50: Rounds,
    p99: Rounds,
    rate: Rounds,
    /// Share of events lost at full rate.
    shed: Rounds,
    disabled: Rounds,
}

impl Arm {
    fn new(name: &'static str, note: &'static str) -> Self {
        let rounds = Rounds::default;
        Self {
            name,
            note,
            python: None,
            p50: rounds(),
            p99: rounds(),
            rate: rounds(),
            shed: rounds(),
            disabled: rounds(),
        }
    }

    /// Plays a scenario in a process of its own; `None` if it was one that leaves no word.
    fn play(&self, scenario: Scenario, events: u64, folder: &Path) -> Result<Option<Found>> {
        let mut command = match &self.python {
            Some(python) => {
                let mut command = Command::new(python);
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/peer.py"));
                command
            }
            None => Command::new(env::current_exe()?),
        };
        let words = serde_json::to_string(&(scenario, events))?;
        let output = command.args(["child", self.name, &words]).arg(folder).stderr(Stdio::inherit()).output()?;
        if matches!(scenario, Scenario::Exit | Scenario::Abort | Scenario::Kill) {
            ensure!(output.stdout.is_empty(), "{} survived {scenario:?}", self.name);
            return Ok(None);
        }
        ensure!(output.status.success(), "{} fails at {scenario:?}", self.name);
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    }

    /// Plays a scenario that measures, in a folder of its own, and holds the logger's word against what is on disk.
    fn measure(&self, scenario: Scenario, events: u64) -> Result<Found> {
        let folder = TempDir::new()?;
        let events = if self.python.is_some() { events / PYTHON_SHARE } else { events };
        let found = self.play(scenario, events, folder.path())?.context("a scenario that measures leaves a word")?;
        let lines = lines_below(folder.path())?;
        ensure!(
            lines + found.lost == found.logged,
            "{} logged {} events and says it lost {}, but {lines} are on disk after {scenario:?}",
            self.name,
            found.logged,
            found.lost
        );
        Ok(found)
    }

    /// The figures of one round.
    fn round(&mut self) -> Result<()> {
        let calls = self.measure(Scenario::Calls, CALLS)?;
        self.p50.0.push(calls.p50);
        self.p99.0.push(calls.p99);
        let rate = self.measure(Scenario::Rate, RATE)?;
        self.rate.0.push((rate.logged - rate.lost) as f64 / rate.seconds / 1e3);
        self.shed.0.push(rate.lost as f64 / rate.logged as f64 * 100.0);
        self.disabled.0.push(self.measure(Scenario::Disabled, DISABLED)?.each);
        Ok(())
    }

    /// What one event makes its caller allocate; Python can't say.
    fn allocations(&self) -> Result<Option<f64>> {
        if self.python.is_some() {
            return Ok(None);
        }
        Ok(Some(self.measure(Scenario::Allocations, ALLOCATIONS)?.allocations))
    }

    /// The longest call in milliseconds while a disk stands still, the events that didn't arrive, and those of them
    /// that the logger knows of.
    fn stall(&self) -> Result<(f64, u64, u64)> {
        let folder = TempDir::new()?;
        let pipes = Pipes::open(folder.path(), STALL_LASTS)?;
        let found = self.play(Scenario::Stall, STALL, folder.path())?.context("a stall leaves a word")?;
        let arrived = pipes.close()?;
        Ok((found.longest / 1e6, found.logged - arrived, found.lost))
    }

    /// How many of the lines are on disk after an end of this kind.
    fn left_by(&self, scenario: Scenario) -> Result<u64> {
        let folder = TempDir::new()?;
        self.play(scenario, ENDS, folder.path())?;
        lines_below(folder.path())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, name, words, folder] = arguments.as_slice()
        && role == "child"
    {
        let (scenario, events) = serde_json::from_str(words)?;
        let found = match play_in(name, scenario, events, Path::new(folder))? {
            Some(found) => found,
            None => bail!("no logger is called {name:?}"),
        };
        println!("{}", serde_json::to_string(&found)?);
        return Ok(());
    }
    let mut arms = arms();
    if !arguments.is_empty() {
        arms.retain(|arm| arguments.iter().any(|name| name == arm.name));
        ensure!(!arms.is_empty(), "none of the loggers is called {}", arguments.join(", "));
    }
    println!("{} {}, {} cores\n", env::consts::OS, env::consts::ARCH, available_parallelism()?);
    for _ in 0..ROUNDS {
        for arm in &mut arms {
            arm.round()?;
        }
    }
    report(&arms)
}

fn play_in(name: &str, scenario: Scenario, events: u64, folder: &Path) -> Result<Option<Found>> {
    Ok(Some(match name {
        "ours" => play::<peer::Ours<true>>(scenario, events, folder)?,
        "ours-no-story" => play::<peer::Ours<false>>(scenario, events, folder)?,
        "tracing" => play::<peer::Tracing<false>>(scenario, events, folder)?,
        "tracing-lossy" => play::<peer::Tracing<true>>(scenario, events, folder)?,
        "spdlog-rs" => play::<peer::Spdlog<false>>(scenario, events, folder)?,
        "spdlog-rs-async" => play::<peer::Spdlog<true>>(scenario, events, folder)?,
        "flexi_logger" => play::<peer::Flexi>(scenario, events, folder)?,
        "log4rs" => play::<peer::Log4rs>(scenario, events, folder)?,
        _ => return Ok(None),
    }))
}

#[expect(clippy::disallowed_methods, reason = "the way to a Python environment is no configuration of the daemon")]
fn arms() -> Vec<Arm> {
    let mut arms = vec![
        Arm::new("ours", "the daemon's two file sinks"),
        Arm::new("tracing", "fmt layers over NonBlocking that waits for room; no rotation by size"),
        Arm::new("tracing-lossy", "the same as it is by default: it drops when its channel is full"),
        Arm::new("spdlog-rs", "the caller writes into a buffer; flushed at the end"),
        Arm::new("spdlog-rs-async", "one thread writes, callers wait for room"),
        Arm::new("flexi_logger", "WriteMode::Async"),
        Arm::new("log4rs", "the caller writes"),
    ];
    match env::var_os("PEERS_PYTHON").filter(|python| !python.is_empty()) {
        Some(python) => {
            arms.push(Arm { python: Some(python.into()), ..Arm::new("loguru", "Python; the caller writes") });
        }
        None => println!("loguru is left out: PEERS_PYTHON names no Python that has it (`make bench` installs it)"),
    }
    arms
}

fn report(arms: &[Arm]) -> Result<()> {
    println!(
        "{ROUNDS} rounds; medians (lowest–highest round); looking at the clock is {:.0} ns of every call\n",
        clock_cost()
    );
    println!(
        "{:<16} {:>16} {:>20} {:>18} {:>7} {:>7} {:>12}",
        "", "p50 ns", "p99 ns", "1000 events/s", "lost %", "allocs", "disabled ns"
    );
    for arm in arms {
        let allocations = arm.allocations()?.map_or_else(|| "–".to_owned(), |count| format!("{count:.1}"));
        println!(
            "{:<16} {:>16} {:>20} {:>18} {:>7.1} {:>7} {:>12.1}",
            arm.name,
            arm.p50.to_string(),
            arm.p99.to_string(),
            arm.rate.to_string(),
            arm.shed.median(),
            allocations,
            arm.disabled.median(),
        );
    }
    println!(
        "\n{:<16} {:>10} {:>8} {:>8}   {:>7} {:>7} {:>7} {:>7}",
        "", "stall ms", "lost", "counted", "end", "exit", "abort", "kill"
    );
    for arm in arms {
        let (longest, lost, counted) = arm.stall()?;
        let mut ends = Vec::new();
        for scenario in [Scenario::End, Scenario::Exit, Scenario::Abort, Scenario::Kill] {
            let rounds = (0..3).map(|_| Ok(arm.left_by(scenario)? as f64)).collect::<Result<Vec<_>>>()?;
            ends.push(quantile(&rounds, 0.5));
        }
        println!(
            "{:<16} {longest:>10.1} {lost:>8} {counted:>8}   {:>7} {:>7} {:>7} {:>7}",
            arm.name, ends[0], ends[1], ends[2], ends[3]
        );
    }
    println!();
    for arm in arms {
        println!("{:<16} {}", arm.name, arm.note);
    }
    story(arms)
}

/// What it costs to keep the DEBUG events of a request for the case that it fails.
fn story(arms: &[Arm]) -> Result<()> {
    if arms.iter().all(|arm| arm.name != "ours") {
        return Ok(());
    }
    let mut rounds = [("ours", Rounds::default()), ("ours-no-story", Rounds::default())];
    for _ in 0..ROUNDS {
        for (name, each) in &mut rounds {
            each.0.push(Arm::new(name, "").measure(Scenario::Debug, DEBUG)?.each);
        }
    }
    let [(_, kept), (_, off)] = rounds;
    println!("\na DEBUG event of a request: {kept} ns with log.failure_story, {off} ns without");
    Ok(())
}
