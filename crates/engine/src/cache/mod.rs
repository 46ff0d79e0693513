//! What a sequence keeps of the tokens it has seen, and what of it outlives the sequence.

mod key_value;
mod prefix;
mod prompt;

pub(crate) use key_value::KeyValueCache;
pub(crate) use prompt::PromptCache;
