//! Who may use which core.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
    thread::available_parallelism,
};

/// How the cores are shared out: the gateway alone on one, load generator and peers on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    Pinned,
    /// The system has no `taskset`, or no second core.
    Shared,
}

const GATEWAY_CORE: &str = "0";
const LOAD_CORE: &str = "1";

impl Cores {
    /// Moves this process to its core. Call it before there are threads, since a runtime has as many as it sees cores.
    pub fn share_out() -> Self {
        if available_parallelism().map_or(1, usize::from) < 2 {
            return Self::Shared;
        }
        let moved = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", LOAD_CORE, &std::process::id().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if moved.is_ok_and(|status| status.success()) { Self::Pinned } else { Self::Shared }
    }

    /// A command that runs a gateway on its core.
    pub fn gateway(self, program: &OsStr) -> Command {
        match self {
            // It replaces itself by the program, which so has the id that we know.
            Self::Pinned => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", GATEWAY_CORE]).arg(program);
                command
            }
            Self::Shared => Command::new(program),
        }
    }
}
