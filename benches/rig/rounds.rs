//! How the figures of several rounds are written.

use std::fmt;

use super::statistics::quantile;

/// The same figure from several rounds.
#[derive(Debug, Clone, Default)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    pub fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }
}

/// The median, and in brackets the lowest and the highest; with as many digits after the point as the precision says.
impl fmt::Display for Rounds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = formatter.precision().unwrap_or(0);
        let (low, high) = (quantile(&self.0, 0.0), quantile(&self.0, 1.0));
        let text = match self.0.is_empty() {
            true => "–".to_owned(),
            false => format!("{:.digits$} ({low:.digits$}–{high:.digits$})", self.median()),
        };
        write!(formatter, "{text:>width$}", width = formatter.width().unwrap_or(0))
    }
}
