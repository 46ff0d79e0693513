//! The import rules of ARCHITECTURE.md, read off the source text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Prefix of a path below `src/`, and what a line there may not name.
struct Ban {
    name: &'static str,
    allowed_below: &'static [&'static str],
}

/// Crates that belong to one room.
const CRATES: [Ban; 10] = [
    Ban { name: "sqlx::", allowed_below: &["store"] },
    Ban { name: "reqwest::", allowed_below: &["server/cloud", "manager/models/download", "telemetry"] },
    Ban { name: "mlx_rs::", allowed_below: &["server/engine"] },
    // The config has a section, the command line a command, and so each a module, of that name.
    Ban { name: "metrics::", allowed_below: &["telemetry", "config", "cli"] },
    Ban { name: "opentelemetry", allowed_below: &["telemetry"] },
    Ban { name: "tonic", allowed_below: &["telemetry"] },
    Ban { name: "tracing_opentelemetry::", allowed_below: &["telemetry"] },
    Ban { name: "tracing_subscriber::", allowed_below: &["telemetry"] },
    Ban { name: "tracing_appender::", allowed_below: &["telemetry"] },
    Ban { name: "anyhow::", allowed_below: &["main.rs", "cli"] },
];

/// Crates of the HTTP floor; `axum` carries the routes and is everywhere.
const HTTP_CRATES: [&str; 3] = ["hyper::", "hyper_util::", "tower_http::"];

/// Each room with the rooms it may not import: everything above it, and the other wing.
const FLOORS: [(&str, &[&str]); 8] = [
    ("config", &["store", "telemetry", "server", "manager", "http", "app", "cli", "llm"]),
    ("llm", &["store", "telemetry", "server", "manager", "http", "app", "cli", "config"]),
    ("store", &["server", "manager", "http", "app", "cli"]),
    ("telemetry", &["store", "server", "manager", "http", "app", "cli"]),
    ("server", &["manager", "http", "app", "cli"]),
    ("manager", &["server", "http", "app", "cli"]),
    ("http", &["app", "cli"]),
    ("app.rs", &["cli"]),
];

/// Inside the server wing: `api → dispatch → {engine, cloud} → dialect → llm`.
const SERVER: [(&str, &[&str]); 4] = [
    ("server/dialect", &["cloud", "engine", "dispatch", "api"]),
    ("server/cloud", &["engine", "dispatch", "api"]),
    ("server/engine", &["cloud", "dispatch", "api"]),
    ("server/dispatch", &["api"]),
];

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.sort();
    assert!(found.len() > 30, "the walk finds the sources");
    found
        .into_iter()
        .map(|path| {
            (path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// Lines of code with their numbers, up to the unit tests at the end of a file. Test files may name what they simulate.
fn code<'a>(path: &str, text: &'a str) -> Vec<(usize, &'a str)> {
    if path.ends_with("tests.rs") || path.contains("/tests/") {
        return Vec::new();
    }
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim_start()))
        .take_while(|(_, line)| *line != "mod tests {" && *line != "mod tests;")
        .filter(|(_, line)| !line.starts_with("//"))
        .collect()
}

/// Whether `line` names `word` as a path of its own: `metrics::` is neither `crate::metrics::` nor `process_metrics::`.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = &line[..at];
        !before.ends_with("::")
            && !before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == '"')
    })
}

fn below(path: &str, room: &str) -> bool {
    path == room || path == format!("{room}.rs") || path.starts_with(&format!("{room}/"))
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code(&path, &text) {
            for ban in &CRATES {
                if names(line, ban.name) && !ban.allowed_below.iter().any(|room| below(&path, room)) {
                    broken.push(format!("{path}:{number} names {}", ban.name));
                }
            }
            if HTTP_CRATES.iter().any(|name| names(line, name)) && !below(&path, "http") {
                broken.push(format!("{path}:{number} names a crate of the HTTP floor: {line}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn arrows_point_down() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code(&path, &text) {
            for (room, banned) in FLOORS {
                for above in banned {
                    if below(&path, room) && line.contains(&format!("crate::{above}::")) {
                        broken.push(format!("{path}:{number} imports {above}"));
                    }
                }
            }
            for (room, banned) in SERVER {
                for above in banned {
                    if below(&path, room)
                        && (line.contains(&format!("crate::server::{above}"))
                            || line.contains(&format!("super::{above}::")))
                    {
                        broken.push(format!("{path}:{number} imports server::{above}"));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_environment_is_read_in_config_only() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code(&path, &text) {
            if line.contains("env::var") && !below(&path, "config") {
                broken.push(format!("{path}:{number}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        if text.lines().count() > 600 {
            broken.push(format!("{path} has more than 600 lines"));
        }
        if !path.ends_with("tests.rs") && !path.contains("/tests/") && !text.starts_with("//!") {
            broken.push(format!("{path} does not begin with what it is"));
        }
        if ["utils", "common", "helpers", "types"].iter().any(|name| path.contains(&format!("{name}.rs"))) {
            broken.push(format!("{path} is not named by its content"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_rules_can_fail() {
    assert!(names("use sqlx::Row;", "sqlx::"));
    assert!(names("let x = sqlx::query(\"\");", "sqlx::"));
    assert!(!names("use crate::metrics::Row;", "metrics::"));
    assert!(!names("metric::metrics_process::x", "metrics::"));
    assert!(below("server/engine/mlx/mod.rs", "server/engine"));
    assert!(!below("server/engineer.rs", "server/engine"));
    assert_eq!(code("a.rs", "use a;\n// sqlx::\nmod tests {\nuse sqlx::x;").len(), 1);
}
