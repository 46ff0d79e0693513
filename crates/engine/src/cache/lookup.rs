//! What a search for the beginning of a prompt came to, and why not to more.

use std::fmt;

/// The shortest beginning that counts as found. What a chat template puts in front of every prompt would be found always,
/// which saves next to nothing and would make the share of hits meaningless. vLLM's blocks are of the same length.
pub(crate) const SHORTEST: usize = 16;

/// How much of a prompt was computed before. Counts are tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixLookup {
    /// The whole prompt.
    pub prompt: usize,
    /// How many of its first tokens agree with what is kept.
    pub matched: usize,
    /// How many of these need not be computed: never the last one of the prompt, since the answer follows from that.
    pub restored: usize,
    /// How many of those were read from disk for it.
    pub from_disk: usize,
    /// Why it isn't more.
    pub reason: Reason,
}

/// Why no more of a prompt was restored. It may name a position, and never a token: prompts are secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no more: all but the last token was restored.
    WholePrompt,
    /// Nothing that is kept begins with the same token.
    NothingAlike,
    /// What is kept goes on with another token at this position.
    DivergesAt(usize),
    /// What is kept agrees, and ends before this position.
    EndsAt(usize),
    /// Layers whose state can't be cut have none that was saved between what was restored and this position.
    NoSnapshotBefore(usize),
    /// More was kept, and gave way to others.
    Evicted,
    /// What agrees is shorter than 16 tokens.
    TooShort,
    /// Nothing is kept at all.
    Off,
}

impl PrefixLookup {
    /// Of a prompt that was not looked up.
    pub(crate) fn off(prompt: usize) -> Self {
        Self { prompt, matched: 0, restored: 0, from_disk: 0, reason: Reason::Off }
    }
}

impl fmt::Display for PrefixLookup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt, matched, restored, from_disk, reason } = self;
        write!(formatter, "matched={matched}/{prompt}; restored={restored}; reason=\"{reason}\"")?;
        if *from_disk > 0 { write!(formatter, "; disk={from_disk}") } else { Ok(()) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WholePrompt => formatter.write_str("whole prompt"),
            Self::NothingAlike => formatter.write_str("nothing alike"),
            Self::DivergesAt(token) => write!(formatter, "diverges at token {token}"),
            Self::EndsAt(token) => write!(formatter, "nothing kept from token {token}"),
            Self::NoSnapshotBefore(token) => write!(formatter, "no snapshot before token {token}"),
            Self::Evicted => formatter.write_str("evicted"),
            Self::TooShort => write!(formatter, "shorter than {SHORTEST}"),
            Self::Off => formatter.write_str("cache off"),
        }
    }
}
