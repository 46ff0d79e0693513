//! A circuit breaker per provider: after enough failures in a row it lets nothing through for a while, then one probe.

use std::time::Duration;

use mlx_manager_config as config;
use mlx_manager_signal::event::{BreakerChanged, BreakerState};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Watches one provider.
#[derive(Debug)]
pub struct Breaker {
    provider: String,
    settings: config::Breaker,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// The next call is the probe.
    HalfOpen,
    Probing,
}

/// Leave to call. Dropped without a verdict (the client went away), it neither blames nor absolves the provider.
#[derive(Debug)]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    decided: bool,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(provider: &str, settings: config::Breaker) -> Self {
        Self { provider: provider.to_owned(), settings, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    /// Leave to call, or how long to wait for it.
    ///
    /// # Errors
    /// The time until the next probe, when the breaker is open.
    pub fn permit(&self) -> Result<Permit<'_>, Duration> {
        let mut state = self.state.lock();
        self.half_open_if_due(&mut state);
        match *state {
            State::Closed { .. } => {}
            State::HalfOpen => *state = State::Probing,
            State::Open { until } => return Err(until - Instant::now()),
            // Others wait for the probe's verdict; how long that takes nobody knows.
            State::Probing => return Err(Duration::from_secs(1)),
        }
        Ok(Permit { breaker: self, decided: false })
    }

    /// Half opens the breaker when its time has come, and says so. Otherwise only the next call would, which may never
    /// come.
    pub fn refresh(&self) {
        self.half_open_if_due(&mut self.state.lock());
    }

    fn half_open_if_due(&self, state: &mut State) {
        if matches!(*state, State::Open { until } if Instant::now() >= until) {
            *state = State::HalfOpen;
            self.announce(BreakerState::HalfOpen);
        }
    }

    fn succeeded(&self) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Closed { failures: 0 });
        if !matches!(before, State::Closed { .. }) {
            self.announce(BreakerState::Closed);
        }
    }

    fn failed(&self) {
        let mut state = self.state.lock();
        let failures = match *state {
            State::Closed { failures } => failures + 1,
            State::Probing => self.settings.failures,
            // A call that began before the breaker opened says nothing new.
            State::Open { .. } | State::HalfOpen => return,
        };
        if failures >= self.settings.failures {
            *state = State::Open { until: Instant::now() + self.settings.open };
            self.announce(BreakerState::Open);
        } else {
            *state = State::Closed { failures };
        }
    }

    /// A probe that was given up must not keep the breaker half open for ever.
    fn abandoned(&self) {
        let mut state = self.state.lock();
        if *state == State::Probing {
            *state = State::HalfOpen;
        }
    }

    fn announce(&self, state: BreakerState) {
        BreakerChanged { provider: &self.provider, state }.emit();
    }
}

impl Permit<'_> {
    /// The provider answered, be it with a refusal that the caller earned.
    pub fn succeed(mut self) {
        self.decided = true;
        self.breaker.succeeded();
    }

    /// The provider failed.
    pub fn fail(mut self) {
        self.decided = true;
        self.breaker.failed();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.decided {
            self.breaker.abandoned();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mlx_manager_config as config;
    use mlx_manager_signal::testing::lines_of;
    use tokio::time::advance;

    use super::{Breaker, State};

    fn breaker() -> Breaker {
        Breaker::new("a", config::Breaker { failures: 2, open: Duration::from_secs(30) })
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_lets_one_probe_through() {
        let breaker = breaker();
        breaker.permit().unwrap().fail();
        breaker.permit().unwrap().succeed();
        breaker.permit().unwrap().fail();
        breaker.permit().unwrap().fail();
        assert_eq!(breaker.permit().unwrap_err(), Duration::from_secs(30));
        advance(Duration::from_secs(31)).await;
        let probe = breaker.permit().unwrap();
        assert!(breaker.permit().is_err(), "a second probe");
        probe.fail();
        assert!(breaker.permit().is_err(), "open again after one failed probe");
        advance(Duration::from_secs(31)).await;
        breaker.permit().unwrap().succeed();
        breaker.permit().unwrap().succeed();
    }

    #[tokio::test(start_paused = true)]
    async fn half_opens_by_the_clock_and_says_it_once() {
        let breaker = breaker();
        breaker.permit().unwrap().fail();
        breaker.permit().unwrap().fail();
        assert!(lines_of(|| breaker.refresh()).is_empty());
        advance(Duration::from_secs(31)).await;
        let said = lines_of(|| {
            breaker.refresh();
            breaker.refresh();
            assert_eq!(*breaker.state.lock(), State::HalfOpen);
            breaker.permit().unwrap().succeed();
        });
        let states: Vec<_> = said.iter().map(|line| line.fields["state"].as_str()).collect();
        assert_eq!(states, [r#""half_open""#, r#""closed""#]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_probe_makes_room_for_the_next() {
        let breaker = breaker();
        breaker.permit().unwrap().fail();
        breaker.permit().unwrap().fail();
        advance(Duration::from_secs(31)).await;
        drop(breaker.permit().unwrap());
        assert!(breaker.permit().is_ok());
    }
}
