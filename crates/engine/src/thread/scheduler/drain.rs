//! How fast the queue empties, so that whoever is refused can be told when to come back.

use std::time::Duration;

use tokio::time::Instant;

/// What lies this far back counts 1/e of what happens now.
const WINDOW: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);
/// Said before anything was measured.
const UNMEASURED: Duration = Duration::from_secs(10);

/// What left the queue, and how long somebody waited meanwhile. Time in which nobody waits says nothing of how fast the
/// queue empties, so it isn't counted.
#[derive(Debug, Default)]
pub(super) struct Drain {
    at: Option<Instant>,
    seconds: f64,
    sequences: f64,
    tokens: f64,
    /// Whether anything ever left.
    measured: bool,
}

impl Drain {
    /// Time went by, in which somebody waited or nobody did.
    pub(super) fn pass(&mut self, now: Instant, somebody_waits: bool) {
        let before = self.at.replace(now).unwrap_or(now);
        if !somebody_waits {
            return;
        }
        let window = WINDOW.as_secs_f64();
        let kept = (-now.saturating_duration_since(before).as_secs_f64() / window).exp();
        self.seconds = self.seconds * kept + window * (1.0 - kept);
        self.sequences *= kept;
        self.tokens *= kept;
    }

    /// A sequence with so many prompt tokens left the queue.
    pub(super) fn left(&mut self, tokens: u64) {
        self.sequences += 1.0;
        self.tokens += tokens as f64;
        self.measured = true;
    }

    /// One that had left came back.
    pub(super) fn came_back(&mut self, tokens: u64) {
        self.sequences = (self.sequences - 1.0).max(0.0);
        self.tokens = (self.tokens - tokens as f64).max(0.0);
    }

    /// The time in which so many sequences with so many prompt tokens leave, within bounds that a client can live with.
    pub(super) fn time_for(&self, sequences: usize, tokens: u64) -> Duration {
        if !self.measured {
            return UNMEASURED.max(Duration::from_secs_f64(self.seconds));
        }
        let time = |amount: f64, left: f64| if amount > 0.0 { amount * self.seconds / left } else { 0.0 };
        let seconds = time(sequences as f64, self.sequences).max(time(tokens as f64, self.tokens));
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).clamp(SHORTEST, LONGEST)
    }
}
