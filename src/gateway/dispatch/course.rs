//! The order in which a request asks its targets: pure but for the clock, and decided step by step.
//!
//! Every target is asked once before any is asked again, so that nobody waits for one while another stands ready. Then those
//! whose failure may pass are tried again, the earliest first, each not before the time that it named or that backing off
//! takes.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use mlx_manager_llm::{Error, ErrorKind, Fault};
use tokio::time::Instant;

use super::verdict::Verdict;

/// The first wait, and the longest of our own choosing.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// A target that asks for more is not waited for: its answer goes to the caller, who can decide.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The way of one request.
pub(super) struct Course {
    stops: Vec<Stop>,
    /// Tries beyond the first of each target.
    retries: u32,
}

struct Stop {
    /// How often a request may be tried again, as far as this target goes.
    retries: u32,
    /// When it has to be answered, if this target answers.
    deadline: Instant,
    delays: ExponentialBackoff,
    next: Next,
}

/// What is to become of a target.
enum Next {
    Ask,
    AskAgain { at: Instant, delay: Duration, reason: &'static str },
    Leave,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Ask this target for the first time.
    Ask(usize),
    /// Ask this target again, at this time.
    AskAgain { index: usize, at: Instant, delay: Duration, reason: &'static str },
    /// Nobody is left.
    End,
}

impl Course {
    /// A way past these targets: how often each may be tried again, and until when.
    pub(super) fn new(targets: impl IntoIterator<Item = (u32, Instant)>) -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .without_max_times()
            .with_jitter();
        let stop = |(retries, deadline)| Stop { retries, deadline, delays: delays.build(), next: Next::Ask };
        Self { stops: targets.into_iter().map(stop).collect(), retries: 0 }
    }

    /// What to do next. A target that is asked is left unless its failure is told.
    pub(super) fn step(&mut self) -> Step {
        let now = Instant::now();
        for (index, stop) in self.stops.iter_mut().enumerate() {
            if matches!(stop.next, Next::Ask) {
                stop.next = Next::Leave;
                if now < stop.deadline {
                    return Step::Ask(index);
                }
            }
        }
        let again = |(index, stop): (usize, &Stop)| match stop.next {
            Next::AskAgain { at, delay, reason } if self.retries < stop.retries => {
                Some(Step::AskAgain { index, at, delay, reason })
            }
            _ => None,
        };
        let time = |step: &Step| match step {
            Step::AskAgain { at, .. } => Some(*at),
            _ => None,
        };
        let Some(step) = self.stops.iter().enumerate().filter_map(again).min_by_key(time) else { return Step::End };
        if let Step::AskAgain { index, .. } = step {
            self.stops[index].next = Next::Leave;
            self.retries += 1;
        }
        step
    }

    /// Tries beyond the first of each target.
    pub(super) fn retries(&self) -> u32 {
        self.retries
    }

    /// A target that was asked failed.
    pub(super) fn failed(&mut self, index: usize, error: &Error, verdict: Verdict) {
        if !verdict.elsewhere {
            self.stops.iter_mut().for_each(|stop| stop.next = Next::Leave);
        }
        let stop = &mut self.stops[index];
        let Some(reason) = verdict.here else { return };
        let Some(delay) = error.retry_after.or_else(|| stop.delays.next()) else { return };
        let at = Instant::now() + delay.min(LONGEST_RETRY_AFTER);
        if delay <= LONGEST_RETRY_AFTER && at < stop.deadline {
            stop.next = Next::AskAgain { at, delay, reason };
        }
    }
}

/// Which of several failures the caller is told: the last, unless that target could not or would not be asked at all. Where
/// no target can do what is asked, the first says why.
pub(super) fn told(failures: Vec<Error>) -> Option<Error> {
    let rank = |error: &Error| match (error.fault(), error.kind) {
        (Fault::Target, _) => 0,
        (_, ErrorKind::Unavailable) => 1,
        _ => 2,
    };
    let highest = failures.iter().map(rank).max()?;
    let mut candidates = failures.into_iter().filter(|error| rank(error) == highest);
    if highest == 0 { candidates.next() } else { candidates.last() }
}

#[cfg(test)]
mod tests {
    use super::{super::verdict::verdict, *};

