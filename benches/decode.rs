//! Tokens per second of a local model through the daemon's API, beside mlx-lm on the same model and settings.
//!
//! `cargo bench --bench decode`. Both compute the same prompt, greedily, one request at a time, in the same precision, and
//! exactly [`TOKENS`] tokens: the model is a copy of the demo model that doesn't know when its turn is over. mlx-lm runs in the
//! Python environment that `make goldens` makes; without it there are only our own figures.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "nothing drains here, and what the Makefile made is found by its variables"
)]

mod rig {
    pub mod connection;
    pub mod machine;
    pub mod process;
    pub mod rounds;
    pub mod statistics;
}

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use rig::{
    connection::Connection,
    machine::machine,
    process::{Gateway, free_address},
    rounds::Rounds,
    statistics::metric,
};

const ROUNDS: usize = 5;
/// Of each side in a round, after one that isn't counted.
const RUNS: usize = 3;
const TOKENS: u64 = 200;
const PROMPT: &str = "Tell me a story.";

/// Whether the engine computes on a GPU, with the weights as stored; a CPU computes in float32.
const GPU: bool = cfg!(target_os = "macos");

const DAEMON: &str = env!("CARGO_BIN_EXE_mlx-manager");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let folder = TempDir::new()?;
    let model = folder.path().join("endless");
    endless(&Path::new(ROOT).join("assets/demo-model"), &model)?;
    let (api, metrics) = (free_address()?, free_address()?);
    fs::write(folder.path().join("config.toml"), config(api, metrics))?;
    let arguments = ["serve", "--config", "config.toml"];
    let _daemon = Gateway::start(Command::new(DAEMON), &arguments, folder.path(), api)?;
    let ours = Ours { api, metrics };
    let python = python();
    let reference = python.as_deref().map(|python| Reference { python, model: &model });

    let mut table: [(&str, Rounds); 4] = [
        ("mlx-manager, over HTTP", Rounds::default()),
        ("mlx-manager, engine only", Rounds::default()),
        ("mlx-lm", Rounds::default()),
        ("mlx-lm with OpenBLAS", Rounds::default()),
    ];
    for _ in 0..ROUNDS {
        let round = ours.round().await?;
        table[0].1.0.push(round.over_http);
        table[1].1.0.push(round.engine);
        if let Some(reference) = &reference {
            table[2].1.0.push(reference.round(round.prompt_tokens, false)?);
            // The daemon is linked with it; the reference BLAS inside MLX's wheel for Linux is slower.
            if cfg!(target_os = "linux") {
                table[3].1.0.push(reference.round(round.prompt_tokens, true)?);
            }
        }
    }

    println!("{}", machine());
    println!(
        "the demo model (8 bit, 1.4 million parameters), {}, greedy, one request, {TOKENS} tokens after a prompt of one sentence;",
        if GPU { "GPU, as stored" } else { "CPU, float32" }
    );
    println!("{ROUNDS} rounds of {RUNS} runs, medians (lowest–highest round)\n");
    println!("{:<26} {:>22} {:>14}", "", "decode tokens/s", "× mlx-lm");
    let base = table[2].1.median();
    for (name, rounds) in table.iter().filter(|(_, rounds)| !rounds.0.is_empty()) {
        let ratio = if base > 0.0 { format!("{:.2}", rounds.median() / base) } else { "–".to_owned() };
        println!("{name:<26} {:>22} {ratio:>14}", rounds.to_string());
    }
    if reference.is_none() {
        println!("\nmlx-lm was not measured: `make goldens` makes the Python environment that it runs in");
    }
    Ok(())
}

fn config(api: SocketAddr, metrics: SocketAddr) -> String {
    format!(
        r#"
[server]
listen = "{api}"
[metrics.prometheus]
listen = "{metrics}"
[[otlp]]
name = "none"
kind = "otlp"
endpoint = "http://127.0.0.1:4318"
send = "never"
[local]
default_model = "endless"
# Every run sends the same prompt, and mlx-lm computes it every time.
prompt_cache = "0 B"
[[local.models]]
name = "endless"
path = "endless"
"#
    )
}

/// Copies a model folder and takes from the copy all that says which token ends an answer.
fn endless(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    change(&to.join("generation_config.json"), |config| config["eos_token_id"] = json!([]))?;
    change(&to.join("tokenizer_config.json"), |config| config["eos_token"] = Value::Null)?;
    change(&to.join("tokenizer.json"), |tokenizer| {
        for token in tokenizer["added_tokens"].as_array_mut().into_iter().flatten() {
            token["special"] = json!(false);
        }
    })
}

fn change(file: &Path, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let mut content: Value = serde_json::from_slice(&fs::read(file)?)?;
    edit(&mut content);
    Ok(fs::write(file, content.to_string())?)
}

/// What one round of ours found, in tokens per second.
struct Round {
    over_http: f64,
    /// As the engine itself counted.
    engine: f64,
    prompt_tokens: u64,
}

