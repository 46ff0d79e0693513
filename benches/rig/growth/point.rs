//! One point of a curve: a daemon, and what a request costs there.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::rig::{
    collector::Collector,
    connection::Connection,
    cores::Cores,
    cost::Used,
    daemon::Daemon,
    load::{Chat, Load, chat, one},
    memory::resident,
    nginx,
    process::{Gateway, free_address},
    provider::Provider,
    rounds::Rounds,
};

const CONNECTIONS: usize = 8;
const ROUNDS: usize = 5;
/// What the daemon puts off is its cost too. Its longest delay is the exporter's half second.
const SETTLE: Duration = Duration::from_millis(700);
/// Pages read to know what one costs.
const PAGES: usize = 10;
/// Of a point, per round, and before the first.
pub const CHATS: usize = 2000;
const WARM_UP: usize = 500;

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Place {
    cores: Cores,
    provider: Provider,
    pub upstream: SocketAddr,
    otlp: SocketAddr,
    collector: Collector,
}

/// Who answers at a point.
enum Who {
    Daemon(Daemon),
    Nginx { gateway: Gateway, _folder: TempDir },
}

pub struct Point {
    pub x: f64,
    who: Who,
    address: SocketAddr,
    chats: Arc<[Chat]>,
    /// Chats per round.
    count: usize,
    sent: usize,
    /// Microseconds of a request, and of a page with its bytes.
    costs: Rounds,
    pages: Rounds,
    bytes: f64,
}

impl Place {
    /// Starts provider and collector.
    pub async fn new(cores: Cores) -> Result<Self> {
        let (provider, upstream) = Provider::start().await?;
        let (collector, otlp) = Collector::start().await?;
        Ok(Self { cores, provider, upstream, otlp, collector })
    }

    /// The same with another provider.
    pub fn before(&self, upstream: SocketAddr) -> Self {
        Self { upstream, ..self.clone() }
    }

    pub fn daemon(&self, folder: TempDir, more: &str) -> Result<Daemon> {
        Daemon::start(folder, self.cores, self.upstream, self.otlp, more)
    }

    /// A point whose daemon has this in its configuration.
    pub fn point(&self, x: f64, more: &str) -> Result<Point> {
        Ok(Point::new(x, self.daemon(TempDir::new()?, more)?))
    }

    /// A point of nginx, if this machine has one.
    pub fn nginx(&self, x: f64) -> Result<Option<Point>> {
        let Some(program) = nginx::program() else { return Ok(None) };
        let (folder, address) = (TempDir::new()?, free_address()?);
        let gateway = nginx::nginx(program, self.cores, address, self.upstream, folder.path())?;
        Ok(Some(Point::of(x, Who::Nginx { gateway, _folder: folder }, address)))
    }
}

impl Point {
    pub fn new(x: f64, daemon: Daemon) -> Self {
        let address = daemon.address;
        Self::of(x, Who::Daemon(daemon), address)
    }

    fn of(x: f64, who: Who, address: SocketAddr) -> Self {
        let (chats, costs, pages) = (Arc::from([chat(false, 0)]), Rounds::default(), Rounds::default());
        Self { x, who, address, chats, count: CHATS, sent: 0, costs, pages, bytes: 0.0 }
    }

    /// What is sent, in turn, and how many in a round.
    pub fn asks(self, chats: impl IntoIterator<Item = Chat>, count: usize) -> Self {
        Self { chats: chats.into_iter().collect(), count, ..self }
    }

    pub fn daemon(&self) -> Option<&Daemon> {
        match &self.who {
            Who::Daemon(daemon) => Some(daemon),
            Who::Nginx { .. } => None,
        }
    }

    fn id(&self) -> u32 {
        match &self.who {
            Who::Daemon(daemon) => daemon.id(),
            Who::Nginx { gateway, .. } => gateway.child.id(),
        }
    }

    async fn send(&mut self, count: usize) -> Result<()> {
        // While the others had their turn, old connections may have been idle for too long.
        let load = Load::open(self.address, CONNECTIONS).await?;
        let (chats, next) = (Arc::clone(&self.chats), Arc::<AtomicUsize>::default());
        load.loops(count, move |mut connection| {
            let (chats, turn) = (Arc::clone(&chats), next.fetch_add(1, Ordering::Relaxed));
            async move { one(&mut connection, &chats[turn % chats.len()]).await }
        })
        .await?;
        self.sent += count;
        Ok(())
    }

    async fn warm_up(&mut self) -> Result<()> {
        self.send(WARM_UP.min(self.count).max(self.chats.len())).await
    }

    async fn round(&mut self) -> Result<()> {
        let before = Used::of(self.id())?;
        self.send(self.count).await?;
        sleep(SETTLE).await;
        let used = Used::of(self.id())?.since(&before);
        self.costs.0.push(used.as_secs_f64() * 1e6 / self.count as f64);
        Ok(())
    }

    /// What a page costs, for whoever asks for it; nothing is where there is none.
    async fn read_pages(&mut self) -> Result<()> {
        let Some(daemon) = self.daemon() else { return Ok(()) };
        let mut connection = Connection::open(daemon.metrics).await?;
        let mut bytes = connection.get("/metrics").await?.len();
        let before = daemon.used()?;
        for _ in 0..PAGES {
            bytes = connection.get("/metrics").await?.len();
        }
        let used = daemon.used()?.since(&before);
        self.pages.0.push(used.as_secs_f64() * 1e6 / PAGES as f64);
        self.bytes = bytes as f64;
        Ok(())
    }

    pub fn cpu(&self) -> (f64, f64) {
        (self.x, self.costs.median())
    }

    pub fn page_cost(&self) -> (f64, f64) {
        (self.x, self.pages.median())
    }

    pub fn page_kilobytes(&self) -> (f64, f64) {
        (self.x, self.bytes / 1e3)
    }

    pub fn resident(&self) -> Result<(f64, f64)> {
        Ok((self.x, resident(self.id())? as f64 / 1e6))
    }

    /// The most that it ever held; what it holds now, where the system doesn't remember.
    pub fn peak(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        match line {
            Some(kilobytes) => Ok((self.x, kilobytes.trim().parse::<f64>()? * 1024.0 / 1e6)),
            None => self.resident(),
        }
    }
}

/// Measures points that take turns, so that a noisy machine is noisy for all of them, and holds daemons to what was sent.
pub async fn take_turns(points: &mut [Point], place: &Place) -> Result<()> {
    let served = place.provider.served();
    for point in &mut *points {
        point.warm_up().await.with_context(|| format!("at {}", point.x))?;
    }
    sleep(SETTLE).await;
    for _ in 0..ROUNDS {
        for point in &mut *points {
            point.round().await.with_context(|| format!("at {}", point.x))?;
            point.read_pages().await?;
        }
    }
    sleep(SETTLE).await;
    let (sent, served) = (points.iter().map(|point| point.sent).sum::<usize>(), place.provider.served() - served);
    ensure!(served == sent, "{sent} chats were sent and {served} served");
    ensure!(place.collector.bytes() > 0, "no span was exported");
    for point in points {
        if let Some(daemon) = point.daemon() {
            daemon.check(point.sent).await.with_context(|| format!("at {}", point.x))?;
        }
    }
    Ok(())
}
