//! What is remembered of a provider's models: which of them fails and is left alone for a while, and which asked to be.
//!
//! A circuit breaker for each model: after enough failed attempts in a row nothing passes for a while, then one probe. A
//! model whose rate is limited is paused until the time that the provider named, which says nothing about its health.
//! Nothing is kept of a model with which all is well, so that names which callers make up take no room.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mlx_manager_config as config;
use mlx_manager_signal::{
    event::{BreakerChanged, BreakerState, ModelPaused},
    redact::ModelLabel,
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The most models of a provider of which anything is remembered.
const MAX_MODELS: usize = 1024;
/// The longest that a provider is taken at its word for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Watches the models of one provider.
#[derive(Debug)]
pub struct Breaker {
    provider: String,
    settings: config::Breaker,
    models: Mutex<HashMap<String, Model>>,
}

#[derive(Debug, Default)]
struct Model {
    state: State,
    paused_until: Option<Instant>,
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

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl State {
    fn name(self) -> BreakerState {
        match self {
            Self::Closed { .. } => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::HalfOpen | Self::Probing => BreakerState::HalfOpen,
        }
    }
}

/// Why a model is not to be called, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It failed too often.
    Failing(Duration),
    /// The provider asked for it.
    Paused(Duration),
}

/// Leave to call a model once. Dropped without a verdict (the client went away), it neither blames nor absolves.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    model: String,
    decided: bool,
}

impl Breaker {
    /// Of a provider of which nothing is known.
    pub fn new(provider: &str, settings: config::Breaker) -> Arc<Self> {
        Arc::new(Self { provider: provider.to_owned(), settings, models: Mutex::default() })
    }

    /// Leave to call a model.
    ///
    /// # Errors
    /// When the model is left alone.
    pub fn permit(self: &Arc<Self>, model: &str) -> Result<Permit, Closed> {
        let now = Instant::now();
        let mut models = self.models.lock();
        self.half_open_if_due(&mut models, now);
        if let Some(known) = models.get_mut(model) {
            if let Some(until) = known.paused_until.filter(|until| *until > now) {
                return Err(Closed::Paused(until - now));
            }
            known.paused_until = None;
            match known.state {
                State::Closed { .. } => {}
                State::HalfOpen => known.state = State::Probing,
                State::Open { until } => return Err(Closed::Failing(until - now)),
                // Others wait for the probe's verdict; how long that takes nobody knows.
                State::Probing => return Err(Closed::Failing(Duration::from_secs(1))),
            }
        }
        Ok(Permit { breaker: Arc::clone(self), model: model.to_owned(), decided: false })
    }

    /// Half opens what is due, and says so. Otherwise only the next call would, which may never come.
    pub fn refresh(&self) {
        self.half_open_if_due(&mut self.models.lock(), Instant::now());
    }

    fn half_open_if_due(&self, models: &mut HashMap<String, Model>, now: Instant) {
        let due = |known: &Model| matches!(known.state, State::Open { until } if now >= until);
        let due: Vec<String> = models.iter().filter(|(_, known)| due(known)).map(|(model, _)| model.clone()).collect();
        for model in due {
            self.change(models, &model, |_| State::HalfOpen);
        }
    }

    /// Gives a model another state, and says so where it has another name.
    fn change(&self, models: &mut HashMap<String, Model>, model: &str, change: impl FnOnce(State) -> State) {
        let before = models.get(model).map(|known| known.state).unwrap_or_default();
        let state = change(before);
        if state == before {
            return;
        }
        let Some(known) = remembered(models, model) else { return };
        known.state = state;
        let worst = models.values().map(|known| known.state.name()).max().unwrap_or(BreakerState::Closed);
        if state.name() != before.name() {
            let model = &ModelLabel::new(model);
            BreakerChanged { provider: &self.provider, model, state: state.name(), worst }.emit();
        }
        if state == State::default() && models.get(model).is_some_and(|known| known.paused_until.is_none()) {
            models.remove(model);
        }
    }
}

/// The place of a model; `None` when there is none left.
fn remembered<'a>(models: &'a mut HashMap<String, Model>, model: &str) -> Option<&'a mut Model> {
    if models.len() >= MAX_MODELS && !models.contains_key(model) {
        let now = Instant::now();
        // What was told of single failures is the first to be forgotten.
        models.retain(|_, known| {
            !matches!(known.state, State::Closed { .. }) || known.paused_until.is_some_and(|until| until > now)
        });
        if models.len() >= MAX_MODELS {
            return None;
        }
    }
    Some(models.entry(model.to_owned()).or_default())
}

impl Permit {
    /// Content has come. A probe has then shown enough for others to be let through, though its answer may break off yet:
    /// that would open the breaker again at once.
    pub fn began(&self) {
        let failures = self.breaker.settings.failures - 1;
        self.change(|state| if state == State::Probing { State::Closed { failures } } else { state });
    }

    /// The provider answered, be it with a refusal that the caller earned.
    pub fn succeed(mut self) {
        self.decided = true;
        self.change(|_| State::default());
    }

