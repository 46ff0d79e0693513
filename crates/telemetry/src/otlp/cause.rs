//! Why telemetry doesn't arrive: what the queue, the spool and the transport find, and counters and report pass on.

/// Why telemetry was lost, or may be soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    QueueFull,
    SpoolFull,
    DiskFull,
    TooOld,
    Damaged,
    Exit,
    Unencodable,
    Refused,
    Rejected,
    Away,
    /// Nothing is lost yet: what can't be written waits in memory.
    SpoolBroken,
}

impl Cause {
    /// For the log.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::QueueFull => "the queue in memory is full",
            Self::SpoolFull => "the spool is full",
            Self::DiskFull => "the disk of the spool is full",
            Self::TooOld => "it waited in the spool for a day",
            Self::Damaged => "its file in the spool is gone or damaged",
            Self::Exit => "the daemon exits",
            Self::Unencodable => "it can't be encoded",
            Self::Refused => "the endpoint refused it",
            Self::Rejected => "the endpoint rejected a part of it",
            Self::Away => "the endpoint was away for too long",
            Self::SpoolBroken => "the spool can't be written or read",
        }
    }

    /// Whether the other side has a part in it.
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Unencodable | Self::Refused | Self::Rejected | Self::Away)
    }
}
