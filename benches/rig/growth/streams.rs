//! Memory and cost by the streams that are open, each of which gets a piece of text a second.

use std::{
    env,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{
    curve::{Curve, Series},
    point::Place,
};
use crate::rig::{
    connection::Connection,
    daemon::Daemon,
    load::{Chat, chat},
    memory::resident,
    process::{Gateway, free_address},
    trickle::PACE,
};

const NUMBERS: [usize; 5] = [1, 10, 100, 1000, 10_000];
/// How long a number of streams is looked at, and how long it is left alone before.
const WINDOW: Duration = Duration::from_secs(6);
const CALM: Duration = Duration::from_secs(2);
/// Streams that are being opened at a time.
const OPENING: usize = 64;
/// How long all of them may take to open.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a daemon has open beside its callers and their providers.
const FILES: u64 = 100;
/// The first argument of this binary where it is to be the provider; its address follows.
pub const PROVIDER: &str = "trickle";

/// The open streams and what came of them.
#[derive(Default)]
struct Streams {
    tasks: JoinSet<Result<()>>,
    /// Those that got their first piece, and pieces of all.
    open: Arc<AtomicUsize>,
    pieces: Arc<AtomicUsize>,
}

impl Streams {
    /// Opens as many as are missing, and waits until each has its first piece.
    async fn grow(&mut self, address: SocketAddr, number: usize) -> Result<()> {
        let opening = Arc::new(Semaphore::new(OPENING));
        let Chat { body, status, .. } = chat(true, 0);
        while self.tasks.len() < number {
            let permit = Arc::clone(&opening).acquire_owned().await?;
            let (body, open, pieces) = (body.clone(), Arc::clone(&self.open), Arc::clone(&self.pieces));
            self.tasks.spawn(async move {
                let mut permit = Some(permit);
                let piece = |_: &_, _: Instant| {
                    pieces.fetch_add(1, Ordering::Relaxed);
                    if permit.take().is_some() {
                        open.fetch_add(1, Ordering::Relaxed);
                    }
                };
                Connection::open(address).await?.post(body, status, piece).await
            });
            self.hold()?;
        }
        let end = Instant::now() + PATIENCE;
        while self.open.load(Ordering::Relaxed) < number {
            self.hold()?;
            ensure!(Instant::now() < end, "of {number} streams {} opened", self.open.load(Ordering::Relaxed));
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// None of them ends by itself.
    fn hold(&mut self) -> Result<()> {
        match self.tasks.try_join_next() {
            None => Ok(()),
            Some(ended) => {
                ended??;
                bail!("a stream ended")
            }
        }
    }
}

/// Asks for all the files that may be open, for this process and its children, and says how many streams a daemon can
/// hold with them: each has a connection to either side.
fn room() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let files = if raised.is_ok() { limit.maximum } else { limit.current };
    files.map_or(usize::MAX, |files| usize::try_from(files.saturating_sub(FILES) / 2).unwrap_or(usize::MAX))
}

pub async fn streams(place: &Place) -> Result<Curve> {
    let room = room();
    let most = NUMBERS[NUMBERS.len() - 1];
    if room < most {
        println!("streams: the limit on open files leaves room for {room} of {most}");
    }
    let (folder, provider) = (TempDir::new()?, free_address()?);
    // A process of its own, since each stream is a file there too.
    let arguments = [PROVIDER, &provider.to_string()];
    let _provider = Gateway::start(Command::new(env::current_exe()?), &arguments, folder.path(), provider)?;
    let daemon = place.before(provider).daemon(TempDir::new()?, "")?;
    let mut streams = Streams::default();
    let (mut costs, mut each, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for number in NUMBERS.into_iter().map(|number| number.min(room)) {
        streams.grow(daemon.address, number).await?;
        sleep(CALM).await;
        let (cost, pieces) = window(&daemon, &mut streams).await?;
        let expected = number as f64 * WINDOW.as_secs_f64() / PACE.as_secs_f64();
        // The one that a stream is short of may be on its way.
        ensure!(pieces >= expected * 0.95 - number as f64 * 0.1 - 1.0, "{pieces} pieces came instead of {expected}");
        let x = number as f64;
        costs.push((x, cost.as_secs_f64() * 1e3 / WINDOW.as_secs_f64()));
        each.push((x, cost.as_secs_f64() * 1e6 / pieces));
        memory.push((x, resident(daemon.id())? as f64 / 1e6));
    }
    // What is left at the end is what few streams cost beside the daemon's own clocks; the most tell of a piece.
    let (_, piece) = each.last().copied().unwrap_or_default();
    let (first, last) = (memory.first().copied().unwrap_or_default(), memory.last().copied().unwrap_or_default());
    println!(
        "streams: {piece:.1} µs a piece and {:.1} kB a stream with {} of them",
        (last.1 - first.1) * 1e3 / (last.0 - first.0),
        last.0
    );
    let series = vec![Series::new("CPU, ms a second", costs), Series::new("RSS, MB", memory)];
    Ok(Curve { name: "streams", against: "open streams, a piece a second each", series })
}

/// What the daemon used, and the pieces that came.
async fn window(daemon: &Daemon, streams: &mut Streams) -> Result<(Duration, f64)> {
    let (before, pieces) = (daemon.used()?, streams.pieces.load(Ordering::Relaxed));
    sleep(WINDOW).await;
    let (after, pieces) = (daemon.used()?, streams.pieces.load(Ordering::Relaxed) - pieces);
    streams.hold()?;
    Ok((after.since(&before), pieces as f64))
}
