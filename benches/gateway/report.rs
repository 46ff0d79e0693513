//! The figures, for people and for the picture.

use std::{fs, path::Path};

use anyhow::Result;
use jiff::Zoned;
use serde_json::{Map, Value, json};

use crate::arm::{Arm, CONNECTIONS, INTERVAL, Scale, WHOLE, WORKS};
use crate::rig::{cores::Cores, provider::CHUNKS, rounds::Rounds, statistics::quantile};

/// What a reader has to know to judge the figures.
pub struct Setting {
    /// As it was before this process kept to one core.
    pub machine: String,
    pub cores: Cores,
    pub scale: Scale,
    pub versions: Vec<(&'static str, String)>,
    pub left_out: Vec<&'static str>,
}

impl Setting {
    fn place(&self) -> &'static str {
        match self.cores {
            Cores::Pinned => "each gateway has one core and one worker, load and provider the other core",
            Cores::Shared => "gateway, load and provider share the cores",
        }
    }
}

pub fn print(arms: &[Arm], setting: &Setting) -> Result<()> {
    let versions: Vec<_> = setting.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    println!("{}", versions.join(", "));
    println!(
        "{} rounds; per arm, round and column a window of about {:.1} s over {CONNECTIONS} connections,",
        setting.scale.rounds,
        setting.scale.window.as_secs_f64()
    );
    println!(
        "then {} requests of 1 kB at {:.0} a second for the latency; {}",
        setting.scale.paced,
        1.0 / INTERVAL.as_secs_f64(),
        setting.place()
    );
    println!("medians; CPU is all of the gateway's processes', in µs; streamed answers have {CHUNKS} chunks\n");
    print!("{:<32}", "");
    for work in WORKS {
        print!(" {:>9}", work.name.replace("streamed", "str."));
    }
    println!(" {:>9} {:>8} {:>8} {:>8} {:>8} {:>7}", "CPU/chunk", "req/s", "1 MB/s", "p50 ms", "p99 ms", "RSS MB");
    for arm in arms {
        let shown = |figure: String| if arm.is_measured() { figure } else { "–".to_owned() };
        print!("{:<32}", arm.name);
        for (work, _) in WORKS.iter().enumerate() {
            let width = 9.max(WORKS[work].name.replace("streamed", "str.").chars().count());
            print!(" {:>width$}", shown(format!("{:.0}", arm.cost(work).median())));
        }
        println!(
            " {:>9} {:>8.0} {:>8.0} {:>8.2} {:>8.2} {:>7}",
            shown(format!("{:.1}", arm.chunk())),
            arm.rate(WHOLE).median(),
            arm.rate(4).median(),
            quantile(&arm.latencies, 0.5),
            quantile(&arm.latencies, 0.99),
            shown(format!("{:.0}", arm.memory()?.unwrap_or_default() as f64 / 1e6)),
        );
    }
    Ok(())
}

pub fn write(arms: &[Arm], setting: &Setting, path: &Path) -> Result<()> {
    let figures: Result<Vec<Value>> = arms.iter().map(of_arm).collect();
    let versions: Map<_, _> =
        setting.versions.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect();
    let report = json!({
        "machine": setting.machine,
        "date": Zoned::now().date().to_string(),
        "place": setting.place(),
        "rounds": setting.scale.rounds,
        "window_s": setting.scale.window.as_secs_f64(),
        "connections": CONNECTIONS,
        "chunks": CHUNKS,
        "paced_per_s": 1.0 / INTERVAL.as_secs_f64(),
        "versions": versions,
        "left_out": setting.left_out,
        "arms": figures?,
    });
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nall rounds are in {}", path.display());
    Ok(())
}

fn of_arm(arm: &Arm) -> Result<Value> {
    let each = |rounds: &dyn Fn(usize) -> Value| -> Map<String, Value> {
        WORKS.iter().enumerate().map(|(work, told)| (told.name.to_owned(), rounds(work))).collect()
    };
    let told = |rounds: &Rounds| json!({ "median": rounds.median(), "rounds": rounds.0 });
    let measured = arm.is_measured();
    Ok(json!({
        "name": arm.name,
        "requests": arm.sent,
        "cpu_us": measured.then(|| each(&|work| told(arm.cost(work)))),
        "cpu_us_per_chunk": measured.then(|| arm.chunk()),
        "per_s": each(&|work| told(arm.rate(work))),
        "p50_ms": quantile(&arm.latencies, 0.5),
        "p99_ms": quantile(&arm.latencies, 0.99),
        "rss_bytes": arm.memory()?,
    }))
}
