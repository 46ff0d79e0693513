//! Whether there is memory for one more sequence. Pure: numbers in, a verdict out.

/// Bytes that MLX holds, and what will come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// In arrays that are alive: weights, running sequences, what is kept of ended ones, all else.
    pub(super) active: u64,
    /// The part of it that is only kept for prompts to come.
    pub(super) kept: u64,
    /// What the running sequences will take beyond what they have.
    pub(super) growth: u64,
    /// How many of those there are.
    pub(super) running: usize,
}

/// Bytes that a sequence will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its keys and values and the like, to its end.
    pub(super) sequence: u64,
    /// What computing a chunk of its prompt takes meanwhile.
    pub(super) step: u64,
    /// The weights of its model, which are held already.
    pub(super) weights: u64,
}

impl Wanted {
    /// Bytes that come on top of the weights.
    pub(super) fn own(self) -> u64 {
        self.sequence.saturating_add(self.step)
    }

    /// Whether it doesn't fit even alone.
    pub(super) fn exceeds(self, limit: u64) -> bool {
        self.weights.saturating_add(self.own()) > limit
    }
}

/// What becomes of a sequence whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It starts.
    Yes,
    /// It starts once so many bytes of what is kept are given back.
    MakeRoom {
        /// At most what is kept.
        bytes: u64,
    },
    /// It waits until others end, or a model is unloaded.
    Wait {
        /// What is missing when nothing is kept any more.
        bytes: u64,
    },
    /// It doesn't fit even alone.
    Never,
}

/// Whether a sequence may start, below a limit in bytes. With nothing else running it may, if it fits at all: who it would
/// wait for is not known here.
pub(super) fn judge(limit: u64, held: Held, wanted: Wanted) -> Verdict {
    if wanted.exceeds(limit) {
        return Verdict::Never;
    }
    let missing = held.active.saturating_add(held.growth).saturating_add(wanted.own()).saturating_sub(limit);
    match missing {
        0 => Verdict::Yes,
        bytes if bytes <= held.kept => Verdict::MakeRoom { bytes },
        bytes if held.running > 0 => Verdict::Wait { bytes: bytes - held.kept },
        _ if held.kept > 0 => Verdict::MakeRoom { bytes: held.kept },
        _ => Verdict::Yes,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held() -> impl Strategy<Value = Held> {
        (0..1000_u64, 0..1000_u64, 0..500_u64, 0..4_usize).prop_map(|(other, kept, growth, running)| Held {
            active: other + kept,
            kept,
            growth,
            running,
        })
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        (0..800_u64, 0..300_u64, 0..900_u64).prop_map(|(sequence, step, weights)| Wanted { sequence, step, weights })
    }

    /// What happens when a verdict is carried out.
    fn carried_out(mut held: Held, bytes: u64) -> Held {
        held.kept -= bytes;
        held.active -= bytes;
        held
    }

    proptest! {
        #[test]
        fn nobody_starts_beyond_the_limit_while_others_run(limit in 1..2000_u64, held in held(), wanted in wanted()) {
            let own = wanted.sequence + wanted.step;
            let fits_alone = wanted.weights + own <= limit;
            let sum = held.active + held.growth + own;
            match judge(limit, held, wanted) {
                Verdict::Never => prop_assert!(!fits_alone),
                Verdict::Yes => prop_assert!(fits_alone && (sum <= limit || (held.running == 0 && held.kept == 0))),
                Verdict::Wait { bytes } => {
                    prop_assert!(held.running > 0 && sum - held.kept > limit);
                    prop_assert_eq!(bytes, sum - held.kept - limit);
                }
                Verdict::MakeRoom { bytes } => {
                    prop_assert!(0 < bytes && bytes <= held.kept && sum > limit);
                    // Made, it isn't asked for again.
                    prop_assert_eq!(judge(limit, carried_out(held, bytes), wanted), Verdict::Yes);
                }
            }
        }

        #[test]
        fn whoever_waits_starts_when_all_others_have_ended(limit in 1..2000_u64, held in held(), wanted in wanted()) {
            if let Verdict::Wait { .. } = judge(limit, held, wanted) {
                let alone = Held { running: 0, growth: 0, ..held };
                let starts = matches!(judge(limit, alone, wanted), Verdict::Yes | Verdict::MakeRoom { .. });
                prop_assert!(starts);
            }
        }

        #[test]
        fn a_higher_limit_refuses_nobody(limit in 1..2000_u64, more in 0..500_u64, held in held(), wanted in wanted()) {
            let starts = |limit| matches!(judge(limit, held, wanted), Verdict::Yes | Verdict::MakeRoom { .. });
            prop_assert!(!starts(limit) || starts(limit + more));
        }
    }
}
