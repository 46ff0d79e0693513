//! What a sequence keeps of the tokens it has seen.

mod key_value;

pub(crate) use key_value::KeyValueCache;