struct Ours {
    api: SocketAddr,
    metrics: SocketAddr,
}

impl Ours {
    async fn round(&self) -> Result<Round> {
        // A new one, since the daemon closes what was idle while mlx-lm had its turn.
        let mut connection = Connection::open(self.api).await?;
        run(&mut connection).await?;
        let before = self.decode_rates().await?;
        let mut runs = Rounds::default();
        let mut prompt_tokens = 0;
        for _ in 0..RUNS {
            let (rate, tokens) = run(&mut connection).await?;
            runs.0.push(rate);
            prompt_tokens = tokens;
        }
        let after = self.decode_rates().await?;
        ensure!(after.1 - before.1 == RUNS as f64, "the engine counted {} runs instead of {RUNS}", after.1 - before.1);
        Ok(Round { over_http: runs.median(), engine: (after.0 - before.0) / RUNS as f64, prompt_tokens })
    }

    /// Sum and count of the engine's histogram.
    async fn decode_rates(&self) -> Result<(f64, f64)> {
        let page = Connection::open(self.metrics).await?.get("/metrics").await?;
        let part = |part: &str| metric(&page, &format!("mlx_manager_decode_tokens_per_second_{part}"), "");
        Ok((part("sum"), part("count")))
    }
}

/// Streams one answer; tokens per second from the first piece of it to the last, and the length of the prompt.
async fn run(connection: &mut Connection) -> Result<(f64, u64)> {
    let body = json!({
        "model": "endless", "messages": [{ "role": "user", "content": PROMPT }], "temperature": 0,
        "max_completion_tokens": TOKENS, "stream": true, "stream_options": { "include_usage": true },
        "chat_template_kwargs": { "enable_thinking": false },
    });
    let mut pieces: Vec<(Bytes, Instant)> = Vec::new();
    let body = Bytes::from(body.to_string());
    connection.post(body, StatusCode::OK, |piece, at| pieces.push((piece.clone(), at))).await?;
    let (mut first, mut last, mut usage) = (None, None, None);
    for (piece, at) in &pieces {
        for line in std::str::from_utf8(piece)?.lines().filter_map(|line| line.strip_prefix("data: ")) {
            let Ok(mut chunk) = serde_json::from_str::<Value>(line) else { continue };
            let delta = &chunk["choices"][0]["delta"];
            let said = ["content", "reasoning_content"]
                .iter()
                .any(|part| delta[part].as_str().is_some_and(|text| !text.is_empty()));
            if said || delta["tool_calls"].is_array() {
                first.get_or_insert(*at);
                last = Some(*at);
            }
            if chunk["usage"].is_object() {
                usage = Some(chunk["usage"].take());
            }
        }
    }
    let usage = usage.context("an answer has no usage")?;
    ensure!(usage["completion_tokens"] == TOKENS, "an answer ended early: {usage}");
    let time = last.zip(first).map(|(last, first)| last - first).context("an answer is empty")?;
    Ok(((TOKENS - 1) as f64 / time.as_secs_f64(), usage["prompt_tokens"].as_u64().unwrap_or_default()))
}

/// The Python environment with mlx-lm, where there is one.
fn python() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("MLX_MANAGER_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("mlx-manager")))
        .or_else(|| Some(folder("HOME")?.join(".cache/mlx-manager")))?;
    let python = cache.join("goldens/bin/python");
    python.exists().then_some(python)
}

struct Reference<'a> {
    python: &'a Path,
    model: &'a Path,
}

impl Reference<'_> {
    /// Tokens per second of the same answer, decoded by mlx-lm.
    fn round(&self, prompt_tokens: u64, openblas: bool) -> Result<f64> {
        let mut command = Command::new(self.python);
        command.arg(Path::new(ROOT).join("tools/goldens/speed.py")).arg(self.model);
        command.args(["--prompt", PROMPT, "--tokens", &TOKENS.to_string(), "--runs", &RUNS.to_string()]);
        // As the engine does it.
        command.args(if GPU {
            ["--device", "gpu", "--dtype", "stored"]
        } else {
            ["--device", "cpu", "--dtype", "float32"]
        });
        if openblas {
            let prefix = option_env!("MLX_MANAGER_MLX_PREFIX").context("this build has no OpenBLAS of its own")?;
            command.env("LD_PRELOAD", Path::new(prefix).join("lib/libmlxblas.so"));
        }
        let output = command.output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "speed.py failed: {complaint}");
        ensure!(!complaint.contains("LD_PRELOAD"), "OpenBLAS is missing: {complaint}");
        let report: Value = serde_json::from_slice(&output.stdout).context("speed.py printed no report")?;
        ensure!(
            report["prompt_tokens"] == prompt_tokens,
            "the prompts differ: {} and {prompt_tokens} tokens",
            report["prompt_tokens"]
        );
        report["decode_tokens_per_second"].as_f64().context("speed.py reports no rate")
    }
}
