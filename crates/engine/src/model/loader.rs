//! Loads a model in small steps, so that the thread that does it can serve others between them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use mlx_rs::Array;

#[cfg(test)]
use super::quantization::QuantizationSummary;
use super::{
    Architecture, Config, LoadError,
    decoder::Decoder,
    footprint::{Footprint, Form, Source},
    kernels::Kernels,
    llama,
    needs::Needs,
    plan::Plan,
    qwen2, qwen3,
    weights::{self, Weights},
};
use crate::mlx::{self, Exception, Precision};

/// Bytes that one step brings into memory, about. Of packed weights that become floats they take MLX 60 ms, which is as
/// long as others should have to wait.
const STEP_BYTES: usize = 32 << 20;

/// What is known of a loaded model.
#[derive(Debug, Clone)]
pub(crate) struct ModelInfo {
    /// What requests call it.
    pub(crate) name: String,
    /// Prompt and answer together have at most so many tokens; `None` when the folder doesn't say.
    pub(crate) max_context: Option<u32>,
    /// Token ids, for a check of the tokenizer's.
    pub(crate) vocabulary: u32,
    /// Ids that end an answer.
    pub(crate) end_ids: Vec<u32>,
    /// Bytes of the weights in memory.
    pub(crate) bytes: u64,
    /// How they are kept.
    pub(crate) form: Form,
    /// What its sequences take.
    pub(crate) needs: Needs,
    /// How most weights are packed, if they are.
    #[cfg(test)]
    pub(crate) quantization: Option<QuantizationSummary>,
    /// From the first byte read to the last.
    pub(crate) load_duration: Duration,
}

/// A model, ready to compute.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) info: ModelInfo,
    pub(crate) decoder: Decoder,
}

/// What a step has led to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// There is more to do.
    More {
        /// Bytes in memory.
        bytes: u64,
        /// Bytes that there will be.
        total: u64,
    },
    /// The model is ready.
    Done(Box<Model>),
}

/// A model that is being loaded.
#[derive(Debug)]
pub(crate) struct Loader {
    name: String,
    source: Source,
    precision: Precision,
    /// `None` takes the fastest ones for the device.
    kernels: Option<Kernels>,
    started: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing is read yet.
    New,
    /// Shapes are checked; these arrays still wait to be read.
    Reading { model: Box<Model>, waiting: Vec<Array> },
    /// The model was handed out, or there was an error.
    Ended,
}

impl Loader {
    pub(crate) fn new(name: String, source: impl Into<Source>, precision: Precision) -> Self {
        let source = source.into();
        Self { name, source, precision, kernels: None, started: Instant::now(), state: State::New }
    }

    #[cfg(test)]
    pub(super) fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels: Some(kernels), ..self }
    }

    /// Reads and checks the headers first, then some of the weights at each step.
    pub(crate) fn step(&mut self) -> Result<Progress, LoadError> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::New => {
                let model = self.open()?;
                let mut waiting: Vec<Array> = model.decoder.arrays().cloned().collect();
                waiting.reverse();
                let total = model.info.bytes;
                self.state = State::Reading { model: Box::new(model), waiting };
                Ok(Progress::More { bytes: 0, total })
            }
            State::Reading { mut model, mut waiting } => {
                let mut now = Vec::new();
                let mut bytes = 0;
                while bytes < STEP_BYTES
                    && let Some(array) = waiting.pop()
                {
                    bytes += array.nbytes();
                    now.push(array);
                }
                mlx::evaluate(&now)?;
                if waiting.is_empty() {
                    drop(now);
                    mlx::clear_cache()?;
                    model.info.load_duration = self.started.elapsed();
                    return Ok(Progress::Done(model));
                }
                let total = model.info.bytes;
                let bytes = total.saturating_sub(waiting.iter().map(|array| array.nbytes() as u64).sum());
                self.state = State::Reading { model, waiting };
                Ok(Progress::More { bytes, total })
            }
            State::Ended => Err(LoadError::Mlx(Exception::custom("the loader has ended"))),
        }
    }

    fn open(&self) -> Result<Model, LoadError> {
        let Source { folder, form } = &self.source;
        let config = Config::read(folder)?;
        let kernels = self.kernels.map_or_else(Kernels::for_device, Ok)?;
        let decoder = build(folder, &config, (self.precision, *form), kernels)?;
        let bytes = decoder.arrays().map(|array| array.nbytes() as u64).sum();
        let needs = Needs::of(&config, &plan(&config)?, decoder.number_bytes());
        let info = ModelInfo {
            name: self.name.clone(),
            max_context: config.max_context,
            vocabulary: config.vocabulary.unsigned_abs(),
            end_ids: config.end_ids,
            bytes,
            form: *form,
            needs,
            #[cfg(test)]
            quantization: config.quantization.default,
            load_duration: Duration::ZERO,
        };
        Ok(Model { info, decoder })
    }
}

/// Checks what can be checked without MLX: that the config is of a model we compute, and that the headers of the weights
/// are whole. Gives what they will take in memory.
///
/// # Errors
/// The first fault, config before weights.
pub(crate) fn measure(folder: &Path, precision: Precision) -> Result<Footprint, LoadError> {
    let config = Config::read(folder)?;
    let plan = plan(&config)?;
    weights::measure(folder, &config.quantization, plan.head, precision)
}

fn plan(config: &Config) -> Result<Plan, LoadError> {
    match config.architecture {
        Architecture::Qwen3 => qwen3::plan(config),
        Architecture::Qwen2 => qwen2::plan(config),
        Architecture::Llama => llama::plan(config),
    }
}

fn build(
    folder: &Path,
    config: &Config,
    (precision, form): (Precision, Form),
    kernels: Kernels,
) -> Result<Decoder, LoadError> {
    let plan = plan(config)?;
    let mut weights = Weights::open(folder, config.quantization.clone(), precision, form)?;
    weights.drop_where(|name| name.ends_with("rotary_emb.inv_freq"));
    let decoder = Decoder::build(config, &plan, &mut weights, kernels)?;
    weights.finish()?;
    Ok(decoder)
}
