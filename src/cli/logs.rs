//! `mlx-manager logs`: what log files prove, and where an event would go.

use std::{
    fs,
    io::{self, Write},
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use globset::GlobBuilder;
use mlx_manager_config as config;
use mlx_manager_config::{Loaded, Shown};
use mlx_manager_telemetry::log::{
    explain::{InRequest, Reason, explain, in_request},
    verify::{Family, Fault, Gap, Spot, verify_live},
};
use tracing::{Level, level_filters::LevelFilter};

use super::Failure;

/// The most findings of one family that are listed.
const MOST_FINDINGS: usize = 100;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Prove that no record is missing from log files in JSON or logfmt, or list what is
    Verify {
        /// Active files and archives (plain, .gz, .zst) in any order; patterns with * and ? too
        #[arg(required = true, value_name = "FILE")]
        files: Vec<String>,
    },
    /// Say which sinks take an event, and by which keys of the configuration
    Explain {
        /// The event's target, a module path such as mlx_manager::server::dispatch
        #[arg(value_parser = target)]
        target: String,
        /// Its level: error, warn, info, debug or trace
        #[arg(value_parser = level)]
        level: Level,
    },
}

fn target(text: &str) -> Result<String, String> {
    if config::is_target(text) { Ok(text.to_owned()) } else { Err("it is no module path, such as a::b".to_owned()) }
}

/// An event's level, in any of the words that the configuration takes.
fn level(text: &str) -> Result<Level, String> {
    let level = config::Level::from_name(text)
        .ok_or_else(|| "it is no level; allowed: error, warn, info, debug, trace".to_owned())?;
    LevelFilter::from(level)
        .into_level()
        .ok_or_else(|| "no event has it; allowed: error, warn, info, debug, trace".to_owned())
}

/// Says which sinks take an event and why.
pub(super) fn explain_event(loaded: &Loaded, target: &str, level: Level) -> Result<(), Failure> {
    let verdicts = explain(&loaded.config.log, target, level);
    let taking: Vec<&str> = verdicts.iter().filter(|verdict| verdict.takes).map(|verdict| verdict.sink).collect();
    let mut stdout = io::stdout().lock();
    match &taking[..] {
        [] => writeln!(stdout, "{level} of {target} goes to no sink")?,
        names => writeln!(stdout, "{level} of {target} goes to {}", names.join(", "))?,
    }
    let InRequest { takers, story } = in_request(&loaded.config.log, target, level);
    let names = takers.join(", ");
    if story && !takers.is_empty() {
        let key = "log.failure_story";
        let source = shown(loaded, key).map(|shown| shown.source(&loaded.file_name())).unwrap_or_default();
        writeln!(stdout, "while an inference request is served: to {names} if it fails, by {key}  # {source}")?;
    } else if takers != taking {
        let names = if takers.is_empty() { "no sink" } else { &names };
        writeln!(
            stdout,
            "while an inference request is served: to {names}, as what a library says follows the request"
        )?;
    }
    for verdict in &verdicts {
        writeln!(stdout, "{} {} it", verdict.sink, if verdict.takes { "takes" } else { "leaves" })?;
        for Reason { key, effect, .. } in &verdict.reasons {
            match shown(loaded, key) {
                Some(shown) => {
                    writeln!(stdout, "  {key} = {} {effect}  # {}", shown.value, shown.source(&loaded.file_name()))?;
                }
                None => writeln!(stdout, "  {key} {effect}")?,
            }
        }
    }
    stdout.flush()?;
    Ok(())
}

/// A key as it is in effect, which is as it was read last.
fn shown<'a>(loaded: &'a Loaded, key: &str) -> Option<&'a Shown> {
    loaded.shown.iter().rev().find(|shown| shown.key == key)
}

/// Reads log files and says what their numbers prove.
pub(super) fn verify_files(patterns: &[String]) -> Result<ExitCode, Failure> {
    let list = || patterns.iter().map(|pattern| expand(pattern)).collect::<anyhow::Result<Vec<_>>>();
    let found = list().map_err(|error| Failure { code: 2, error })?;
    let nothing = patterns.iter().zip(&found).filter(|(_, found)| found.is_empty());
    let nothing: Vec<&str> = nothing.map(|(pattern, _)| pattern.as_str()).collect();
    if nothing.len() == patterns.len() {
        return Err(Failure { code: 2, error: anyhow!("no file matches {}", nothing.join(" or ")) });
    }
    for pattern in nothing {
        super::say(format_args!("mlx-manager: no file matches {pattern}"));
    }
    let families = verify_live(found.concat(), || Some(list().ok()?.concat()));
    let mut stdout = io::stdout().lock();
    for family in &families {
        write_family(&mut stdout, family)?;
    }
    stdout.flush()?;
    Ok(if families.iter().any(|family| !family.is_whole()) {
        ExitCode::FAILURE
    } else if families.iter().any(Family::has_no_numbers) {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    })
}

/// The files that an argument names: itself, or what matches it, if anything does.
fn expand(pattern: &str) -> anyhow::Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            bail!("{pattern} is a folder: name the files in it, such as '{}'", path.join("*.log").display())
        }
        Ok(_) => return Ok(vec![path.to_owned()]),
        Err(error) if !pattern.contains(['*', '?', '[']) => {
            return Err(error).with_context(|| format!("{pattern} can't be read"));
        }
        Err(_) => {}
    }
    let mut found = vec![PathBuf::new()];
    for component in path.components() {
        found = match component {
            Component::Normal(name) => matching(&found, name)?,
            other => found.into_iter().map(|path| path.join(other)).collect(),
        };
    }
    found.retain(|path| path.is_file());
    Ok(found)
}

