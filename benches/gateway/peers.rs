//! Other people's gateways, as their own words for production have them, and what `peers.sh` installed of them.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{
    cores::Cores,
    kind::Running,
    nginx,
    process::{Gateway, free_address},
};

/// What every client shows, whoever reads it.
pub const KEY: &str = "sk-bench";

/// A gateway that is installed below a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    LiteLlm {
        /// Its callbacks for Prometheus and OpenTelemetry.
        callbacks: bool,
    },
    Portkey,
}

impl Peer {
    fn program(self, installed: &Path) -> PathBuf {
        installed.join(match self {
            Self::LiteLlm { .. } => "litellm/bin/litellm",
            Self::Portkey => "portkey/node_modules/@portkey-ai/gateway/build/start-server.js",
        })
    }

    pub fn is_installed(self, installed: &Path) -> bool {
        self.program(installed).is_file()
    }

    /// One worker each. They see none of this process's environment, which may hold proxies, keys and exporters.
    pub fn start(self, installed: &Path, cores: Cores, upstream: SocketAddr, otlp: SocketAddr) -> Result<Running> {
        let folder = TempDir::new()?;
        let address = free_address()?;
        let (port, program) = (address.port().to_string(), self.program(installed));
        let run = |program: &Path| {
            let mut command = cores.gateway(program.as_os_str());
            command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", folder.path());
            command
        };
        let gateway = match self {
            Self::LiteLlm { callbacks } => {
                fs::write(folder.path().join("config.yaml"), litellm(upstream, callbacks))?;
                let mut command = run(&program);
                // Whatever it would look up elsewhere it also has with it.
                for what in
                    ["MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "AUTOROUTER_PRESETS", "BLOG_POSTS", "POLICY_TEMPLATES"]
                {
                    command.env(format!("LITELLM_LOCAL_{what}"), "True");
                }
                command.env("LITELLM_MODE", "PRODUCTION").env("LITELLM_LOG", "ERROR");
                if callbacks {
                    // As often as ours exports, so that all of it lies within the time that is measured.
                    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf").env("OTEL_BSP_SCHEDULE_DELAY", "500");
                    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{otlp}"));
                }
                let arguments =
                    ["--config", "config.yaml", "--host", "127.0.0.1", "--port", &port, "--num_workers", "1"];
                Gateway::start(command, &arguments, folder.path(), address)?
            }
            Self::Portkey => {
                let loopback = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gateway/loopback.cjs");
                let mut command = run(Path::new("node"));
                command.env("NODE_ENV", "production").arg("--require").arg(loopback).arg(program);
                Gateway::start(command, &[&format!("--port={port}"), "--headless"], folder.path(), address)?
            }
        };
        let metrics = matches!(self, Self::LiteLlm { callbacks: true }).then_some(address);
        Ok(Running { gateway: Some(gateway), address, metrics, _folder: folder })
    }

    /// Portkey has no file for it: each request says where it is to go.
    pub fn headers(self, upstream: SocketAddr) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        if self == Self::Portkey {
            headers.insert(HeaderName::from_static("x-portkey-provider"), HeaderValue::from_static("openai"));
            let host = format!("http://{upstream}/v1").parse()?;
            headers.insert(HeaderName::from_static("x-portkey-custom-host"), host);
        }
        Ok(headers)
    }
}

/// What every request brings.
pub fn key() -> Result<HeaderMap> {
    Ok(HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {KEY}").parse()?)]))
}

/// Spans and metrics without what was said, since ours have none of it either.
fn litellm(upstream: SocketAddr, callbacks: bool) -> String {
    let callbacks = if callbacks { "[\"prometheus\", \"otel\"]\n  turn_off_message_logging: true" } else { "[]" };
    format!(
        r"model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://{upstream}/v1
      api_key: {KEY}
general_settings:
  master_key: {KEY}
litellm_settings:
  request_timeout: 600
  callbacks: {callbacks}
"
    )
}

/// Name and version of what takes part, as far as it is there.
pub fn versions(installed: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut versions = vec![("mlx-manager", env!("CARGO_PKG_VERSION").to_owned())];
    if let Some(program) = nginx::program() {
        // "nginx version: nginx/1.22.1"
        let said = said(Command::new(program).arg("-v"))?;
        versions.push(("nginx", said.rsplit('/').next().unwrap_or_default().to_owned()));
    }
    if (Peer::LiteLlm { callbacks: false }).is_installed(installed) {
        let ask = "import importlib.metadata as m, platform; print(m.version('litellm'), platform.python_version())";
        let said = said(Command::new(installed.join("litellm/bin/python")).args(["-c", ask]))?;
        let (litellm, python) = said.split_once(' ').context("LiteLLM has no version")?;
        versions.extend([("LiteLLM", litellm.to_owned()), ("Python", python.to_owned())]);
    }
    if Peer::Portkey.is_installed(installed) {
        let manifest = installed.join("portkey/node_modules/@portkey-ai/gateway/package.json");
        let manifest: Value = serde_json::from_str(&fs::read_to_string(manifest)?)?;
        let Some(version) = manifest["version"].as_str() else { bail!("Portkey has no version") };
        versions.push(("Portkey", version.to_owned()));
        versions.push(("node", said(Command::new("node").arg("--version"))?.trim_start_matches('v').to_owned()));
    }
    Ok(versions)
}

/// What a program says, to whichever of the two.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{} can't be run", command.get_program().display()))?;
    ensure!(output.status.success(), "{}: {}", command.get_program().display(), output.status);
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8(text)?.trim().to_owned())
}
