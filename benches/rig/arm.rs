//! A way from the load generator to the provider, and what was measured of it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::time::sleep;

use super::{
    connection::Connection,
    cores::Cores,
    cost::Used,
    kind::{Kind, Running, Telemetry, counted},
    load::{Chat, Load, chat},
    memory::resident,
    provider::CHUNKS,
    rounds::Rounds,
    statistics::metric,
    uncalled::refused,
};

pub const CONNECTIONS: usize = 8;
/// Per arm and round, in a closed loop.
pub const WHOLE: usize = 2000;
pub const STREAMED: usize = 150;
const HUNDRED: usize = 300;
const MEGABYTE: usize = 100;
/// Of what is not called by a provider at all.
const UNCALLED: usize = 1000;
/// Per arm and round, at a fixed rate, for the latency.
pub const PACED: usize = 400;
pub const INTERVAL: Duration = Duration::from_millis(2);
const WARM_UP: usize = 500;
/// What the daemon puts off is its cost too. Its longest delay is the exporter's half second.
pub const SETTLE: Duration = Duration::from_millis(700);

/// What a window of load is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Whole,
    Streamed,
    Hundred,
    Megabyte,
    /// The page that says the daemon lives.
    Probe,
    Refused,
}

impl Work {
    pub const ALL: [Self; 6] = [Self::Whole, Self::Streamed, Self::Hundred, Self::Megabyte, Self::Probe, Self::Refused];

    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "a whole chat",
            Self::Streamed => "a streamed chat",
            Self::Hundred => "100 kB",
            Self::Megabyte => "1 MB",
            Self::Probe => "a probe",
            Self::Refused => "a refused chat",
        }
    }

    fn count(self) -> usize {
        match self {
            Self::Whole => WHOLE,
            Self::Streamed => STREAMED,
            Self::Hundred => HUNDRED,
            Self::Megabyte => MEGABYTE,
            Self::Probe | Self::Refused => UNCALLED,
        }
    }
}

/// What is sent for each work; for a probe nothing.
pub struct Works(BTreeMap<Work, Chat>);

impl Works {
    pub fn new() -> Self {
        Self(BTreeMap::from([
            (Work::Whole, chat(false, 0)),
            (Work::Streamed, chat(true, 0)),
            (Work::Hundred, chat(false, 100_000)),
            (Work::Megabyte, chat(false, 1_000_000)),
            (Work::Refused, refused()),
        ]))
    }
}

pub struct Arm {
    pub name: &'static str,
    kind: Kind,
    running: Running,
    load: Load,
    /// Chats that reached the provider, and those that didn't.
    pub sent: usize,
    uncalled: usize,
    costs: BTreeMap<Work, Rounds>,
    threads: BTreeMap<String, Rounds>,
    pub per_second: Rounds,
    pub latencies: Vec<f64>,
    /// Means of the daemon's own phases.
    pub phases: String,
}

impl Arm {
    pub async fn start(
        name: &'static str,
        kind: Kind,
        cores: Cores,
        upstream: SocketAddr,
        otlp: SocketAddr,
    ) -> Result<Self> {
        let running = kind.start(cores, upstream, otlp)?;
        Ok(Self {
            name,
            kind,
            load: Load::open(running.address, CONNECTIONS).await?,
            running,
            sent: 0,
            uncalled: 0,
            costs: Work::ALL.into_iter().map(|work| (work, Rounds::default())).collect(),
            threads: BTreeMap::new(),
            per_second: Rounds::default(),
            latencies: Vec::new(),
            phases: String::new(),
        })
    }

    pub fn is_measured(&self) -> bool {
        self.running.gateway.is_some()
    }

    pub fn is_daemon(&self) -> bool {
        matches!(self.kind, Kind::Daemon(..))
    }

    pub fn exports(&self) -> bool {
        matches!(self.kind, Kind::Daemon(_, Telemetry { spans: true, .. }))
    }

    /// Microseconds of processor time for one, all that was put off included.
    pub fn cost(&self, work: Work) -> &Rounds {
        &self.costs[&work]
    }

    /// What a streamed chat costs beyond a whole one is its chunks.
    pub fn chunk(&self) -> f64 {
        (self.cost(Work::Streamed).median() - self.cost(Work::Whole).median()) / CHUNKS as f64
    }

