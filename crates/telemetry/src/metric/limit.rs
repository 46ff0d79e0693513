//! What keeps the number of series bounded, whatever callers send.
//!
//! A model's name is chosen by the caller, and a route like `*` lets every name through to a provider. So a name becomes
//! a label only if it is known (configured or in the catalogue), or if it answered: such names are taken in up to
//! [`Limits::learned_models`]. All others are `_other`.

use std::collections::HashSet;

use mlx_manager_signal::redact;
use parking_lot::RwLock;

/// Bounds on series.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most model names taken in because they answered.
    pub learned_models: usize,
    /// The most series of one metric, beside those that configuration and catalogue name.
    pub series_per_metric: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { learned_models: 100, series_per_metric: 2_000 }
    }
}

/// The longest name that is taken in because it answered, in bytes.
const LONGEST_LEARNED_NAME: usize = 128;

/// Which model names may be labels.
#[derive(Debug)]
pub(super) struct ModelNames {
    names: RwLock<Names>,
    most_learned: usize,
}

#[derive(Debug, Default)]
struct Names {
    all: HashSet<String>,
    learned: usize,
}

impl ModelNames {
    pub fn new(limits: Limits) -> Self {
        Self { names: RwLock::default(), most_learned: limits.learned_models }
    }

    pub fn is_known(&self, name: &str) -> bool {
        self.names.read().all.contains(name)
    }

    /// Takes in a name from the configuration or the catalogue.
    pub fn add(&self, name: &str) {
        if !self.is_known(name) {
            self.names.write().all.insert(name.to_owned());
        }
    }

    /// Takes in a name that answered, while there is room. A provider may answer to any name, so one that no model would
    /// have, or that looks like a key, is not learned.
    pub fn learn(&self, name: &str) {
        if self.is_known(name) || !is_ordinary(name) {
            return;
        }
        let mut names = self.names.write();
        if names.learned < self.most_learned && names.all.insert(name.to_owned()) {
            names.learned += 1;
        }
    }
}

/// Whether providers name models like this.
fn is_ordinary(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_LEARNED_NAME
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/@+".contains(&byte))
        && redact::name(name) == name
}
