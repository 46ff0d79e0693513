//! A way through one gateway, and what was measured of it.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::HeaderMap;
use tokio::time::sleep;

use crate::rig::{
    connection::Connection,
    cores::Cores,
    cost::Used,
    kind::{Kind, Running, Telemetry, counted},
    load::{Chat, Load, chat},
    provider::{CHUNKS, Provider},
    rounds::Rounds,
    statistics::metric,
};
use crate::{
    peers::{Peer, key},
    processes,
    spans::Spans,
};

pub const CONNECTIONS: usize = 8;
/// At which the latency is measured; each arm can bear it.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// A window has no more requests, however fast they are.
const MOST: usize = 5000;
/// What is put off is put off for half a second at most, save by those that can't keep up.
const SETTLE: Duration = Duration::from_millis(700);
/// An arm rests once it uses less than a twentieth of a core for so long.
const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);
/// The share of the processor time that may be missed, of threads that began and ended between two looks.
const MISSED: f64 = 0.03;

/// What is sent in a window.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub name: &'static str,
    bytes: usize,
    streamed: bool,
}

pub const WORKS: [Work; 6] = [
    Work { name: "1 kB", bytes: 1_000, streamed: false },
    Work { name: "1 kB streamed", bytes: 1_000, streamed: true },
    Work { name: "100 kB", bytes: 100_000, streamed: false },
    Work { name: "100 kB streamed", bytes: 100_000, streamed: true },
    Work { name: "1 MB", bytes: 1_000_000, streamed: false },
    Work { name: "1 MB streamed", bytes: 1_000_000, streamed: true },
];
/// Places in it.
pub const WHOLE: usize = 0;
pub const STREAMED: usize = 1;

/// How long all of it takes.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub rounds: usize,
    /// About as long a window lasts.
    pub window: Duration,
    /// Requests at a fixed rate, per round.
    pub paced: usize,
}

/// Who is in the way.
pub enum Way {
    /// Ourselves, and what we compare ourselves with elsewhere too.
    Rig(Kind),
    Peer(Peer),
}

pub struct Arm {
    pub name: &'static str,
    way: Way,
    running: Running,
    headers: HeaderMap,
    /// What reads a peer's spans.
    spans: Option<Spans>,
    pub sent: usize,
    counts: Vec<usize>,
    costs: Vec<Rounds>,
    rates: Vec<Rounds>,
    pub latencies: Vec<f64>,
    /// Two accounts of the processor time, as they stood after the warm-up.
    accounts: Option<(Used, Duration)>,
}

impl Arm {
    pub async fn start(
        name: &'static str,
        way: Way,
        installed: &Path,
        cores: Cores,
        upstream: SocketAddr,
        otlp: SocketAddr,
    ) -> Result<Self> {
        let (mut spans, mut headers) = (None, key()?);
        let running = match &way {
            Way::Rig(kind) => kind.start(cores, upstream, otlp)?,
            Way::Peer(peer) => {
                let (taking, otlp) = Spans::start().await?;
                spans = matches!(peer, Peer::LiteLlm { callbacks: true }).then_some(taking);
                headers.extend(peer.headers(upstream)?);
                peer.start(installed, cores, upstream, otlp)?
            }
        };
        Ok(Self {
            name,
            way,
            running,
            headers,
            spans,
            sent: 0,
            counts: vec![2 * CONNECTIONS; WORKS.len()],
            costs: vec![Rounds::default(); WORKS.len()],
            rates: vec![Rounds::default(); WORKS.len()],
            latencies: Vec::new(),
            accounts: None,
        })
    }

    pub fn is_measured(&self) -> bool {
        self.running.gateway.is_some()
    }

    /// Whether its spans go to the receiver that all of ours share.
    pub fn exports(&self) -> bool {
        matches!(self.way, Way::Rig(Kind::Daemon(_, Telemetry { spans: true, .. })))
    }

    /// Microseconds of processor time for one, all that was put off included.
    pub fn cost(&self, work: usize) -> &Rounds {
        &self.costs[work]
    }

    /// Requests per second.
    pub fn rate(&self, work: usize) -> &Rounds {
        &self.rates[work]
    }

    /// What a streamed answer costs beyond a whole one is its chunks.
    pub fn chunk(&self) -> f64 {
        (self.cost(STREAMED).median() - self.cost(WHOLE).median()) / CHUNKS as f64
    }

    pub fn memory(&self) -> Result<Option<u64>> {
        self.process().map(processes::memory).transpose()
    }

    fn process(&self) -> Option<u32> {
        Some(self.running.gateway.as_ref()?.child.id())
    }

    /// Warms it up, and finds how many requests fill a window.
    pub async fn warm_up(&mut self, chats: &[Chat], provider: &Provider, scale: Scale) -> Result<()> {
        self.pieces(&chats[STREAMED]).await?;
        for (work, chat) in chats.iter().enumerate() {
            // The first ones are slow, and say little of how many there should be.
            for _ in 0..3 {
                let count = self.counts[work];
                let elapsed = self.send(chat, count, provider).await?;
                let fitting = count as f64 * scale.window.as_secs_f64() / elapsed.as_secs_f64();
                self.counts[work] = (fitting as usize).clamp(2 * CONNECTIONS, MOST);
            }
        }
        self.settle().await?;
        self.accounts = self.used()?.zip(self.whole_time()?);
        Ok(())
    }

