//! `mlx-manager logs` over files that the daemon's own sinks wrote.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use mlx_manager_config::{Environment, LoadOptions, load_text};
use mlx_manager_telemetry::log::{LogError, LogHandle, Router, Terminal, build};

use tempfile::TempDir;
use tracing::subscriber::with_default;
use tracing_subscriber::{Registry, layer::SubscriberExt};

use crate::peer::daemon::PATIENCE;

/// Runs the binary in a folder and waits for its end.
fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mlx-manager"));
    command.current_dir(folder).env_clear().env("HOME", folder).envs(variables.iter().copied()).args(arguments);
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

pub fn verify(folder: &Path, files: &[&str]) -> (i32, String, String) {
    run(folder, &[&["logs", "verify"], files].concat(), &[])
}

fn sinks(folder: &Path, config: &str) -> (Router, LogHandle) {
    try_sinks(folder, config).unwrap()
}

fn try_sinks(folder: &Path, config: &str) -> Result<(Router, LogHandle), LogError> {
    let options = LoadOptions { environment: Environment::new(folder), ..LoadOptions::default() };
    build(&load_text(config, None, &options).unwrap().config.log, Terminal::default(), None, None)
}

pub fn one_sink(format: &str, rest: &str) -> String {
    format!("[[log.sinks]]\nname = \"app\"\nkind = \"file\"\nfile = \"app.log\"\nformat = \"{format}\"\n{rest}\n")
}

/// Logs this many records of this size and waits until they are on disk, if they get there.
fn log((router, handle): (Router, LogHandle), count: usize, bytes: usize) {
    let filler = "x".repeat(bytes);
    with_default(Registry::default().with(router), || {
        (0..count).for_each(|index| tracing::info!(index, filler, "record"));
        assert!(handle.flush(PATIENCE));
    });
}

pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lets `logs` lead elsewhere from one moment to the next: to the folder `real`, or to a file, where nothing can be written.
pub fn lead_logs_to(folder: &Path, target: &str) {
    fs::create_dir_all(folder.join("real")).unwrap();
    fs::write(folder.join("file"), "").unwrap();
    symlink(target, folder.join("next")).unwrap();
    fs::rename(folder.join("next"), folder.join("logs")).unwrap();
}

