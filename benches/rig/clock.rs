//! Processor time of one thread.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// What this thread has used. To look costs a fraction of a microsecond, so that single requests can be measured.
#[derive(Debug)]
pub struct ThreadTime(Timespec);

impl ThreadTime {
    pub fn now() -> Self {
        Self(clock_gettime(ClockId::ThreadCPUTime))
    }

    /// What was used since.
    pub fn nanoseconds(&self) -> f64 {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        (now.tv_sec - self.0.tv_sec) as f64 * 1e9 + (now.tv_nsec - self.0.tv_nsec) as f64
    }
}
