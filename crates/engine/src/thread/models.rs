//! The models by name, loaded a step at a time, with the answers to those who wait for one.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use mlx_manager_llm::ModelState;
use mlx_manager_signal::event::{EngineMemory, ModelLoadError, ModelLoaded, ModelLoading};

use super::{EngineSettings, command::LoadReply};
use crate::{
    error::EngineError,
    mlx::{self, Exception, Precision},
    model::{Kernels, Loader, Model, ModelInfo, ModelName, Progress, Source},
    states::States,
};

/// The part of the memory limit that MLX may keep in freed buffers.
const CACHED_SHARE: u64 = 10;

/// The most of it. Steps of the same kind need the same buffers again, and what they need is far below it. MLX gives a kept
/// buffer only to an array of nearly its size. On a CPU the C library's heap keeps them too, and makes use of them for arrays
/// of any size: to keep them twice would only be memory that nobody can use.
const MOST_CACHED: u64 = 1 << 30;
const MOST_CACHED_COMPOSED: u64 = 0;

/// The models that the thread knows.
pub(super) struct Models {
    slots: HashMap<ModelName, Slot>,
    /// `None` takes the fastest precision for the device.
    precision: Option<Precision>,
    /// Bytes that MLX is yet to be asked to stay below.
    untold_limit: Option<u64>,
    states: States,
}

/// A model by name.
struct Slot {
    source: Source,
    state: SlotState,
}

enum SlotState {
    /// It was loaded once, by a thread that is gone.
    Known,
    Loading {
        loader: Loader,
        replies: Vec<LoadReply>,
    },
    Ready {
        model: Rc<Model>,
        info: Arc<ModelInfo>,
    },
}

/// Whether a model must be loaded now, by [`Models::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loading {
    /// It must: its loading has begun.
    Begun,
    /// It is ready, is being loaded already, or can't be.
    NotBegun,
}

/// What a step of loading led to.
#[derive(Debug)]
pub(super) enum LoadStep {
    /// There is more to do.
    More,
    /// The model is ready.
    Ready,
    /// It can't be loaded, and whoever asked for it was told.
    Failed(EngineError),
    /// Nobody wants it loaded.
    Unwanted,
}

impl Models {
    /// `sources` are those of models that a former thread had. MLX is told of the limit, in bytes, before the first model
    /// loads.
    pub(super) fn new(sources: HashMap<ModelName, Source>, settings: &EngineSettings) -> Self {
        let known = |source| Slot { source, state: SlotState::Known };
        let slots = sources.into_iter().map(|(name, source)| (name, known(source))).collect();
        let (precision, states) = (settings.precision, settings.states.clone());
        Self { slots, precision, untold_limit: settings.memory_limit, states }
    }

    /// Where all models are from, for a thread that takes over.
    pub(super) fn sources(&self) -> HashMap<ModelName, Source> {
        self.slots.iter().map(|(name, slot)| (Arc::clone(name), slot.source.clone())).collect()
    }

    /// Answers once the model is ready, or can't be.
    pub(super) fn load(&mut self, name: &ModelName, source: Source, reply: LoadReply) -> Loading {
        match self.slots.get_mut(name).map(|slot| &mut slot.state) {
            Some(SlotState::Ready { info, .. }) => {
                // Whoever asked may have left.
                drop(reply.send(Ok(Arc::clone(info))));
                Loading::NotBegun
            }
            Some(SlotState::Loading { replies, .. }) => {
                replies.push(reply);
                Loading::NotBegun
            }
            Some(SlotState::Known) | None => self.begin(name, source, vec![reply]),
        }
    }

    /// The name as it is known here, if the model is. One that only a former thread had loaded is to be loaded again.
    pub(super) fn wanted(&mut self, name: &str) -> Option<(ModelName, Loading)> {
        let (name, slot) = self.slots.get_key_value(name)?;
        let name = Arc::clone(name);
        let loading = match slot.state {
            SlotState::Known => {
                let source = slot.source.clone();
                self.begin(&name, source, Vec::new())
            }
            SlotState::Loading { .. } | SlotState::Ready { .. } => Loading::NotBegun,
        };
        Some((name, loading))
    }