    /// What a whole chat costs on each thread.
    pub fn threads(&self) -> String {
        let mut threads: Vec<_> = self
            .threads
            .iter()
            .map(|(name, rounds)| (rounds.median(), name))
            .filter(|(cost, _)| *cost >= 0.5)
            .collect();
        threads.sort_by(|one, other| other.0.total_cmp(&one.0));
        let threads: Vec<_> = threads.into_iter().map(|(cost, name)| format!("{name} {cost:.0}")).collect();
        threads.join(", ")
    }

    pub fn resident(&self) -> Result<u64> {
        Ok(self.running.gateway.as_ref().map(|gateway| resident(gateway.child.id())).transpose()?.unwrap_or_default())
    }

    pub async fn warm_up(&mut self, works: &Works) -> Result<()> {
        for work in [Work::Whole, Work::Streamed] {
            self.send(works, work, WARM_UP).await?;
        }
        Ok(())
    }

    pub async fn round(&mut self, works: &Works) -> Result<()> {
        // While the other arms had their turn, the old connections may have been idle for too long.
        self.load = Load::open(self.running.address, CONNECTIONS).await?;
        let before = self.own_phases().await?;
        self.window(works, Work::Whole).await?;
        if let (Some(before), Some(after)) = (before, self.own_phases().await?) {
            let means = after.iter().zip(before).map(|((name, sum, count), (_, sum_before, count_before))| {
                format!("{name} {:.0}", (sum - sum_before) * 1e6 / (count - count_before))
            });
            self.phases = means.collect::<Vec<_>>().join(", ");
        }
        for work in [Work::Streamed, Work::Hundred, Work::Megabyte] {
            self.window(works, work).await?;
        }
        if self.is_daemon() {
            self.window(works, Work::Probe).await?;
            self.window(works, Work::Refused).await?;
        }
        let latencies = self.load.open_loop(&works.0[&Work::Whole], PACED, INTERVAL).await?;
        self.sent += PACED;
        self.latencies.extend(latencies.iter().map(|latency| latency.as_secs_f64() * 1e3));
        Ok(())
    }

    /// Measures one work, and how long it takes.
    async fn window(&mut self, works: &Works, work: Work) -> Result<()> {
        let count = work.count();
        let before = self.used()?;
        let started = Instant::now();
        self.send(works, work, count).await?;
        let elapsed = started.elapsed();
        self.scrape().await?;
        sleep(SETTLE).await;
        let each = |used: Duration| used.as_secs_f64() * 1e6 / count as f64;
        if let Some((after, before)) = self.used()?.zip(before) {
            self.costs.entry(work).or_default().0.push(each(after.since(&before)));
            if work == Work::Whole {
                for (name, used) in after.by_thread(&before) {
                    self.threads.entry(name).or_default().0.push(each(used));
                }
            }
        }
        if work == Work::Whole {
            self.per_second.0.push(count as f64 / elapsed.as_secs_f64());
        }
        Ok(())
    }

    async fn send(&mut self, works: &Works, work: Work, count: usize) -> Result<()> {
        match works.0.get(&work) {
            Some(chat) => self.load.closed_loop(chat, count).await?,
            None => self.load.pages("/health", count).await?,
        }
        match work {
            Work::Probe => {}
            Work::Refused => self.uncalled += count,
            _ => self.sent += count,
        }
        Ok(())
    }

    fn used(&self) -> Result<Option<Used>> {
        self.running.gateway.as_ref().map(|gateway| Used::of(gateway.child.id())).transpose()
    }

    async fn scrape(&self) -> Result<Option<String>> {
        match self.running.metrics {
            Some(address) => Ok(Some(Connection::open(address).await?.get("/metrics").await?)),
            None => Ok(None),
        }
    }

    /// Name, seconds and number of the phases that the daemon measures of itself.
    async fn own_phases(&self) -> Result<Option<Vec<(&'static str, f64, f64)>>> {
        let Some(page) = self.scrape().await? else { return Ok(None) };
        let phases = ["decode", "route", "record"].map(|phase| {
            let label = format!("phase=\"{phase}\"");
            let sum = |name: &str| metric(&page, name, &label);
            (phase, sum("mlx_manager_overhead_seconds_sum"), sum("mlx_manager_overhead_seconds_count"))
        });
        Ok(Some(phases.to_vec()))
    }

    /// Holds what the daemon counted to what was sent.
    pub async fn check(&self) -> Result<()> {
        let Some(page) = self.scrape().await? else { return Ok(()) };
        counted(&page, self.sent, self.uncalled)
    }
}
