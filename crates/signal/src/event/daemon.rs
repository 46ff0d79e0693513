//! What happens to the daemon as a whole: its start and end, signals, reloads, connections.

use std::{error::Error, net::SocketAddr};

use crate::target;

/// The ports are open and requests are taken.
#[derive(Debug)]
pub struct DaemonServing<'a> {
    /// Where the API listens.
    pub listen: &'a str,
    /// Where metrics are scraped, if they are.
    pub metrics: Option<&'a str>,
    /// The daemon's version.
    pub version: &'a str,
}

impl DaemonServing<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(
            target: target::APP,
            listen = %self.listen,
            metrics = self.metrics.map(tracing::field::display),
            version = self.version,
            "mlx-manager is serving"
        );
    }
}

/// Open requests outlasted the drain.
#[derive(Debug)]
pub struct DrainTimedOut;

impl DrainTimedOut {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(target: target::APP, "server.drain_timeout is over: open requests were cut off");
    }
}

/// Background tasks outlasted the end.
#[derive(Debug)]
pub struct TasksLeftBehind;

impl TasksLeftBehind {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(target: target::APP, "some background tasks did not end in time");
    }
}

/// Everything has ended but telemetry.
#[derive(Debug)]
pub struct DaemonStopped;

impl DaemonStopped {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(target: target::APP, "mlx-manager has stopped");
    }
}

/// The daemon can't go on.
#[derive(Debug)]
pub struct DaemonFailed<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl DaemonFailed<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::error!(target: target::SERVE, error = self.error, "the daemon can't run");
    }
}

/// A signal asked the daemon to stop.
#[derive(Debug)]
pub struct StopSignalled {
    /// Its name.
    pub signal: &'static str,
    /// Whether another one came before.
    pub again: bool,
}

impl StopSignalled {
    /// States the fact.
    pub fn emit(self) {
        let signal = self.signal;
        if self.again {
            tracing::info!(
                target: target::SERVE, signal, "already stopping; open requests have until server.drain_timeout"
            );
        } else {
            tracing::info!(target: target::SERVE, signal, "stopping: open requests go on, new ones are refused");
        }
    }
}

/// All log files were opened anew.
#[derive(Debug)]
pub struct LogFilesReopened;

impl LogFilesReopened {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(target: target::SERVE, "log files reopened");
    }
}

/// The configuration on disk can't take the place of the one in effect.
#[derive(Debug)]
pub enum ReloadRefused<'a> {
    /// It is wrong.
    Problems(&'a [String]),
    /// It can't be put into effect.
    Error(&'a (dyn Error + 'static)),
}

impl ReloadRefused<'_> {
    /// States the fact.
    pub fn emit(self) {
        const REFUSED: &str = "the configuration was not reloaded, the one in effect stays";
        match self {
            Self::Problems(lines) => tracing::error!(
                target: target::SERVE, count = lines.len(), problems = lines.join(" | "), "{REFUSED}"
            ),
            Self::Error(error) => tracing::error!(target: target::SERVE, error, "{REFUSED}"),
        }
    }
}

/// `[log]` was read again and is in effect.
#[derive(Debug)]
pub struct LogReloaded<'a> {
    /// Keys outside of it that changed too, which only a restart puts into effect.
    pub needs_restart: &'a [String],
    /// Keys that changed in the file and are given from outside, which has precedence.
    pub beaten: &'a [String],
}

impl LogReloaded<'_> {
    /// States the fact.
    pub fn emit(self) {
        if !self.needs_restart.is_empty() {
            tracing::warn!(target: target::SERVE, "needs a restart: {}", self.needs_restart.join(", "));
        }
        if !self.beaten.is_empty() {
            tracing::warn!(
                target: target::SERVE, "changed in the file and beaten from outside: {}", self.beaten.join(", ")
            );
        }
        tracing::info!(target: target::SERVE, "[log] reloaded");
    }
}

/// The configuration is taken, though something about it looks wrong.
#[derive(Debug)]
pub struct ConfigWarning<'a> {
    /// Where it was given.
    pub source: &'a str,
    /// The key.
    pub key: &'a str,
    /// What to do.
    pub hint: Option<&'a str>,
    /// What looks wrong.
    pub message: &'a str,
}

impl ConfigWarning<'_> {
    /// States the fact.
    pub fn emit(self) {
        let Self { source, key, hint, message } = self;
        tracing::warn!(target: target::SERVE, source, key, hint, "{message}");
    }
}

/// A connection could not be accepted.
#[derive(Debug)]
pub struct AcceptFailed<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl AcceptFailed<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(target: target::HTTP_LISTENER, error = self.error, "a connection could not be accepted");
    }
}

/// A socket's small frames may be held back.
#[derive(Debug)]
pub struct NoDelayRefused<'a> {
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl NoDelayRefused<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(target: target::HTTP_LISTENER, error = self.error, "TCP_NODELAY could not be set");
    }
}

/// A connection ended otherwise than it should; the peer's doing as a rule.
#[derive(Debug)]
pub struct ConnectionFailed<'a> {
    /// Who was connected.
    pub peer: SocketAddr,
    /// Why.
    pub error: &'a (dyn Error + 'static),
}

impl ConnectionFailed<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::debug!(target: target::HTTP_LISTENER, peer = %self.peer, error = self.error, "connection ended");
    }
}
