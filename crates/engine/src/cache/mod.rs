//! What was computed for a sequence and outlives it.
//!
//! [`radix`] is the tree, which knows no MLX; [`prefix`] fills it with keys and values, and has [`disk`] keep those that give
//! way there, in [`extents`] of a file; a [`lookup`] is what is said of one search.

mod disk;
mod evicted;
mod extents;
mod lookup;
mod prefix;
mod radix;

#[cfg(test)]
pub(crate) use disk::Open;
pub(crate) use disk::{DiskEvent, DiskSettings, ReadId, create};
pub use lookup::{PrefixLookup, Reason};
pub(crate) use prefix::PrefixCache;