    pub async fn round(&mut self, chats: &[Chat], provider: &Provider, scale: Scale) -> Result<()> {
        for (work, chat) in chats.iter().enumerate() {
            self.window(work, chat, provider).await.with_context(|| WORKS[work].name)?;
        }
        let load = self.load().await?;
        let latencies = load.open_loop(&chats[WHOLE], scale.paced, INTERVAL).await?;
        self.sent += scale.paced;
        self.latencies.extend(latencies.iter().map(|latency| latency.as_secs_f64() * 1e3));
        self.settle().await
    }

    async fn window(&mut self, work: usize, chat: &Chat, provider: &Provider) -> Result<()> {
        let count = self.counts[work];
        let before = (self.used()?, self.whole_time()?);
        let elapsed = self.send(chat, count, provider).await?;
        self.page().await?;
        self.settle().await?;
        let cost = match (before, self.used()?, self.whole_time()?) {
            // LiteLLM has threads that end, of which only the coarse account knows; but it fills that account soon.
            ((_, Some(before)), _, Some(after)) if matches!(self.way, Way::Peer(_)) => {
                Some(after.saturating_sub(before))
            }
            ((Some(before), _), Some(after), _) => Some(after.since(&before)),
            _ => None,
        };
        self.costs[work].0.extend(cost.map(|cost| cost.as_secs_f64() * 1e6 / count as f64));
        self.rates[work].0.push(count as f64 / elapsed.as_secs_f64());
        Ok(())
    }

    /// Sends so many, over new connections, since servers differ in how long they let idle ones live.
    async fn send(&mut self, chat: &Chat, count: usize, provider: &Provider) -> Result<Duration> {
        let load = self.load().await?;
        let served = provider.served();
        let started = Instant::now();
        load.closed_loop(chat, count).await?;
        let elapsed = started.elapsed();
        let served = provider.served() - served;
        ensure!(served == count, "{count} requests were answered, but {served} reached the provider");
        self.sent += count;
        Ok(elapsed)
    }

    async fn load(&self) -> Result<Load> {
        let load = Load::open(self.running.address, CONNECTIONS).await?;
        for connection in &load.connections {
            connection.lock().await.headers = self.headers.clone();
        }
        Ok(load)
    }

    /// Whoever puts chunks together, or leaves some out, would have fewer to pay for.
    async fn pieces(&mut self, streamed: &Chat) -> Result<()> {
        let load = self.load().await?;
        let mut text = Vec::new();
        let connection = load.connections.first().context("no connection")?;
        let body = streamed.body.clone();
        connection.lock().await.post(body, streamed.status, |piece, _| text.extend_from_slice(piece)).await?;
        self.sent += 1;
        let pieces = String::from_utf8_lossy(&text).matches("\"content\":\"token \"").count();
        ensure!(pieces == CHUNKS, "a streamed answer has {pieces} pieces instead of {CHUNKS}");
        Ok(())
    }

    /// Waits until what was put off is done.
    async fn settle(&self) -> Result<()> {
        if !self.is_measured() {
            return Ok(());
        }
        sleep(SETTLE).await;
        let end = Instant::now() + PATIENCE;
        while let Some(before) = self.used()? {
            sleep(LOOK).await;
            if self.used()?.is_some_and(|after| after.since(&before) < LOOK / 20) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("it does not come to rest");
            }
        }
        Ok(())
    }

    fn used(&self) -> Result<Option<Used>> {
        self.process().map(Used::of).transpose()
    }

    fn whole_time(&self) -> Result<Option<Duration>> {
        Ok(self.process().map(processes::time).transpose()?.flatten())
    }

    /// Its page of metrics, if it has one that is read.
    async fn page(&self) -> Result<Option<String>> {
        let Some(address) = self.running.metrics else { return Ok(None) };
        let mut connection = Connection::open(address).await?;
        connection.headers = self.headers.clone();
        let path = if matches!(self.way, Way::Peer(_)) { "/metrics/" } else { "/metrics" };
        Ok(Some(connection.get(path).await?))
    }

    /// Holds what it counted and exported to what was sent, and what was measured to the system's other account.
    pub async fn check(&self) -> Result<()> {
        if let Some(page) = self.page().await? {
            match self.way {
                Way::Rig(_) => counted(&page, self.sent, 0)?,
                Way::Peer(_) => {
                    let counted = metric(&page, "litellm_proxy_total_requests_metric_total", "");
                    ensure!(counted == self.sent as f64, "{counted} of {} requests were counted", self.sent);
                }
            }
        }
        if let Some(spans) = &self.spans {
            let [requests, all] = [&spans.requests, &spans.all].map(|count| count.load(Ordering::Relaxed));
            ensure!(requests == self.sent, "{requests} of {} requests have a span, of {all} spans", self.sent);
        }
        let now = self.used()?.zip(self.whole_time()?);
        if let (Some((used, time)), Some((used_now, time_now)), Way::Rig(_)) = (&self.accounts, now, &self.way) {
            let (known, all) = (used_now.since(used).as_secs_f64(), time_now.saturating_sub(*time).as_secs_f64());
            ensure!(known >= all * (1.0 - MISSED), "{all:.2} s were used, of which {known:.2} s are accounted for");
        }
        Ok(())
    }
}

/// What is sent for each of the works.
pub fn chats() -> Vec<Chat> {
    WORKS.iter().map(|work| chat(work.streamed, work.bytes)).collect()
}