fn archives(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path().join("logs/archive")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn rotations_restarts_and_compression_leave_no_gap() {
    for (format, compression, suffix) in [("json", "gzip", ".gz"), ("logfmt", "zstd", ".zst")] {
        let folder = TempDir::new().unwrap();
        let config = one_sink(format, &format!("rotation = {{ size = \"20 kB\" }}\ncompression = \"{compression}\""));
        for _ in 0..3 {
            log(sinks(folder.path(), &config), 200, 200);
        }
        let compressed = || archives(&folder).iter().filter(|path| path.to_string_lossy().ends_with(suffix)).count();
        // A last start compresses what the ones before did not get to. The newest stays as it is.
        let last = sinks(folder.path(), &config);
        eventually("compressed archives", || compressed() == archives(&folder).len() - 1);
        // Then it isn't: the numbers go on all the same.
        drop(last);
        let newest = archives(&folder).into_iter().find(|path| path.extension().unwrap() == "log").unwrap();
        fs::rename(folder.path().join("logs/app.log"), newest.with_file_name("app.2099-01-01T00-00-00Z.0001.log"))
            .unwrap();
        assert!(
            std::process::Command::new("gzip")
                .arg(newest.with_file_name("app.2099-01-01T00-00-00Z.0001.log"))
                .status()
                .unwrap()
                .success()
        );
        log(sinks(folder.path(), &config), 10, 10);

        let (code, out, talk) = verify(folder.path(), &["logs/archive/*", "logs/app.log"]);
        assert_eq!((code, talk.as_str()), (0, ""), "{out}");
        let (records, verdict) = ("logs/app.log: 610 records in ", " files, seq 0 to 609: none is missing\n");
        assert!(out.starts_with(records) && out.ends_with(verdict) && out.lines().count() == 1, "{out}");

        let finished = |path: &PathBuf| path.extension().unwrap() == "gz" || path.extension().unwrap() == "zst";
        eventually("nothing left to compress", || archives(&folder).iter().all(finished));
        // Without one archive it says which numbers are not there, and between which lines.
        let gone = &archives(&folder)[1];
        fs::remove_file(gone).unwrap();
        let (code, out, _) = verify(folder.path(), &["logs/app.log", "logs/archive/*"]);
        assert_eq!(code, 1, "{out}");
        assert!(out.contains(" are missing, unexplained\n"), "{out}");
        let line = out.lines().nth(1).unwrap();
        assert!(
            line.starts_with("  missing: seq ") && line.contains(", unexplained, between logs/archive/app.2"),
            "{out}"
        );
    }
}

#[test]
fn loss_is_explained_by_the_record_about_it() {
    let folder = TempDir::new().unwrap();
    lead_logs_to(folder.path(), "real");
    let (router, handle) = sinks(folder.path(), &one_sink("json", "rotation = \"never\""));
    let logs = folder.path().join("logs");
    let filler = "x".repeat(60_000);
    with_default(Registry::default().with(router), || {
        tracing::info!("before");
        assert!(handle.flush(PATIENCE));
        lead_logs_to(folder.path(), "file");
        let counters = handle.counters().remove(0).1;
        // The keeper of archives fails at most twice at its start; what follows is the worker.
        eventually("failures", || counters.io_errors() > 2);
        // More than the queue holds, and what the worker took before it.
        (0..700).for_each(|index| tracing::info!(index, filler, "record"));
        let dropped = counters.dropped(tracing::Level::INFO);
        assert!(dropped > 0);
        lead_logs_to(folder.path(), "real");
        assert!(handle.flush(PATIENCE));
        tracing::info!("after");
        assert!(handle.flush(PATIENCE));
        let text = fs::read_to_string(logs.join("app.log")).unwrap();
        assert!(text.lines().last().unwrap().contains("\"after\"") && text.contains("\"index\":699"));
        let record = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        assert_eq!(text.lines().filter_map(|line| record(line)["lost"].as_u64()).sum::<u64>(), dropped);
    });
    let (code, out, _) = verify(folder.path(), &["logs/app.log"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains(" are missing, all explained by loss records\n"), "{out}");
    // Without that record nothing explains them.
    let text = fs::read_to_string(logs.join("app.log")).unwrap();
    let at = text.lines().position(|line| line.contains("\"lost\":")).unwrap();
    assert!(out.contains(&format!(", explained by the loss record at logs/app.log:{}\n", at + 1)), "{out}");
    let cut: String = text.lines().filter(|line| !line.contains("\"lost\":")).map(|line| format!("{line}\n")).collect();
    fs::write(logs.join("app.log"), cut).unwrap();
    let (code, out, _) = verify(folder.path(), &["logs/app.log"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains(&format!(", unexplained, between logs/app.log:{at} and logs/app.log:{}\n", at + 1)), "{out}");
}

#[test]
fn logrotate_may_take_the_files_away() {
    let folder = TempDir::new().unwrap();
    let config = one_sink("logfmt", "rotation = \"never\"");
    let (router, handle) = sinks(folder.path(), &config);
    with_default(Registry::default().with(router), || {
        (0..5).for_each(|index| tracing::info!(index, "record"));
        assert!(handle.flush(PATIENCE));
        fs::rename(folder.path().join("logs/app.log"), folder.path().join("logs/app.log.1")).unwrap();
        handle.reopen();
        assert!(handle.flush(PATIENCE));
    });
    drop(handle);
    log(sinks(folder.path(), &config), 5, 1);
    let (code, out, _) = verify(folder.path(), &["logs/app.log*"]);
    assert_eq!((code, out.as_str()), (0, "logs/app.log: 10 records in 2 files, seq 0 to 9: none is missing\n"));
}

#[test]
fn pipe_takes_everything_and_stays_a_pipe() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path().join("logs");
    fs::create_dir(&logs).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(logs.join("app.log")).status().unwrap().success());
    let reader = {
        let pipe = logs.join("app.log");
        thread::spawn(move || fs::read_to_string(pipe).unwrap())
    };
    // A thousand times the size at which a file would be rotated, and more than fits into a pipe.
    log(sinks(folder.path(), &one_sink("json", "rotation = { size = \"1 kB\" }")), 1_000, 1_000);
    assert_eq!(reader.join().unwrap().lines().count(), 1_000);
    let entries = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap());
    let entries: Vec<_> = entries.map(|entry| (entry.file_name(), entry.file_type().unwrap().is_fifo())).collect();
    assert_eq!(entries, [("app.log".into(), true)]);
}

#[test]
fn link_leads_to_the_file_its_archives_and_its_lock() {
    let folder = TempDir::new().unwrap();
    let config = one_sink("json", "rotation = { size = \"2 kB\" }");
    fs::create_dir(folder.path().join("logs")).unwrap();
    symlink("../real/app.log", folder.path().join("logs/app.log")).unwrap();
    let (router, handle) = sinks(folder.path(), &config);
    let direct = format!("log.dir = \"real\"\n{config}");
    assert!(matches!(try_sinks(folder.path(), &direct), Err(LogError::InUse { .. })));
    log((router, handle), 20, 500);
    assert!(folder.path().join("logs/app.log").is_symlink() && !folder.path().join("logs/archive").exists());
    let (code, out, _) = verify(folder.path(), &["logs/app.log", "real/archive/*"]);
    assert!(code == 0 && out.contains(": 20 records in ") && !out.contains(" 1 file,"), "{out}");
}

