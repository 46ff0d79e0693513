//! Processor time of one thread.

use std::{fs, time::Instant};

/// Nanoseconds that this thread has used. Where the system has no account of threads, those that went by.
#[derive(Debug)]
pub struct ThreadTime {
    used: Option<f64>,
    at: Instant,
}

impl ThreadTime {
    pub fn now() -> Self {
        Self { used: used(), at: Instant::now() }
    }

    /// What was used since.
    pub fn nanoseconds(&self) -> f64 {
        match (used(), self.used) {
            (Some(now), Some(then)) => now - then,
            _ => self.at.elapsed().as_nanos() as f64,
        }
    }
}

fn used() -> Option<f64> {
    // The account is brought up to date when the thread lets go of its core.
    std::thread::yield_now();
    fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}