    const HOUR: Duration = Duration::from_secs(3600);

    fn course(retries: &[u32]) -> Course {
        Course::new(retries.iter().map(|retries| (*retries, Instant::now() + HOUR)))
    }

    fn error(kind: ErrorKind, retry_after: u64) -> Error {
        let mut error = Error::new(kind, "");
        error.retry_after = (retry_after > 0).then(|| Duration::from_secs(retry_after));
        error
    }

    fn fail(course: &mut Course, index: usize, error: &Error) {
        course.failed(index, error, verdict(error));
    }

    fn again(step: Step) -> (usize, &'static str) {
        let Step::AskAgain { index, reason, .. } = step else { panic!("{step:?}") };
        (index, reason)
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_asked_before_any_is_asked_again_and_then_the_earliest() {
        let mut course = course(&[2, 2, 2]);
        assert_eq!(course.step(), Step::Ask(0));
        fail(&mut course, 0, &error(ErrorKind::RateLimited, 20));
        assert_eq!(course.step(), Step::Ask(1));
        fail(&mut course, 1, &error(ErrorKind::InsufficientQuota, 0));
        assert_eq!(course.step(), Step::Ask(2));
        fail(&mut course, 2, &error(ErrorKind::Upstream, 0));
        assert_eq!(again(course.step()), (2, "server_error"));
        fail(&mut course, 2, &error(ErrorKind::TimeoutFirstToken, 0));
        assert_eq!(again(course.step()), (0, "rate_limited"));
        fail(&mut course, 0, &error(ErrorKind::RateLimited, 1));
        assert_eq!(course.step(), Step::End, "two retries in all");
        assert_eq!(course.retries(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_s_fault_ends_the_way_unless_the_provider_wants_it_again() {
        let mut way = course(&[1, 1]);
        way.step();
        let mut wrong = error(ErrorKind::UpstreamRefused, 0);
        fail(&mut way, 0, &wrong);
        assert_eq!(way.step(), Step::End);
        let mut way = course(&[1, 1]);
        way.step();
        wrong.should_retry = Some(true);
        fail(&mut way, 0, &wrong);
        assert_eq!(again(way.step()).0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline_or_longer_than_is_sensible() {
        for asked in [31, 3600, 4000] {
            let mut course = course(&[9]);
            course.step();
            fail(&mut course, 0, &error(ErrorKind::RateLimited, asked));
            assert_eq!(course.step(), Step::End, "{asked}");
        }
        let mut course = Course::new([(9, Instant::now() + Duration::from_secs(5)), (9, Instant::now())]);
        assert_eq!(course.step(), Step::Ask(0));
        fail(&mut course, 0, &error(ErrorKind::RateLimited, 6));
        assert_eq!(course.step(), Step::End, "the other's time is over");
    }

    #[test]
    fn the_most_telling_failure_is_told() {
        let kinds = |kinds: &[ErrorKind]| {
            let error = |kind: &ErrorKind| Error::new(*kind, "");
            told(kinds.iter().map(error).collect()).map(|error| error.kind)
        };
        use ErrorKind::{ContextLength, RateLimited, Unavailable, Upstream};
        assert_eq!(kinds(&[]), None);
        assert_eq!(kinds(&[RateLimited, Upstream]), Some(Upstream));
        assert_eq!(kinds(&[RateLimited, Unavailable]), Some(RateLimited));
        assert_eq!(kinds(&[Unavailable, ContextLength]), Some(Unavailable));
        assert_eq!(kinds(&[Upstream, ContextLength]), Some(Upstream));
        let first = told(["a", "b"].map(|words| Error::new(ContextLength, words)).into());
        assert_eq!(first.unwrap().message, "a");
    }
}