    /// The provider failed.
    pub fn fail(mut self) {
        self.decided = true;
        let settings = &self.breaker.settings;
        let open = || State::Open { until: Instant::now() + settings.open };
        self.change(|state| match state {
            State::Closed { failures } if failures + 1 < settings.failures => State::Closed { failures: failures + 1 },
            State::Closed { .. } | State::Probing => open(),
            // A call that began before the breaker opened says nothing new.
            State::Open { .. } | State::HalfOpen => state,
        });
    }

    /// The provider asks to be left alone with this model, which is no failure.
    pub fn pause(self, wait: Duration) {
        let wait = wait.min(LONGEST_PAUSE);
        let until = Instant::now() + wait;
        let mut models = self.breaker.models.lock();
        if let Some(known) = remembered(&mut models, &self.model) {
            known.paused_until = known.paused_until.max(Some(until));
        }
        ModelPaused { provider: &self.breaker.provider, model: &ModelLabel::new(&self.model), wait }.emit();
    }

    fn change(&self, change: impl FnOnce(State) -> State) {
        self.breaker.change(&mut self.breaker.models.lock(), &self.model, change);
    }
}

impl Drop for Permit {
    /// A probe that was given up must not keep the breaker half open for ever.
    fn drop(&mut self) {
        if !self.decided {
            self.change(|state| if state == State::Probing { State::HalfOpen } else { state });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use mlx_manager_config as config;
    use mlx_manager_signal::testing::lines_of;
    use tokio::time::advance;

    use super::{Breaker, Closed};

    const OPEN: Duration = Duration::from_secs(30);

    fn breaker() -> Arc<Breaker> {
        Breaker::new("a", config::Breaker { failures: 2, open: OPEN })
    }

    fn fail(breaker: &Arc<Breaker>, times: usize) {
        (0..times).for_each(|_| breaker.permit("m").unwrap().fail());
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_lets_one_probe_through() {
        let breaker = breaker();
        fail(&breaker, 1);
        breaker.permit("m").unwrap().succeed();
        fail(&breaker, 2);
        assert_eq!(breaker.permit("m").unwrap_err(), Closed::Failing(OPEN));
        assert!(breaker.permit("n").is_ok(), "another model");
        advance(OPEN).await;
        let probe = breaker.permit("m").unwrap();
        assert!(breaker.permit("m").is_err(), "a second probe");
        probe.fail();
        assert!(breaker.permit("m").is_err(), "open again after one failed probe");
        advance(OPEN).await;
        breaker.permit("m").unwrap().succeed();
        fail(&breaker, 1);
        breaker.permit("m").unwrap().succeed();
        assert!(breaker.models.lock().is_empty(), "nothing is kept of those with whom all is well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_answer_begins_lets_others_pass_and_one_that_breaks_off_opens_again() {
        let breaker = breaker();
        fail(&breaker, 2);
        advance(OPEN).await;
        let probe = breaker.permit("m").unwrap();
        probe.began();
        let other = breaker.permit("m").unwrap();
        probe.fail();
        assert!(breaker.permit("m").is_err());
        drop(other);
        // One that always dies after its first content opens it from the start.
        let breaker = self::breaker();
        for _ in 0..2 {
            let permit = breaker.permit("m").unwrap();
            permit.began();
            permit.fail();
        }
        assert!(breaker.permit("m").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn half_opens_by_the_clock_and_says_it_once() {
        let breaker = breaker();
        fail(&breaker, 2);
        assert!(lines_of(|| breaker.refresh()).is_empty());
        advance(OPEN).await;
        let said = lines_of(|| {
            breaker.refresh();
            breaker.refresh();
            breaker.permit("m").unwrap().succeed();
        });
        let states: Vec<_> = said.iter().map(|line| line.fields["state"].as_str()).collect();
        assert_eq!(states, [r#""half_open""#, r#""closed""#]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_probe_makes_room_for_the_next() {
        let breaker = breaker();
        fail(&breaker, 2);
        advance(OPEN).await;
        drop(breaker.permit("m").unwrap());
        assert!(breaker.permit("m").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_when_it_was_said_to_and_blames_nobody() {
        let breaker = breaker();
        let second = Duration::from_secs(1);
        for _ in 0..5 {
            breaker.permit("m").unwrap().pause(second);
            assert_eq!(breaker.permit("m").unwrap_err(), Closed::Paused(second));
            assert!(breaker.permit("n").is_ok());
            advance(second).await;
        }
        breaker.permit("m").unwrap().pause(Duration::MAX);
        assert_eq!(breaker.permit("m").unwrap_err(), Closed::Paused(super::LONGEST_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_names_take_no_room() {
        let breaker = breaker();
        fail(&breaker, 2);
        for name in 0..3000 {
            breaker.permit(&name.to_string()).unwrap().fail();
        }
        assert!(breaker.models.lock().len() <= super::MAX_MODELS);
        assert!(breaker.permit("m").is_err(), "what is open stays");
    }
}
