//! Puts a `[log]` section in effect: at the start, and again while the daemon runs.
//!
//! A sink is known by its file, or by its name if it is the console. One that stays keeps its queue, its worker, its
//! file's lock and its sequence numbers, and is told what is new; so nothing is lost and nobody else gets at the file.
//! Enter at [`LogHandle::reload`].

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use mlx_manager_config::{LogConfig, SinkKind, Timezone};

use super::{
    Core, LogError, LogHandle, Opening, filter,
    filter::Filter,
    plan::{FileOutput, Plan, wait},
    retention::{EVERY, Keeper},
    spawn,
};

/// How long a reload waits for sinks that are no more to write what they have.
const RETIRE_DEADLINE: Duration = Duration::from_secs(5);

impl LogHandle {
    /// Replaces levels, targets and sinks. A sink that is no more writes what it has and closes its file first. May wait
    /// for the disk, so not on an async thread. When it fails, everything is as before.
    ///
    /// # Errors
    /// When a new file can't be opened or belongs to a running daemon.
    pub fn reload(&self, config: &LogConfig) -> Result<(), LogError> {
        self.core.put_in_effect(config)?;
        // Callsites that were off or on under the old plan are asked for again.
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }
}

impl Core {
    pub(super) fn put_in_effect(&self, config: &LogConfig) -> Result<(), LogError> {
        let mut keeper = self.keeper.lock();
        let count = config.sinks.len();
        if count > filter::MAX_SINKS {
            return Err(LogError::TooManySinks { count });
        }
        let timezone = match config.timezone {
            Timezone::Utc => TimeZone::UTC,
            Timezone::Local => TimeZone::system(),
        };
        let console = config.sinks.iter().any(|sink| matches!(sink.kind, SinkKind::Console { .. }));
        self.complaints.console.store(console, Ordering::Relaxed);
        let before = self.plan();
        let (rotated, rotations) = mpsc::channel();
        let mut opening = Opening::new(self, &before, timezone, rotated);
        // All files first: a sink that can't be opened leaves no threads behind, and what is in effect untouched.
        let routes = config.sinks.iter().map(|sink| opening.route(sink)).collect::<Result<Vec<_>, _>>()?;
        let Opening { shelves, workers, changes, .. } = opening;
        for (output, worker) in workers {
            let thread = spawn("log-file", move || worker.run())?;
            output.thread.lock().replace(thread);
        }
        if !shelves.is_empty() {
            let clock = self.clock.clone();
            let previous = keeper.take();
            *keeper = Some(spawn("log-keeper", move || {
                // It ends with the last worker that tells it of rotations. Two at once would compress the same archive.
                drop(previous.map(JoinHandle::join));
                Keeper { shelves, clock, rotations, every: EVERY }.run();
            })?);
        }
        // Nothing can fail from here on.
        changes.into_iter().for_each(|change| change());
        let plan = Arc::new(Plan { filter: Filter::new(config, self.observer.is_some(), self.traced), routes });
        let removed = before.files().filter(|old| plan.files().all(|file| !Arc::ptr_eq(file, old)));
        let removed = removed.cloned().collect();
        self.in_effect.rcu(|in_effect| in_effect.under(&plan));
        retire(before, removed);
        Ok(())
    }
}

/// Lets go of a plan when nobody is in the middle of logging by it, and of its sinks when they have written everything.
fn retire(plan: Arc<Plan>, removed: Vec<Arc<FileOutput>>) {
    let deadline = Instant::now() + RETIRE_DEADLINE;
    if !wait(deadline, || Arc::strong_count(&plan) == 1) {
        // The sinks end with the last that logs by it.
        return;
    }
    drop(plan);
    FileOutput::end(&removed, deadline);
}

#[cfg(test)]
mod tests;
