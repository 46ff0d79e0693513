//! What is measured in a process of its own, because a process has one logger.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
    path::Path,
    process,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{peer::Peer, statistics::quantile};

/// Before anything is measured.
const WARM_UP: u64 = 1_000;
/// Calls that are timed together where one alone is too short.
const BATCH: u64 = 1_000;
/// During a stall: so many events each millisecond.
const PER_MILLISECOND: u64 = 20;

/// What one process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Times each call.
    Calls,
    /// Times everything, until all is written.
    Rate,
    /// Counts what callers allocate.
    Allocations,
    /// Times TRACE events, which the level switches off.
    Disabled,
    /// Times DEBUG events within a request, which the daemon keeps for the case that the request fails.
    Debug,
    /// Logs at a steady rate into files that stand still for a while.
    Stall,
    /// Logs and ends in good order.
    End,
    /// Logs and exits without a word to the logger.
    Exit,
    /// Logs and aborts.
    Abort,
    /// Logs and is killed.
    Kill,
}

/// What it found; what a scenario doesn't measure is 0.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// Of one call, in nanoseconds.
    pub p50: f64,
    /// Of one call, in nanoseconds.
    pub p99: f64,
    /// The longest call, in nanoseconds.
    pub longest: f64,
    /// From the first event until everything was written.
    pub seconds: f64,
    /// Per event, on the caller's thread.
    pub allocations: f64,
    /// Of one event, in nanoseconds, where calls are too short to be timed one by one.
    pub each: f64,
    /// Events logged.
    pub logged: u64,
    /// Events that the logger says it lost.
    pub lost: u64,
}

/// Counts allocations by thread.
pub struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Threads allocate while they end, too.
    ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1)).unwrap_or_default();
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's own promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's own promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// The nanoseconds of one call: the median of batches so short that most run without an interruption.
fn each(calls: u64, call: impl Fn(u64)) -> f64 {
    let batch = |batch: u64| {
        let start = Instant::now();
        (0..BATCH).for_each(|index| call(black_box(batch + index)));
        start.elapsed().as_nanos() as f64 / BATCH as f64
    };
    quantile(&(0..calls / BATCH).map(batch).collect::<Vec<_>>(), 0.5)
}

/// What it takes to look at the clock twice, in nanoseconds. It is part of every call that is timed.
pub fn clock_cost() -> f64 {
    let once = |_| Instant::now().elapsed().as_nanos() as f64;
    quantile(&(0..100_000).map(once).collect::<Vec<_>>(), 0.5)
}

/// Plays a scenario with so many events.
pub fn play<P: Peer>(scenario: Scenario, events: u64, folder: &Path) -> Result<Found> {
    let peer = P::start(folder, scenario != Scenario::Stall)?;
    let mut found = Found::default();
    match scenario {
        Scenario::Calls => {
            (0..WARM_UP).for_each(|index| peer.log(index));
            let mut times = Vec::with_capacity(events as usize);
            for index in 0..events {
                let start = Instant::now();
                peer.log(index);
                times.push(start.elapsed().as_nanos() as f64);
            }
            found.logged = WARM_UP + events;
            found.p50 = quantile(&times, 0.5);
            found.p99 = quantile(&times, 0.99);
            found.longest = quantile(&times, 1.0);
            found.lost = peer.finish(found.logged)?;
        }
        Scenario::Rate | Scenario::End => {
            let start = Instant::now();
            (0..events).for_each(|index| peer.log(index));
            found.logged = events;
            found.lost = peer.finish(events)?;
            found.seconds = start.elapsed().as_secs_f64();
        }
        Scenario::Allocations => {
            (0..WARM_UP).for_each(|index| peer.log(index));
            let before = ALLOCATIONS.get();
            (0..events).for_each(|index| peer.log(index));
            found.allocations = (ALLOCATIONS.get() - before) as f64 / events as f64;
            found.logged = WARM_UP + events;
            found.lost = peer.finish(found.logged)?;
        }
        Scenario::Disabled => {
            peer.log_disabled(0);
            found.each = each(events, |index| peer.log_disabled(index));
            peer.finish(0)?;
        }
        Scenario::Debug => {
            let request = tracing::info_span!(target: "mlx_manager::server::http", "request", request_id = "r1");
            request.in_scope(|| {
                (0..WARM_UP).for_each(|index| peer.log_debug(index));
                found.each = each(events, |index| peer.log_debug(index));
            });
            peer.finish(0)?;
        }
        Scenario::Stall => {
            let mut longest = Duration::ZERO;
            while found.logged < events {
                let tick = Instant::now();
                for _ in 0..PER_MILLISECOND {
                    let start = Instant::now();
                    peer.log(found.logged);
                    longest = longest.max(start.elapsed());
                    found.logged += 1;
                }
                sleep(Duration::from_millis(1).saturating_sub(tick.elapsed()));
            }
            found.longest = longest.as_nanos() as f64;
            found.lost = peer.finish(found.logged)?;
        }
        Scenario::Exit | Scenario::Abort | Scenario::Kill => {
            (0..events).for_each(|index| peer.log(index));
            match scenario {
                Scenario::Exit => process::exit(0),
                Scenario::Abort => process::abort(),
                // SAFETY: a signal to this very process, which ends with it.
                _ => unsafe {
                    libc::kill(libc::getpid(), libc::SIGKILL);
                },
            }
        }
    }
    Ok(found)
}