    /// Loads some more of a model.
    pub(super) fn step(&mut self, name: &ModelName) -> LoadStep {
        let Some(slot) = self.slots.get_mut(name) else { return LoadStep::Unwanted };
        let SlotState::Loading { loader, replies } = &mut slot.state else { return LoadStep::Unwanted };
        match loader.step() {
            Ok(Progress::More { bytes, total }) => {
                ModelLoading { model: name, bytes, total }.emit();
                self.states.set(name, ModelState::Loading { bytes, total });
                LoadStep::More
            }
            Ok(Progress::Done(model)) => {
                let info = Arc::new(model.info.clone());
                let (bytes, duration, weights) = (info.bytes, info.load_duration, info.form.as_str());
                ModelLoaded { model: name, bytes, duration, weights }.emit();
                self.states.set(name, ModelState::Loaded { bytes, weights });
                answer_all(replies, &Ok(Arc::clone(&info)));
                slot.state = SlotState::Ready { model: Rc::new(*model), info };
                LoadStep::Ready
            }
            Err(source) => {
                ModelLoading { model: name, bytes: 0, total: 0 }.emit();
                self.states.set(name, ModelState::Failed);
                ModelLoadError { model: name, folder: Some(&slot.source.folder), error: &source }.emit();
                let error = EngineError::Load { model: name.to_string(), source: Arc::new(source) };
                answer_all(replies, &Err(error.clone()));
                self.slots.remove(name);
                LoadStep::Failed(error)
            }
        }
    }

    /// A model that can compute.
    pub(super) fn ready(&self, name: &ModelName) -> Option<&Rc<Model>> {
        match self.slots.get(name).map(|slot| &slot.state) {
            Some(SlotState::Ready { model, .. }) => Some(model),
            Some(SlotState::Known | SlotState::Loading { .. }) | None => None,
        }
    }

    /// The models that can compute, and what is known of each.
    pub(super) fn all_ready(&self) -> impl Iterator<Item = (&ModelName, &Arc<ModelInfo>)> {
        self.slots.iter().filter_map(|(name, slot)| match &slot.state {
            SlotState::Ready { info, .. } => Some((name, info)),
            SlotState::Known | SlotState::Loading { .. } => None,
        })
    }

    /// Whether a model is being loaded.
    pub(super) fn is_loading(&self, name: &ModelName) -> bool {
        matches!(self.slots.get(name).map(|slot| &slot.state), Some(SlotState::Loading { .. }))
    }

    /// Drops a model; false when there is none of this name.
    pub(super) fn remove(&mut self, name: &ModelName) -> bool {
        self.states.set(name, ModelState::OnDisk);
        self.slots.remove(name).is_some()
    }

    /// Tells those who wait for a model that it won't come, and that no model has a cache any more.
    pub(super) fn abandon(&mut self, error: &EngineError) {
        for (model, slot) in &mut self.slots {
            self.states.set(model, ModelState::OnDisk);
            match &mut slot.state {
                SlotState::Known => {}
                SlotState::Loading { replies, .. } => answer_all(replies, &Err(error.clone())),
                SlotState::Ready { .. } => EngineMemory { model, kv_cache_bytes: 0 }.emit(),
            }
        }
    }

    fn begin(&mut self, name: &ModelName, source: Source, mut replies: Vec<LoadReply>) -> Loading {
        match self.precision() {
            Ok(precision) => {
                let loader = Loader::new(name.to_string(), source.clone(), precision);
                let slot = Slot { source, state: SlotState::Loading { loader, replies } };
                self.slots.insert(Arc::clone(name), slot);
                Loading::Begun
            }
            Err(error) => {
                answer_all(&mut replies, &Err(EngineError::mlx(&error)));
                Loading::NotBegun
            }
        }
    }

    /// The first thing that MLX is asked at all, so it is told its limit before.
    pub(super) fn precision(&mut self) -> Result<Precision, Exception> {
        if let Some(bytes) = self.untold_limit {
            mlx::limit_memory(bytes)?;
            let most = match Kernels::for_device()? {
                Kernels::Fused => MOST_CACHED,
                Kernels::Composed => MOST_CACHED_COMPOSED,
            };
            mlx::limit_cache(most.min(bytes / CACHED_SHARE))?;
            self.untold_limit = None;
        }
        self.precision.map_or_else(Precision::for_device, Ok)
    }
}

fn answer_all(replies: &mut Vec<LoadReply>, answer: &Result<Arc<ModelInfo>, EngineError>) {
    for reply in replies.drain(..) {
        // Whoever asked may have left.
        drop(reply.send(answer.clone()));
    }
}
