//! What was computed for a sequence and outlives it.
//!
//! [`radix`] is the tree, which knows no MLX; [`prefix`] fills it with keys and values; a [`lookup`] is what is said of one
//! search.

mod evicted;
mod lookup;
mod prefix;
mod radix;

pub use lookup::{PrefixLookup, Reason};
pub(crate) use prefix::PrefixCache;
