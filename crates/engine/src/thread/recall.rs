//! Sequences that wait to be queued until what was computed of their prompts is read from disk.

use std::time::{Duration, Instant};

use mlx_manager_signal::event::PrefixDiskLate;

use super::command::{GenerationEvent, Submission};
use crate::{cache::ReadId, error::EngineError, model::ModelName};

/// How long a sequence waits. After that it is computed as if nothing had been there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Those that wait, in the order in which they came.
#[derive(Default)]
pub(super) struct Recalls(Vec<Recall>);

struct Recall {
    read: ReadId,
    model: ModelName,
    submission: Submission,
    since: Instant,
}

impl Recalls {
    /// Has a sequence wait for a read.
    pub(super) fn wait(&mut self, read: ReadId, model: ModelName, submission: Submission) {
        self.0.push(Recall { read, model, submission, since: Instant::now() });
    }

    /// Those that wait for this read.
    pub(super) fn take(&mut self, read: ReadId) -> Vec<(ModelName, Submission)> {
        self.take_if(|recall| recall.read == read)
    }

    /// All of them.
    pub(super) fn take_all(&mut self) -> Vec<(ModelName, Submission)> {
        self.take_if(|_| true)
    }

    /// Those that have waited for too long.
    pub(super) fn take_late(&mut self) -> Vec<(ModelName, Submission)> {
        self.take_if(|Recall { model, since, .. }| {
            let waited = since.elapsed();
            let is_late = waited >= PATIENCE;
            if is_late {
                PrefixDiskLate { model, waited }.emit();
            }
            is_late
        })
    }

    /// How long until somebody has waited for too long; `None` when nobody waits.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.0.iter().map(|recall| PATIENCE.saturating_sub(recall.since.elapsed())).min()
    }

    /// Whether somebody waits who wants this model.
    pub(super) fn want(&self, model: &ModelName) -> bool {
        self.0.iter().any(|recall| recall.model == *model)
    }

    /// Drops those whose clients went away. What they waited for comes all the same.
    pub(super) fn drop_the_gone(&mut self) {
        self.0.retain(|recall| !recall.submission.events.is_closed());
    }

    /// Ends all of them with an error.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        for (_, mut submission) in self.take_all() {
            submission.events.tell(GenerationEvent::Failed(error.clone()));
        }
    }

    fn take_if(&mut self, wanted: impl Fn(&Recall) -> bool) -> Vec<(ModelName, Submission)> {
        self.0.extract_if(.., |recall| wanted(recall)).map(|recall| (recall.model, recall.submission)).collect()
    }
}