#[test]
fn what_proves_nothing_is_said_clearly() {
    let folder = TempDir::new().unwrap();
    log(sinks(folder.path(), &one_sink("text", "")), 3, 1);
    let (code, out, talk) = verify(folder.path(), &["logs/app.log"]);
    assert_eq!((code, talk.as_str()), (2, ""));
    assert!(
        out.contains("logs/app.log: nothing can be proven, because text has no seq: give the sink format = "),
        "{out}"
    );
    for (argument, expected) in [
        ("logs", "logs is a folder: name the files in it, such as 'logs/*.log'"),
        ("logs/nothing.log", "logs/nothing.log can't be read: No such file"),
        ("logs/*.json", "no file matches logs/*.json\n"),
    ] {
        let (code, out, talk) = verify(folder.path(), &[argument]);
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(talk.contains(expected), "{talk}");
    }
    assert_eq!(verify(folder.path(), &[]).0, 2);
    // Before the first rotation there are no archives.
    fs::write(folder.path().join("a.log"), "message=a seq=1\nmessage=a seq=3\n").unwrap();
    let (code, out, talk) = verify(folder.path(), &["*.log", "archive/*"]);
    assert!(code == 1 && out.contains("a.log: 2 records in 1 file, seq 1 to 3: 1 is missing, unexplained\n"), "{out}");
    assert_eq!(talk, "mlx-manager: no file matches archive/*\n");
    let (code, _, talk) = verify(folder.path(), &["*.txt", "archive/*"]);
    assert!(code == 2 && talk.contains("no file matches *.txt or archive/*"), "{talk}");
    // A broken configuration says nothing about log files.
    fs::write(folder.path().join("config.toml"), "broken").unwrap();
    fs::write(folder.path().join("a.log"), "message=a seq=1\n").unwrap();
    assert_eq!(verify(folder.path(), &["a.log"]).0, 0);
}

#[test]
fn explain_names_the_keys_and_where_they_stand() {
    let folder = TempDir::new().unwrap();
    let explain = |target: &str, level: &str, variables: &[(&str, &str)]| {
        run(folder.path(), &["logs", "explain", target, level], variables)
    };
    let (code, out, _) = explain("mlx_manager::server::dispatch", "info", &[]);
    assert_eq!(code, 0);
    let expected = "INFO of mlx_manager::server::dispatch goes to console, mlx-server\n\
        console takes it\n\
        \x20 log.level = \"info\" lets INFO pass  # default\n\
        \x20 log.sinks[0].level = \"trace\" lets INFO pass  # default\n\
        mlx-server takes it\n\
        \x20 log.level = \"info\" lets INFO pass  # default\n\
        \x20 log.sinks[1].level = \"trace\" lets INFO pass  # default\n\
        \x20 log.sinks[1].include = [\"mlx_manager::server\"] names mlx_manager::server  # default\n\
        mlx-manager leaves it\n\
        \x20 log.sinks[2].exclude = [\"mlx_manager::server\"] names mlx_manager::server  # default\n";
    assert_eq!(out, expected);

    fs::write(folder.path().join("config.toml"), "[log.targets]\nhyper = \"error\"\n").unwrap();
    let (code, out, _) = explain("hyper::client", "WARNING", &[]);
    assert_eq!(code, 0);
    assert!(out.starts_with("WARN of hyper::client goes to no sink\n"), "{out}");
    assert!(out.contains("  log.targets.hyper = \"error\" stops WARN  # config.toml:2\n"), "{out}");
    let (_, out, _) = explain("hyper::client", "debug", &[("LOG_LEVEL", "error,hyper=debug")]);
    let line =
        "  log.level = \"error,hyper=debug\" with its directive hyper=debug lets DEBUG pass  # environment LOG_LEVEL\n";
    assert!(out.contains("goes to console, mlx-manager\n") && out.contains(line), "{out}");
    let follows = "while an inference request is served: to console, mlx-server, as what a library says";
    assert!(out.contains(follows), "{out}");
    let (_, out, _) = explain("mlx_manager::server::dispatch", "debug", &[]);
    let told =
        "while an inference request is served: to console, mlx-server if it fails, by log.failure_story  # default\n";
    assert!(out.starts_with("DEBUG of mlx_manager::server::dispatch goes to no sink\n") && out.contains(told), "{out}");

    for (target, level, expected) in [
        ("a", "loud", "invalid value 'loud' for '<LEVEL>': it is no level; allowed: error, warn, info, debug, trace"),
        ("a", "off", "no event has it"),
        ("a b", "info", "invalid value 'a b' for '<TARGET>': it is no module path"),
    ] {
        let (code, out, talk) = explain(target, level, &[]);
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(talk.contains(expected), "{talk}");
    }
}

#[test]
fn check_and_serve_refuse_log_files_that_cannot_be_written() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("logs"), "").unwrap();
    fs::write(folder.path().join("config.toml"), "server.listen = \"127.0.0.1:0\"\nlog.dir = \"logs\"\n").unwrap();
    for command in ["check", "serve"] {
        let (code, out, talk) = run(folder.path(), &[command], &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{talk}");
        for part in
            ["`log.dir` can't hold log files: ", "/logs isn't a folder", "config.toml:2:11", "help: name a folder"]
        {
            assert!(talk.contains(part), "{part}\n{talk}");
        }
    }
    // Who only asks needs no log files.
    assert_eq!(run(folder.path(), &["logs", "explain", "a", "info"], &[]).0, 0);
}
