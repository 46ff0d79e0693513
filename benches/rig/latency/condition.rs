//! A daemon under load, and what goes on beside the load.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use http::StatusCode;
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use super::contention::workers;
use crate::rig::{
    collector::Collector,
    connection::Connection,
    cores::Cores,
    daemon::Daemon,
    load::{Chat, Load},
    rounds::Rounds,
    statistics::metric,
};

/// Enough that a chat which is due finds a free one.
pub const CONNECTIONS: usize = 32;
/// The daemon's longest delay is the exporter's half second.
pub const SETTLE: Duration = Duration::from_millis(700);
const SCRAPE_EVERY: Duration = Duration::from_millis(100);

/// What may go on while requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody reads the Prometheus page again and again.
    Scrapes,
    /// Log files are so small that they rotate all the time.
    Rotations,
    /// The collector answers 503, and what was for it goes to the disk.
    Outage,
}

/// The sinks of the default configuration, with small files.
const ROTATING: &str = r#"
[[log.sinks]]
name = "console"
kind = "console"
[[log.sinks]]
name = "mlx-server"
kind = "file"
file = "mlx-server.log"
include = ["mlx_manager::server"]
level = "trace"
rotation = { size = "500 kB" }
retention = "never"
[[log.sinks]]
name = "mlx-manager"
kind = "file"
file = "mlx-manager.log"
exclude = ["mlx_manager::server"]
rotation = { size = "500 kB" }
retention = "never"
"#;

/// A daemon, and what its callers saw.
pub struct Condition {
    pub name: &'static str,
    troubles: &'static [Trouble],
    pub daemon: Daemon,
    collector: Collector,
    pub load: Load,
    pub sent: usize,
    pages: Arc<AtomicUsize>,
    /// Milliseconds of each chat by round: by the gateway, and by the direct way just before.
    pub latencies: Vec<Vec<f64>>,
    pub direct: Vec<Vec<f64>>,
    /// Microseconds of processor time of a chat by round.
    pub costs: Rounds,
    /// Microseconds of a chat for which threads that answer could have run and had no core.
    pub queued: Rounds,
}

/// What went on.
pub struct Seen {
    pub rotations: usize,
    pub spool: u64,
    pub pages: usize,
}

impl Condition {
    pub async fn start(
        name: &'static str,
        troubles: &'static [Trouble],
        cores: Cores,
        upstream: SocketAddr,
    ) -> Result<Self> {
        let (collector, otlp) = Collector::start().await?;
        if troubles.contains(&Trouble::Outage) {
            collector.status.store(StatusCode::SERVICE_UNAVAILABLE.as_u16(), Ordering::Relaxed);
        }
        let sinks = if troubles.contains(&Trouble::Rotations) { ROTATING } else { "" };
        let daemon = Daemon::start(TempDir::new()?, cores, upstream, otlp, sinks)?;
        let load = Load::open(daemon.address, CONNECTIONS).await?;
        Ok(Self {
            name,
            troubles,
            daemon,
            collector,
            load,
            sent: 0,
            pages: Arc::default(),
            latencies: Vec::new(),
            direct: Vec::new(),
            costs: Rounds::default(),
            queued: Rounds::default(),
        })
    }

    /// Chats at a fixed rate while the rest goes on.
    pub async fn window(&mut self, chat: &Chat, count: usize, interval: Duration) -> Result<()> {
        // While others had their turn, the old connections may have been idle for too long.
        self.load = Load::open(self.daemon.address, CONNECTIONS).await?;
        let (before, queued) = (self.daemon.used()?, queued_now(self.daemon.id())?);
        let scraper = self.troubles.contains(&Trouble::Scrapes).then(|| self.scraper());
        let latencies = self.load.open_loop(chat, count, interval).await?;
        self.queued.0.push((queued_now(self.daemon.id())? - queued) as f64 / 1e3 / count as f64);
        self.sent += count;
        self.latencies.push(latencies.iter().map(|latency| latency.as_secs_f64() * 1e3).collect());
        if let Some(scraper) = scraper {
            ensure!(!scraper.is_finished(), "the scraper failed");
            scraper.abort();
        }
        // What was put off is not for whoever comes next.
        sleep(SETTLE).await;
        let used = self.daemon.used()?.since(&before);
        self.costs.0.push(used.as_secs_f64() * 1e6 / count as f64);
        Ok(())
    }

    fn scraper(&self) -> JoinHandle<Result<()>> {
        let (address, pages) = (self.daemon.metrics, Arc::clone(&self.pages));
        tokio::task::spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut tick = interval(SCRAPE_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tick.tick().await;
                connection.get("/metrics").await?;
                pages.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Holds the daemon to what was sent, and says what went on; what should have and didn't is an error.
    pub async fn check(&self) -> Result<Seen> {
        self.daemon.check(self.sent).await?;
        let is_away = self.troubles.contains(&Trouble::Outage);
        ensure!(is_away || self.collector.bytes() > 0, "no span was exported");
        let page = self.daemon.scrape().await?;
        let spool = metric(&page, "mlx_manager_spool_bytes", "") as u64;
        // What never rotated has no such folder.
        let archives = fs::read_dir(self.daemon.folder.path().join("logs/archive"));
        let seen = Seen {
            rotations: archives.map(Iterator::count).unwrap_or_default(),
            spool,
            pages: self.pages.load(Ordering::Relaxed),
        };
        for (trouble, happened) in [
            (Trouble::Scrapes, seen.pages > 0),
            (Trouble::Rotations, seen.rotations > 0),
            (Trouble::Outage, seen.spool > 0 && self.collector.bytes() == 0),
        ] {
            ensure!(!self.troubles.contains(&trouble) || happened, "there were no {trouble:?}");
        }
        Ok(seen)
    }
}

/// Nanoseconds that the threads which answer waited for a core, where the system says.
fn queued_now(process: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in workers(process)? {
        let text = fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).unwrap_or_default();
        sum += text.split(' ').nth(1).map_or(Ok(0), str::parse)?;
    }
    Ok(sum)
}
