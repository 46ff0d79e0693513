//! How many requests of a route may be tried again.

use mlx_manager_config::RetryBudget;
use parking_lot::Mutex;
use tokio::time::Instant;

/// What may be saved up, in retries, beside a minute's worth of what is always allowed.
const MOST_SAVED: f64 = 100.0;

/// A bucket of retries: each request adds a share of one, and time adds a few. Retries multiply the load of a provider that
/// fails under it, so there are only so many for each request that comes.
#[derive(Debug)]
pub(super) struct Budget {
    settings: RetryBudget,
    saved: Mutex<(f64, Instant)>,
}

impl Budget {
    /// A full one.
    pub(super) fn new(settings: RetryBudget) -> Self {
        Self { settings, saved: Mutex::new((f64::INFINITY, Instant::now())) }
    }

    /// A request came.
    pub(super) fn deposit(&self) {
        self.refill(self.settings.ratio);
    }

    /// Takes a retry out, if there is one.
    pub(super) fn withdraw(&self) -> bool {
        self.refill(0.0);
        let mut saved = self.saved.lock();
        let granted = saved.0 >= 1.0;
        if granted {
            saved.0 -= 1.0;
        }
        granted
    }

    fn refill(&self, share: f64) {
        let a_minute = f64::from(self.settings.min_per_minute);
        let most = a_minute + MOST_SAVED * self.settings.ratio;
        let now = Instant::now();
        let mut saved = self.saved.lock();
        let by_time = (now - saved.1).as_secs_f64() / 60.0 * a_minute;
        *saved = ((saved.0 + by_time + share).min(most), now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn withdrawn(budget: &Budget) -> usize {
        (0..1000).take_while(|_| budget.withdraw()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_the_requests_and_a_few_each_minute() {
        let budget = Budget::new(RetryBudget { ratio: 0.25, min_per_minute: 10 });
        assert_eq!(withdrawn(&budget), 35, "full at the beginning");
        (0..40).for_each(|_| budget.deposit());
        assert_eq!(withdrawn(&budget), 10, "a quarter of the requests");
        advance(Duration::from_secs(30)).await;
        assert_eq!(withdrawn(&budget), 5, "half a minute's worth");
        let none = Budget::new(RetryBudget { ratio: 0.0, min_per_minute: 0 });
        none.deposit();
        assert_eq!(withdrawn(&none), 0);
    }
}
