//! Where each model stands on its way into memory, told to whoever watches.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::stream;
use mlx_manager_llm::{ModelState, ModelStates};
use tokio::sync::watch;

/// The states of all models that are not on disk only. Clones are the same states.
#[derive(Debug, Clone, Default)]
pub(crate) struct States(Arc<watch::Sender<BTreeMap<String, ModelState>>>);

impl States {
    /// A model has come to this.
    pub(crate) fn set(&self, model: &str, state: ModelState) {
        self.0.send_modify(|states| {
            if state == ModelState::OnDisk {
                states.remove(model);
            } else {
                states.insert(model.to_owned(), state);
            }
        });
    }

    /// Where a model stands.
    pub(crate) fn of(&self, model: &str) -> ModelState {
        self.0.borrow().get(model).copied().unwrap_or_default()
    }

    /// Where a model stands, now and after each change. One who is slow misses what was in between.
    pub(crate) fn watch(&self, model: String) -> ModelStates {
        let start = (self.0.subscribe(), model, None);
        Box::pin(stream::unfold(start, |(mut states, model, last)| async move {
            loop {
                let state = states.borrow_and_update().get(&model).copied().unwrap_or_default();
                if last != Some(state) {
                    return Some((state, (states, model, Some(state))));
                }
                states.changed().await.ok()?;
            }
        }))
    }
}

/// Says of a model that it waits for room, as long as it does.
#[derive(Debug)]
pub(crate) struct WaitingForRoom<'a>(&'a States, &'a str);

impl<'a> WaitingForRoom<'a> {
    pub(crate) fn new(states: &'a States, model: &'a str) -> Self {
        states.set(model, ModelState::Waiting);
        Self(states, model)
    }
}

impl Drop for WaitingForRoom<'_> {
    fn drop(&mut self) {
        self.0.set(self.1, ModelState::OnDisk);
    }
}
