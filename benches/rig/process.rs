//! A gateway as a process of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to open its port.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that listens; it is killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    pub child: Child,
}

impl Gateway {
    /// Starts a program that will listen on `address`, in `folder`, and waits until it does.
    pub fn start(mut program: Command, arguments: &[&str], folder: &Path, address: SocketAddr) -> Result<Self> {
        let complaints = folder.join("stderr");
        let child = program
            .args(arguments)
            .current_dir(folder)
            .env_remove("LOG_LEVEL")
            .env_remove("MLX_MANAGER_LOG_LEVEL")
            .stdout(Stdio::null())
            .stderr(fs::File::create(&complaints)?)
            .spawn()
            .with_context(|| format!("{} can't be started", program.get_program().display()))?;
        let mut gateway = Self { child };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if gateway.child.try_wait()?.is_some() || Instant::now() > end {
                bail!("{} does not listen:\n{}", program.get_program().display(), fs::read_to_string(complaints)?);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(gateway)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has nothing to deliver that was not measured, so it needn't drain; what can't be killed has ended. Its own
        // children come first, since nobody would know them after it.
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)) {
            kill_process(child, Signal::KILL).unwrap_or_default();
        }
        if self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

/// An address that is free now. Who is told it may still lose it to somebody else, which would end the benchmark with
/// an error, not with a wrong figure.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
