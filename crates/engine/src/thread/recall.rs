//! Sequences that wait to be queued until what was computed of their prompts is read from disk.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mlx_manager_signal::event::PrefixDiskLate;

use super::command::{GenerationEvent, Submission};
use crate::{cache::ReadId, error::EngineError, model::ModelName};

/// How long a sequence waits. After that it is computed as if nothing had been there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Those that wait, each for a read of its own.
#[derive(Default)]
pub(super) struct Recalls(HashMap<ReadId, Recall>);

struct Recall {
    model: ModelName,
    submission: Submission,
    since: Instant,
}

impl Recalls {
    /// Has a sequence wait.
    pub(super) fn wait(&mut self, id: ReadId, model: ModelName, submission: Submission) {
        self.0.insert(id, Recall { model, submission, since: Instant::now() });
    }

    /// What waits for this read.
    pub(super) fn take(&mut self, id: ReadId) -> Option<(ModelName, Submission)> {
        self.0.remove(&id).map(|recall| (recall.model, recall.submission))
    }

    /// Everybody, in the order in which they came.
    pub(super) fn take_all(&mut self) -> Vec<(ModelName, Submission)> {
        let mut all: Vec<_> = self.0.drain().collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, recall)| (recall.model, recall.submission)).collect()
    }

    /// Those that have waited for too long, in the order in which they came.
    pub(super) fn take_late(&mut self) -> Vec<(ReadId, ModelName, Submission)> {
        let mut late: Vec<_> = self.0.extract_if(|_, recall| recall.since.elapsed() >= PATIENCE).collect();
        late.sort_unstable_by_key(|(id, _)| *id);
        let late = late.into_iter().map(|(id, Recall { model, submission, since })| {
            PrefixDiskLate { model: &model, waited: since.elapsed() }.emit();
            (id, model, submission)
        });
        late.collect()
    }

    /// How long until somebody has waited for too long; `None` when nobody waits.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.0.values().map(|recall| PATIENCE.saturating_sub(recall.since.elapsed())).min()
    }

    /// Whether somebody waits who wants this model.
    pub(super) fn want(&self, model: &ModelName) -> bool {
        self.0.values().any(|recall| recall.model == *model)
    }

    /// Drops those whose clients went away, and says for what they waited.
    pub(super) fn drop_the_gone(&mut self) -> Vec<ReadId> {
        self.0.extract_if(|_, recall| recall.submission.events.is_closed()).map(|(id, _)| id).collect()
    }

    /// Ends all of them with an error.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        for (_, mut submission) in self.take_all() {
            submission.events.tell(GenerationEvent::Failed(error.clone()));
        }
    }
}
