//! Who goes first where work waits.

use strum::{EnumString, IntoStaticStr, VariantNames};

/// The class of a request, best first: a better one compares as less.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, EnumString, IntoStaticStr, VariantNames,
)]
#[strum(serialize_all = "snake_case")]
pub enum Priority {
    /// Somebody looks at the screen.
    Interactive,
    /// Whatever doesn't say.
    #[default]
    Normal,
    /// Nobody waits for it: it fills what the others leave.
    Batch,
}

impl Priority {
    /// Their names, best first.
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// Its name, as in the configuration and in headers.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The class that is better by so many, or the best.
    #[must_use]
    pub fn raised(self, classes: u64) -> Self {
        match (self, classes) {
            (_, 0) => self,
            (Self::Batch, 1) => Self::Normal,
            (Self::Batch | Self::Normal | Self::Interactive, _) => Self::Interactive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Priority::{self, Batch, Interactive, Normal};

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, priority) in Priority::NAMES.iter().zip([Interactive, Normal, Batch]) {
            assert_eq!((name.parse(), priority.as_str()), (Ok(priority), *name));
        }
        assert!("Batch".parse::<Priority>().is_err());
    }

    #[test]
    fn a_class_rises_up_to_the_best() {
        assert!(Interactive < Normal && Normal < Batch);
        assert_eq!([0, 1, 2, u64::MAX].map(|by| Batch.raised(by)), [Batch, Normal, Interactive, Interactive]);
        assert_eq!([0, 1, 2].map(|by| Normal.raised(by)), [Normal, Interactive, Interactive]);
        assert_eq!(Interactive.raised(1), Interactive);
    }
}
