//! What was computed for a sequence and outlives it.

mod prefix;
mod prompt;

pub(crate) use prompt::PromptCache;
