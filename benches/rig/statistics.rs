//! Medians, shares and how a figure is written.

use std::fmt;

/// The same figure from several rounds.
#[derive(Debug, Clone, Default)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    pub fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }
}

/// The median, and in brackets the lowest and the highest.
impl fmt::Display for Rounds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.pad("–");
        }
        let (low, high) = (quantile(&self.0, 0.0), quantile(&self.0, 1.0));
        formatter.pad(&format!("{:.0} ({low:.0}–{high:.0})", self.median()))
    }
}

/// The value below which a share of the values lies; 0 of none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The nearest rank; exact for the odd numbers of rounds that benchmarks use.
    let rank = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(rank).copied().unwrap_or_default()
}

/// The sum of a metric's series whose labels hold `label`, in a scraped page.
pub fn metric(page: &str, name: &str, label: &str) -> f64 {
    page.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
