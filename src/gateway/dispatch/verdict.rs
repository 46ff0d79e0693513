//! Where a request goes on after a failure: the one table that says so.

use mlx_manager_llm::{Error, ErrorKind, Fault};

/// What follows from a failure that came before any content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Why the same target may be asked once more; `None` when it may not. The value of a metric label.
    pub here: Option<&'static str>,
    /// Whether another target may do better.
    pub elsewhere: bool,
    /// Whether it counts against the model at its provider.
    pub blames: bool,
}

/// The verdict on a failure.
///
/// What the caller did wrong is wrong everywhere. What an account, a model or a target can't do is no better in a second, so
/// only another target helps. What a provider failed at or a network lost may go well the next time, unless that took its time
/// already: a silent target is not waited for again. A provider's own word about another try (`x-should-retry`) counts for
/// more than all of it.
pub(super) fn verdict(error: &Error) -> Verdict {
    let (here, elsewhere, blames) = match error.fault() {
        Fault::Caller => (None, false, false),
        Fault::Target | Fault::Account => (None, true, false),
        Fault::Model => ((error.kind == ErrorKind::RateLimited).then_some("rate_limited"), true, false),
        Fault::Network => (Some("connect"), true, true),
        Fault::Provider => match error.kind {
            ErrorKind::Upstream => (Some(reason(error.status())), true, true),
            ErrorKind::TimeoutFirstToken | ErrorKind::TimeoutIdle => (None, true, true),
            // The request's time is over, wherever it would go.
            ErrorKind::TimeoutTotal => (None, false, true),
            // It is off, left alone or too busy, or it is the engine that failed.
            _ => (None, true, false),
        },
    };
    let here = match error.should_retry {
        Some(true) => here.or(Some("server_error")),
        Some(false) => None,
        None => here,
    };
    Verdict { here, elsewhere, blames }
}

fn reason(status: u16) -> &'static str {
    match status {
        408 | 504 => "timeout",
        409 => "conflict",
        _ => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_verdict() {
        let error = |kind| Error::new(kind, "");
        let upstream = || error(ErrorKind::Upstream);
        for (error, here, elsewhere, blames) in [
            (error(ErrorKind::InvalidRequest), None, false, false),
            (error(ErrorKind::UpstreamRefused), None, false, false),
            (error(ErrorKind::Internal), None, false, false),
            (error(ErrorKind::InvalidRequest).with_fault(Fault::Target), None, true, false),
            (error(ErrorKind::ContextLength), None, true, false),
            (error(ErrorKind::Unauthorized), None, true, false),
            (error(ErrorKind::InsufficientQuota), None, true, false),
            (error(ErrorKind::Forbidden), None, true, false),
            (error(ErrorKind::ModelNotFound), None, true, false),
            (error(ErrorKind::RateLimited), Some("rate_limited"), true, false),
            (error(ErrorKind::Unavailable), None, true, false),
            (error(ErrorKind::Overloaded), None, true, false),
            (error(ErrorKind::Engine), None, true, false),
            (upstream(), Some("server_error"), true, true),
            (upstream().with_fault(Fault::Network), Some("connect"), true, true),
            (upstream().with_fault(Fault::Target), None, true, false),
            (error(ErrorKind::TimeoutFirstToken), None, true, true),
            (error(ErrorKind::TimeoutIdle), None, true, true),
            (error(ErrorKind::TimeoutTotal), None, false, true),
        ] {
            assert_eq!(verdict(&error), Verdict { here, elsewhere, blames }, "{:?} {:?}", error.kind, error.fault());
        }
    }

    #[test]
    fn a_provider_knows_best_whether_to_try_again() {
        let with = |kind, said| {
            let mut error = Error::new(kind, "");
            error.should_retry = Some(said);
            verdict(&error).here
        };
        assert_eq!(with(ErrorKind::RateLimited, false), None);
        assert_eq!(with(ErrorKind::UpstreamRefused, true), Some("server_error"));
        assert_eq!(with(ErrorKind::RateLimited, true), Some("rate_limited"));
    }
}
