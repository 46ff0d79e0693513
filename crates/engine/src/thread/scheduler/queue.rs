//! Who waits, and whose turn it is.

use std::time::Duration;

use mlx_manager_llm::Priority;
use tokio::time::Instant;

use super::SequenceId;
use crate::model::ModelName;

/// A sequence rises by one class each time it has waited this long.
pub(super) const AGING: Duration = Duration::from_secs(10);

/// What is known of a sequence wherever it is.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) id: SequenceId,
    pub(super) model: ModelName,
    /// Its own class.
    pub(super) priority: Priority,
    pub(super) arrived: Instant,
    /// How often it was preempted.
    pub(super) preempted: u64,
}

impl Ticket {
    /// The class by which others may take its place. Each time one does it rises, so that it is preempted twice at most.
    pub(super) fn standing(&self) -> Priority {
        self.priority.raised(self.preempted)
    }

    /// Its class after it has waited for so long.
    pub(super) fn aged(&self, waited: Duration) -> Priority {
        self.standing().raised(waited.as_secs() / AGING.as_secs())
    }
}

/// A sequence that waits.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) prompt_tokens: u64,
    pub(super) since: Instant,
    /// How long it waited before it was preempted.
    pub(super) waited: Duration,
    /// Whether it waits for a place, and not just for the next time that somebody asks what to do.
    pub(super) queued: bool,
    /// Whether there was no memory for it.
    pub(super) held: bool,
}

impl Waiting {
    /// Its class now.
    pub(super) fn class(&self, now: Instant) -> Priority {
        self.ticket.aged(self.waited + now.saturating_duration_since(self.since))
    }
}

/// Sequences that wait: by class, and in a class in the order in which they came. Who has waited for ten seconds for each class that it is
/// below the best one is passed by none that came later.
#[derive(Debug, Default)]
pub(super) struct Queue(Vec<Waiting>);

impl Queue {
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.0.push(waiting);
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Waiting> {
        let position = self.0.iter().position(|waiting| waiting.ticket.id == id)?;
        Some(self.0.remove(position))
    }

    pub(super) fn get(&self, id: SequenceId) -> Option<&Waiting> {
        self.0.iter().find(|waiting| waiting.ticket.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those that fulfil a condition, in the order of their turns.
    pub(super) fn in_order(&self, now: Instant, which: impl Fn(&Waiting) -> bool) -> Vec<&Waiting> {
        let mut order: Vec<&Waiting> = self.0.iter().filter(|waiting| which(waiting)).collect();
        order.sort_by_key(|waiting| (waiting.class(now), waiting.ticket.arrived, waiting.ticket.id));
        order
    }

    /// Those that were held may be offered again.
    pub(super) fn release(&mut self) {
        for waiting in &mut self.0 {
            waiting.held = false;
        }
    }
}
