//! The daemon as a process of its own, with its files in a temporary folder and its ports chosen by the system.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Client, Response};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::oneshot,
    time::timeout,
};
use tokio_util::task::TaskTracker;

/// How long anything may take before a test gives up on it. Generous, for a machine that is busy building.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon; it is killed when dropped.
pub struct Daemon {
    child: Child,
    pub api: SocketAddr,
    pub metrics: SocketAddr,
    pub folder: TempDir,
    pub client: Client,
    stderr: Arc<Mutex<Vec<String>>>,
}

/// A command of the binary, run in `folder` without any of our own environment variables.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx-manager"));
    command.current_dir(folder).env_clear().kill_on_drop(true);
    // A model is unpacked once per test run, not once per test.
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command.env("HOME", folder);
    command
}

impl Daemon {
    /// Starts it with a config that begins with free ports; `rest` must not hold these sections.
    pub async fn start(rest: &str) -> Self {
        Self::start_with(rest, |_| {}).await
    }

    /// Starts it and lets `change` set its environment.
    pub async fn start_with(rest: &str, change: impl FnOnce(&mut Command)) -> Self {
        let folder = TempDir::new().unwrap();
        Self::start_in(folder, rest, change).await
    }

    /// Starts it in a folder that exists.
    pub async fn start_in(folder: TempDir, rest: &str, change: impl FnOnce(&mut Command)) -> Self {
        let config =
            format!("[server]\nlisten = \"127.0.0.1:0\"\n[metrics.prometheus]\nlisten = \"127.0.0.1:0\"\n{rest}\n");
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let mut command = command(folder.path());
        command.arg("serve").stderr(Stdio::piped()).stdout(Stdio::null());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (found, wanted) = oneshot::channel();
        let kept = Arc::clone(&stderr);
        TaskTracker::new().spawn(async move {
            let mut found = Some(found);
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("mlx-manager is serving")
                    && let Some(found) = found.take()
                {
                    found.send((field(&line, "listen="), field(&line, "metrics="))).unwrap();
                }
                kept.lock().unwrap().push(line);
            }
        });
        let Ok(Ok((api, metrics))) = timeout(PATIENCE, wanted).await else {
            panic!("the daemon did not start: {:#?}", stderr.lock().unwrap());
        };
        Self { child, api, metrics, folder, client: client(), stderr }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(self.url(path)).json(body).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    /// What a scrape reads.
    pub async fn scrape(&self) -> String {
        let response = self.client.get(format!("http://{}/metrics", self.metrics)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    }

    /// The sum of a metric's series that have all these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.scrape().await, name, labels)
    }

    /// A file below the daemon's folder.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(path)).unwrap_or_default()
    }

    /// What it wrote to stderr.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap().clone()
    }

    /// The most memory that it had so far, in bytes; `None` where the system doesn't say.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        Some(peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10)
    }

    pub fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().unwrap().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("the daemon ends").unwrap()
    }

    /// Tells it to stop and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait().await
    }
}

/// A client that needs no certificates.
pub fn client() -> Client {
    // Another test of this process may have been first; either way there is a provider.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

fn field(line: &str, name: &str) -> SocketAddr {
    let start = line.find(name).unwrap_or_else(|| panic!("no {name} in {line}")) + name.len();
    line[start..].split_whitespace().next().unwrap().trim_matches('"').parse().unwrap()
}

/// The sum of a metric's series that have all these labels, in a scraped page.
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    page.lines()
        .filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}
