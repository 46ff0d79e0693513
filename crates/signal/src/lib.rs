//! What the daemon tells of itself: typed facts, spans, and the names of metrics and attributes.
//!
//! Others state a fact with [`event`] or build a span with [`span`] and know nothing of where it goes. Nothing here is
//! installed and nothing is sent: events and spans go to the subscriber that is in effect, measurements to the recorder,
//! and the crate `mlx-manager-telemetry` is what the daemon puts there. What a constructor must know of that crate's
//! settings, it finds through the subscriber ([`hook`]).

#![expect(clippy::disallowed_macros, reason = "here events and spans are typed, for all others")]

pub mod event;
pub mod genai;
pub mod hook;
pub mod metric;
pub mod price;
pub mod propagate;
pub mod provider;
pub mod redact;
pub mod route;
pub mod span;
pub mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
