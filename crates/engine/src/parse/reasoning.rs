//! Reasoning between two markers, before the answer.
//!
//! Markers count only where reasoning can begin: at the start of the answer or right after other reasoning. In the midst
//! of an answer `<think>` is something the model writes about. The first closing marker ends the reasoning, however many
//! were opened, because a model that mentions its marker while it thinks would otherwise never get to its answer. White
//! space around the reasoning belongs to the markers and is dropped.

/// How a model marks its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReasoningFormat {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

/// In the order in which a template is asked for them: `<think>` first, since some templates mention the others in prose.
const FORMATS: [ReasoningFormat; 3] = [
    ReasoningFormat { open: "<think>", close: "</think>" },
    ReasoningFormat { open: "[THINK]", close: "[/THINK]" },
    ReasoningFormat { open: "<thinking>", close: "</thinking>" },
];

impl ReasoningFormat {
    /// The format that a chat template speaks of.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        FORMATS.into_iter().find(|format| template.contains(format.open) || template.contains(format.close))
    }

    /// Whether a prompt ends with reasoning opened and not closed.
    pub(crate) fn is_open_after(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }

    /// Whether the beginning of an answer opens reasoning and doesn't close it.
    pub(crate) fn is_open_within(self, answer: &str) -> bool {
        answer.trim_start().starts_with(self.open) && !answer.contains(self.close)
    }
}
