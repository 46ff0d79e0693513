//! What the log says of telemetry on its way out: once when something changes, and now and then while something goes on.
//!
//! Losses are noted where they happen, at times by whoever ends a span, and said by the export thread: a record that is
//! written there goes to no endpoint, so it can't be lost in its turn. The last of them are said when that thread has ended.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use mlx_manager_config::Signal;
use mlx_manager_signal::{
    event::{EndpointChanged, TelemetryLost},
    hook,
};
use parking_lot::{Mutex, MutexGuard};

use super::cause::Cause;

/// How often the export thread says what is new; an endpoint that comes and goes is not mentioned more often either.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long a trouble that was mentioned goes without saying, at first and at most. The time doubles while it lasts.
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// The report on one signal for one destination.
#[derive(Debug)]
pub(super) struct Report {
    destination: Arc<str>,
    signal: Signal,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the endpoint is away.
    away: Option<String>,
    said_away: bool,
    next_change: Option<Instant>,
    troubles: Vec<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    cause: Cause,
    items: u64,
    reason: String,
    /// Whether it went on since it was mentioned.
    news: bool,
    due: Option<Instant>,
    pause: Duration,
}

impl Trouble {
    /// Whether to mention it now.
    fn is_due(&mut self, now: Instant, all: bool) -> bool {
        if !mem::take(&mut self.news) {
            return false;
        }
        match self.due {
            Some(due) if now < due && !all => {
                self.news = true;
                return false;
            }
            Some(due) if now < due + self.pause => self.pause = (self.pause * 2).min(LONGEST_PAUSE),
            _ => self.pause = FIRST_PAUSE,
        }
        self.due = Some(now + self.pause);
        true
    }
}

impl Report {
    pub(super) fn new(destination: Arc<str>, signal: Signal) -> Self {
        Self { destination, signal, state: Mutex::default() }
    }

    /// Notes a trouble that cost so many items. Its reason must be fit for the log.
    pub(super) fn trouble(&self, cause: Cause, items: u64, reason: &str) {
        let mut state = self.lock();
        let index = state.troubles.iter().position(|trouble| trouble.cause == cause).unwrap_or_else(|| {
            let pause = FIRST_PAUSE;
            state.troubles.push(Trouble { cause, items: 0, reason: String::new(), news: false, due: None, pause });
            state.troubles.len() - 1
        });
        let trouble = &mut state.troubles[index];
        trouble.items += items;
        trouble.news = true;
        if trouble.reason != reason {
            reason.clone_into(&mut trouble.reason);
        }
    }

    /// Notes whether the endpoint is away, and why, and says so if that is new.
    pub(super) fn endpoint(&self, away: Option<&str>) {
        self.lock().away = away.map(str::to_owned);
        self.say_change(Instant::now());
    }

    /// Says what is new and due; with `all` what is not yet due as well.
    pub(super) fn say(&self, now: Instant, all: bool) {
        if hook::is_deaf() {
            return;
        }
        self.say_change(now);
        // A record may be lost in turn, which is noted here, so nothing is said while the state is held.
        let said: Vec<_> = {
            let due = |trouble: &mut Trouble| {
                let due = trouble.is_due(now, all);
                due.then(|| (trouble.cause, mem::take(&mut trouble.items), trouble.reason.clone()))
            };
            self.lock().troubles.iter_mut().filter_map(due).collect()
        };
        for (cause, items, reason) in said {
            let (cause, reason) = (cause.words(), Some(reason.as_str()).filter(|reason| !reason.is_empty()));
            TelemetryLost { destination: &self.destination, signal: self.signal, cause, items, reason }.emit();
        }
    }

    fn say_change(&self, now: Instant) {
        if hook::is_deaf() {
            return;
        }
        let away = {
            let mut state = self.lock();
            if state.away.is_some() == state.said_away || state.next_change.is_some_and(|next| now < next) {
                return;
            }
            state.said_away = state.away.is_some();
            state.next_change = Some(now + REPORT_INTERVAL);
            state.away.clone()
        };
        EndpointChanged { destination: &self.destination, signal: self.signal, away: away.as_deref() }.emit();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_that_goes_on_is_mentioned_ever_less_often_and_a_new_one_at_once() {
        let report = Report::new("collector".into(), Signal::Traces);
        let start = Instant::now();
        let heard = super::super::tests::Heard::default();
        let mentioned: Vec<u64> = tracing::subscriber::with_default(heard.clone(), || {
            let mentioned = |second: &u64| {
                report.trouble(Cause::QueueFull, 2, "");
                let before = heard.lines().len();
                report.say(start + Duration::from_secs(*second), false);
                heard.lines().len() > before
            };
            (0..600).filter(mentioned).collect()
        });
        assert_eq!(mentioned, [0, 60, 180, 420]);
        let lines = heard.lines();
        assert!(lines[0].ends_with("items=2") && lines[1].ends_with("items=120"), "{lines:#?}");
        tracing::subscriber::with_default(heard.clone(), || {
            report.trouble(Cause::Refused, 1, "status 400 Bad Request");
            report.say(start + Duration::from_secs(600), false);
            report.say(start + Duration::from_secs(601), true);
            report.say(start + Duration::from_secs(602), true);
        });
        let lines = heard.lines();
        assert_eq!(lines.len(), 6, "{lines:#?}");
        assert!(lines[4].contains("refused") && lines[4].contains("400 Bad Request"), "{lines:#?}");
        assert!(lines[5].ends_with("items=358"), "what was not due comes at the end: {lines:#?}");
    }

    #[test]
    fn an_endpoint_that_comes_and_goes_does_not_fill_the_log() {
        let report = Report::new("collector".into(), Signal::Traces);
        let heard = super::super::tests::Heard::default();
        tracing::subscriber::with_default(heard.clone(), || {
            for _ in 0..50 {
                report.endpoint(Some("status 429"));
                report.endpoint(None);
            }
            assert_eq!(heard.lines().len(), 1, "{:#?}", heard.lines());
            report.say(Instant::now() + REPORT_INTERVAL, false);
        });
        let lines = heard.lines();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[1].contains("is back"), "how it ended up: {lines:#?}");
    }
}