/// What lies in the folders under a name with wildcards. Patterns are those of routes and of the configuration, `{a,b}`
/// among them, and names that are no UTF-8 are found too; the crate `glob` promises neither.
fn matching(folders: &[PathBuf], name: &std::ffi::OsStr) -> anyhow::Result<Vec<PathBuf>> {
    let text = name.to_string_lossy();
    if !text.contains(['*', '?', '[']) {
        return Ok(folders.iter().map(|folder| folder.join(name)).collect());
    }
    let glob = GlobBuilder::new(&text).build().with_context(|| format!("{text} is no pattern"))?.compile_matcher();
    let mut found = Vec::new();
    for folder in folders {
        let place = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        for entry in fs::read_dir(place).into_iter().flatten() {
            let name = entry.with_context(|| format!("{} can't be read", place.display()))?.file_name();
            // As in a shell, a leading dot has to be written.
            let hidden = name.as_encoded_bytes().starts_with(b".") && !text.starts_with('.');
            if glob.is_match(&name) && !hidden {
                found.push(folder.join(name));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn write_family(out: &mut impl Write, family: &Family) -> io::Result<()> {
    let name = family.name.display();
    let files = counted(family.files as u64, "file");
    let unnumbered = match family.text {
        0 => String::new(),
        count => format!(", {} of text, which has no numbers", counted(count, "line")),
    };
    match family.numbers {
        None if family.text > 0 => {
            writeln!(
                out,
                "{name}: nothing can be proven, because text has no seq: give the sink format = \"json\" or \"logfmt\""
            )?;
        }
        None if family.has_no_numbers() => writeln!(out, "{name}: nothing can be proven, because no line has a seq")?,
        None => writeln!(out, "{name}: no records in {files}")?,
        Some((first, last)) => {
            let missing = |explained: bool| {
                let gaps = family.gaps.iter().filter(|gap| gap.explained_by.is_some() == explained);
                gaps.map(Gap::count).sum::<u64>()
            };
            let verdict = match (missing(false), missing(true)) {
                (0, 0) if family.is_whole() => "none is missing".to_owned(),
                (0, 0) => "none is missing, but the numbers can't be trusted".to_owned(),
                (0, 1) => "1 is missing, explained by a loss record".to_owned(),
                (0, lost) => format!("{lost} are missing, all explained by loss records"),
                (1, 0) => "1 is missing, unexplained".to_owned(),
                (unexplained, 0) => format!("{unexplained} are missing, unexplained"),
                (unexplained, lost) => {
                    format!(
                        "{} are missing: {unexplained} unexplained, {lost} explained by loss records",
                        unexplained + lost
                    )
                }
            };
            let records = counted(family.records, "record");
            writeln!(out, "{name}: {records} in {files}, seq {first} to {last}{unnumbered}: {verdict}")?;
        }
    }
    let findings = family.gaps.iter().map(gap_line).chain(family.faults.iter().map(fault_line));
    let count = family.gaps.len() + family.faults.len();
    for line in findings.take(MOST_FINDINGS) {
        writeln!(out, "  {line}")?;
    }
    if count > MOST_FINDINGS {
        writeln!(out, "  and {} more findings", count - MOST_FINDINGS)?;
    }
    Ok(())
}

fn gap_line(gap: &Gap) -> String {
    let numbers = range(gap.first, gap.last);
    let (after, before) = (spot(&gap.after), spot(&gap.before));
    match &gap.explained_by {
        Some(by) => format!("missing: {numbers}, explained by the loss record at {}", spot(by)),
        None => format!("missing: {numbers}, unexplained, between {after} and {before}"),
    }
}

fn fault_line(fault: &Fault) -> String {
    match fault {
        Fault::Twice { numbers, first, again } => {
            format!("twice: {}, at {} and at {}", range(*numbers.start(), *numbers.end()), spot(first), spot(again))
        }
        Fault::Backwards { sequence, after, spot: at } => {
            format!("backwards: seq {sequence} after {after}, at {}", spot(at))
        }
        Fault::Miscount { counted, missing, spot: at } => {
            format!("miscount: {counted} were counted as lost, but {missing} are missing, at {}", spot(at))
        }
        Fault::Torn(at) => format!("torn: the end of a record is missing, at {}", spot(at)),
        Fault::Foreign { spot: at, lines } => {
            format!("foreign: {}, at {}", counted(*lines, "line that is no record"), spot(at))
        }
        Fault::Unreadable { path, reason } => format!("unreadable: {}: {reason}", path.display()),
    }
}

fn range(first: u64, last: u64) -> String {
    if first == last { format!("seq {first}") } else { format!("seq {first} to {last} ({})", last - first + 1) }
}

fn spot(spot: &Spot) -> String {
    format!("{}:{}", spot.path.display(), spot.line)
}

fn counted(count: u64, noun: &str) -> String {
    match (count, noun.strip_prefix("line that is")) {
        (1, _) => format!("1 {noun}"),
        (_, Some(rest)) => format!("{count} lines that are{rest}s"),
        (_, None) => format!("{count} {noun}s"),
    }
}
