//! The running sequences of one model on the device: one forward for all of them, one graph that chooses, one read.

use std::{
    num::NonZeroUsize,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    scheduler::{Chunk, SequenceId},
    sequence::Sequence,
};
use crate::{
    mlx::{self, Array, Exception},
    model::{Computed, KeyValueStore, Model, Segment},
    sample::{self, Row},
};

/// A model and what its sequences keep on the device.
pub(super) struct Batch {
    model: Rc<Model>,
    store: KeyValueStore,
    /// Whether a step is begun before the one before it is read. That hides the time between two steps where a device
    /// computes beside us. On a CPU it costs a copy of all keys and values: a buffer that the queued step still reads can't be
    /// written in place.
    runs_ahead: bool,
    ahead: Option<Ahead>,
}

/// A step that was begun from tokens that nobody had read.
struct Ahead {
    rows: Vec<SequenceId>,
    /// Of shape `[rows]`.
    tokens: Array,
}

/// A sequence's share of a step.
pub(super) struct Share<'a> {
    pub(super) id: SequenceId,
    pub(super) sequence: &'a mut Sequence,
    /// Tokens of its prompt to be computed; `None` to decode one.
    pub(super) prefill: Option<NonZeroUsize>,
}

/// What a step came to. Its sequences have advanced.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The next token of each sequence that decoded.
    pub(super) tokens: Vec<(SequenceId, u32)>,
    /// Tokens of prompts computed.
    pub(super) prefilled: Vec<Chunk>,
    pub(super) times: StepTimes,
}

/// Where the time of a step went.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepTimes {
    /// Describing the forward to MLX.
    pub(super) graph: Duration,
    /// Describing the choice.
    pub(super) sample: Duration,
    /// Waiting for the tokens.
    pub(super) wait: Duration,
}

impl Batch {
    pub(super) fn new(model: Rc<Model>, runs_ahead: bool) -> Self {
        let store = model.decoder.new_store();
        Self { model, store, runs_ahead, ahead: None }
    }

    /// The model.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Bytes of keys and values that its sequences would have if they shared nothing.
    pub(super) fn unshared_bytes(&self) -> u64 {
        self.store.unshared_bytes()
    }

    /// Takes a sequence in, with what was computed of it before, or with room for so many positions.
    pub(super) fn join(&mut self, id: SequenceId, computed: Option<Computed>, room: i32) {
        self.store.join(id, computed, room);
    }

    /// Makes about so many bytes of a sequence's buffers: how many are left over, or that it isn't done.
    pub(super) fn reserve(&mut self, id: SequenceId, bytes: u64) -> Result<Option<u64>, Exception> {
        self.store.reserve(id, bytes)
    }

    /// Takes a sequence out, and gives what was computed of it, perhaps with positions beyond: those of a token that nobody has
    /// read.
    pub(super) fn leave(&mut self, id: SequenceId) -> Result<Option<Computed>, Exception> {
        self.store.leave(id)
    }

    /// Computes one step and waits for it.
    ///
    /// # Errors
    /// Those of MLX. What was computed of the sequences is of no use then; [`Self::forget`] follows.
    pub(super) fn step(&mut self, shares: &mut [Share<'_>]) -> Result<Outcome, Exception> {
        let mut outcome = Outcome::default();
        let begun = match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.begin(shares, None, &mut outcome)?,
        };
        let decodes_on = shares.iter().all(|share| {
            let decodes = share.prefill.is_none() && begun.rows.contains(&share.id);
            decodes && share.sequence.goes_on() && !share.sequence.sampler().looks_back()
        });
        if self.runs_ahead && decodes_on && !begun.rows.is_empty() {
            mlx::start([&begun.tokens])?;
            // The tokens that are being computed count as computed from here on.
            self.ahead = Some(self.begin(shares, Some(&begun), &mut outcome)?);
        }
        let waiting = Instant::now();
        let tokens = mlx::read_ids(&begun.tokens)?;
        outcome.times.wait += waiting.elapsed();
        for (id, token) in begun.rows.into_iter().zip(tokens) {
            if let Some(share) = shares.iter_mut().find(|share| share.id == id) {
                share.sequence.advance(1);
                outcome.tokens.push((id, token));
            }
        }
        Ok(outcome)
    }

    /// Drops what was computed of sequences whose step failed.
    pub(super) fn forget(&mut self, ids: impl Iterator<Item = SequenceId>) {
        self.ahead = None;
        ids.for_each(|id| self.store.reset(id));
    }

    /// Describes a step, and computes it if it isn't one that `after` another is to be read.
    fn begin(
        &mut self,
        shares: &mut [Share<'_>],
        after: Option<&Ahead>,
        outcome: &mut Outcome,
    ) -> Result<Ahead, Exception> {
        let began = Instant::now();
        let segments: Vec<Segment> = shares.iter().map(segment).collect();
        let mut layout = self.store.arrange(&segments)?;
        let ordered: Vec<&Share<'_>> = layout.order.iter().filter_map(|index| shares.get(*index)).collect();
        let rows: Vec<SequenceId> =
            ordered.iter().filter(|share| share.prefill.is_none()).map(|share| share.id).collect();
        let ids = match after {
            None => {
                let one = NonZeroUsize::MIN;
                let tokens = ordered.iter().flat_map(|share| share.sequence.next(share.prefill.unwrap_or(one)));
                mlx::ids(&tokens.copied().collect::<Vec<u32>>())?
            }
            Some(before) => {
                let places = rows.iter().filter_map(|id| before.rows.iter().position(|row| row == id));
                let places: Vec<u32> = places.map(|place| place as u32).collect();
                before.tokens.take_axis(mlx::ids(&places)?, 0)?
            }
        };
        let logits = self.model.decoder.forward(&ids, &mut layout, &mut self.store)?;
        let described = Instant::now();
        let chooses: Vec<Row<'_>> = ordered
            .iter()
            .filter(|share| share.prefill.is_none())
            .map(|share| Row { sampler: share.sequence.sampler(), ahead: u64::from(after.is_some()) })
            .collect();
        let kernels = self.model.decoder.kernels();
        let tokens = match logits {
            Some(logits) => sample::choose(&logits, &chooses, kernels)?,
            None => mlx::ids(&[])?,
        };
        let chosen = Instant::now();
        let all = std::iter::once(&tokens).chain(self.store.written(&layout));
        if self.runs_ahead { mlx::start(all) } else { mlx::evaluate(all) }?;
        outcome.times.graph += described - began;
        outcome.times.sample += chosen - described;
        outcome.times.wait += chosen.elapsed();
        for share in shares.iter_mut() {
            if let Some(count) = share.prefill {
                let (count, context) = (share.sequence.next(count).len(), share.sequence.computed() as u64);
                share.sequence.advance(count);
                outcome.prefilled.push(Chunk { id: share.id, tokens: count as u64, context });
            }
        }
        Ok(Ahead { rows, tokens })
    }
}

fn segment(share: &Share<'_>) -> Segment {
    let tokens = share.prefill.map_or(1, |count| share.sequence.next(count).len());
    Segment { sequence: share.id, tokens: i32::try_from(tokens).unwrap_or(i32::MAX), logits: share.prefill.is_none() }
}
