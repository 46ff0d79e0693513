//! Where a local model stands on its way into memory.

use std::pin::Pin;

use futures_util::Stream;

/// Where a local model stands on its way into memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ModelState {
    /// It is on disk only.
    #[default]
    OnDisk,
    /// It waits until others make room for it.
    Waiting,
    /// It is being read.
    Loading {
        /// Bytes in memory.
        bytes: u64,
        /// Bytes that there will be; 0 until that is known.
        total: u64,
    },
    /// It is in memory.
    Loaded {
        /// Bytes of its weights.
        bytes: u64,
        /// How they are kept: `stored`, or `unpacked` where they are packed on disk and floats in memory.
        weights: &'static str,
    },
    /// It could not be loaded; the log says why, and so does a request for it.
    Failed,
}

impl ModelState {
    /// What listings call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnDisk => "on_disk",
            Self::Waiting => "waiting",
            Self::Loading { .. } => "loading",
            Self::Loaded { .. } => "loaded",
            Self::Failed => "failed",
        }
    }
}

/// The state of a model now, and each one after it.
pub type ModelStates = Pin<Box<dyn Stream<Item = ModelState> + Send>>;
