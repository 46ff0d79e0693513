//! The walls of ARCHITECTURE.md: what a `Cargo.toml` can't say of rooms within a crate, and that each `Cargo.toml` says no more
//! than the map allows. Every rule is tried on a planted violation too.

mod source;

use std::{collections::BTreeMap, fs, path::Path};

use source::{Files, Name, Source, files, read};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The crates below `crates/`, each with those of ours that it may depend on, for its tests too.
const CRATES: [(&str, &[&str]); 7] = [
    ("llm", &[]),
    ("config", &["llm"]),
    ("signal", &["llm", "config"]),
    ("dialect", &["llm"]),
    ("catalogue", &["config"]),
    ("engine", &["catalogue", "llm", "config", "signal"]),
    ("telemetry", &["llm", "config", "signal"]),
];

/// Third parties that belong to some crates, of which `mlx-manager` is the package. Tests may use them anywhere.
const OWNED: [(&str, &[&str]); 16] = [
    ("axum", &["mlx-manager"]),
    ("clap", &["mlx-manager"]),
    ("metrics", &["signal", "telemetry"]),
    ("metrics-exporter-prometheus", &["telemetry"]),
    ("mlx-rs", &["engine"]),
    ("opentelemetry", &["signal", "telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("opentelemetry-otlp", &["telemetry"]),
    ("reqwest", &["mlx-manager", "telemetry"]),
    ("sqlx", &["mlx-manager"]),
    ("tokenizers", &["engine"]),
    ("toml", &["config"]),
    ("tonic", &["telemetry"]),
    ("tracing-appender", &["telemetry"]),
    ("tracing-opentelemetry", &["signal", "telemetry"]),
    ("tracing-subscriber", &["signal", "telemetry"]),
];

/// The rooms of the package, each with those that it may name.
const ROOMS: [(&str, &[&str]); 7] = [
    ("route", &[]),
    ("store", &[]),
    ("gateway", &["route", "store"]),
    ("manager", &["route"]),
    ("http", &["route", "gateway"]),
    ("app", &["route", "store", "gateway", "manager", "http"]),
    ("cli", &["store", "gateway", "manager", "app"]),
];

/// The rooms of the gateway: `api → dispatch → {local, cloud}`.
const GATEWAY: [(&str, &[&str]); 4] =
    [("api", &["dispatch", "cloud"]), ("dispatch", &["local", "cloud"]), ("local", &[]), ("cloud", &[])];

/// Crates that belong to some rooms of the package.
const ONLY_IN: [(&str, &[&str]); 11] = [
    ("anyhow", &["cli"]),
    ("clap", &["cli"]),
    ("h2", &["gateway::cloud"]),
    ("hyper", &["gateway::cloud", "http"]),
    ("hyper_util", &["gateway::cloud", "http"]),
    ("mlx_manager_dialect", &["gateway"]),
    ("mlx_manager_engine", &["gateway::local"]),
    ("mlx_manager_telemetry", &["app", "cli"]),
    ("reqwest", &["manager::models::download"]),
    ("sqlx", &["store"]),
    ("tower_http", &["http"]),
];

fn everything() -> Files {
    let folders: Vec<String> = CRATES.iter().map(|(name, _)| format!("crates/{name}/src")).collect();
    let folders: Vec<&str> = folders.iter().map(String::as_str).chain(["src"]).collect();
    files(Path::new(ROOT), &folders)
}

fn package() -> Source {
    read(&everything(), "src/lib.rs")
}

fn must_be_empty(broken: &[String]) {
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Names of rooms that a room may not name.
fn against_the_arrows(source: &Source, around: &str, rooms: &[(&str, &[&str])]) -> Vec<String> {
    let within = |room: &str| if around.is_empty() { room.to_owned() } else { format!("{around}::{room}") };
    let is_wrong = |name: &&Name| {
        let from = rooms.iter().find(|(room, _)| name.is_said_in(&within(room)));
        let to = rooms.iter().find(|(room, _)| name.is_below(&format!("crate::{}", within(room))));
        from.zip(to).is_some_and(|(from, to)| from.0 != to.0 && !from.1.contains(&to.0))
    };
    source.names.iter().filter(is_wrong).map(ToString::to_string).collect()
}

/// Crates that a room names though they belong to another.
fn out_of_their_rooms(source: &Source) -> Vec<String> {
    let is_wrong = |name: &&Name| {
        ONLY_IN
            .iter()
            .any(|(crate_name, rooms)| name.is_below(crate_name) && !rooms.iter().any(|room| name.is_said_in(room)))
    };
    source.names.iter().filter(is_wrong).map(ToString::to_string).collect()
}

/// Imports that hide what they name, and crates that a room hands to others.
fn hidden(source: &Source) -> Vec<String> {
    let globs = source.globs.iter().map(|name| format!("{name}::*"));
    let is_owned = |name: &&Name| ONLY_IN.iter().any(|(owned, _)| name.path[0] == *owned);
    let passed_on = source.passed_on.iter().filter(is_owned).filter(|name| !name.is_said_in("gateway::local"));
    globs.chain(passed_on.map(|name| format!("{name} and passes it on"))).collect()
}

/// Readings of the process's environment.
fn readings_of_the_environment(source: &Source) -> Vec<String> {
    let reads = ["std::env::var", "std::env::var_os", "std::env::vars", "std::env::vars_os"];
    source.names.iter().filter(|name| reads.iter().any(|read| name.is_below(read))).map(ToString::to_string).collect()
}

/// Measurements that no event takes: what is recorded has a fact behind it.
fn measurements_without_an_event(source: &Source) -> Vec<String> {
    let is_wrong = |name: &&Name| name.is_below("mlx_manager_signal::metric") && !name.is_said_in("cli::metrics");
    source.names.iter().filter(is_wrong).map(ToString::to_string).collect()
}

/// What is wrong with files as such.
fn untidy(files: &Files, tests: impl Fn(&str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in files {
        if text.lines().count() > 600 {
            broken.push(format!("{path} has more than 600 lines"));
        }
        if !tests(path) && !text.starts_with("//!") {
            broken.push(format!("{path} does not begin with what it is"));
        }
        if ["utils", "common", "helpers", "types"].iter().any(|name| path.ends_with(&format!("/{name}.rs"))) {
            broken.push(format!("{path} is not named by its content"));
        }
    }
    broken
}

/// Dependencies that a manifest names and the map doesn't allow. `owner` is the crate's name here.
fn beyond_the_map(owner: &str, manifest: &str, allowed: &[&str]) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let mut broken = Vec::new();
    let platforms = manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(|table| table.values());
    let tables = std::iter::once(&manifest).chain(platforms.filter_map(toml::Value::as_table));
    for (section, table) in tables.flat_map(|table| table.iter()).filter(|(key, _)| key.ends_with("dependencies")) {
        for (dependency, settings) in table.as_table().unwrap() {
            let is_strange = match dependency.strip_prefix("mlx-manager") {
                Some(ours) => !allowed.contains(&ours.trim_start_matches('-')),
                None if section == "dev-dependencies" => false,
                None => OWNED.iter().any(|(name, owners)| name == dependency && !owners.contains(&owner)),
            };
            if is_strange {
                broken.push(format!("{owner} names {dependency} in its {section}"));
            }
            // By another name it would be none of the above.
            if settings.get("package").is_some() {
                broken.push(format!("{owner} renames a package to {dependency} in its {section}"));
            }
        }
    }
    broken
}

#[test]
fn each_manifest_names_what_the_map_allows() {
    let mut broken = Vec::new();
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(format!("{ROOT}/crates/{name}/Cargo.toml")).unwrap();
        broken.extend(beyond_the_map(name, &manifest, allowed));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} has lints of its own");
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            assert!(manifest.contains(&format!("\n{key}.workspace = true")), "{name} has a {key} of its own");
        }
    }
    must_be_empty(&broken);
    let folders = fs::read_dir(format!("{ROOT}/crates")).unwrap();
    assert_eq!(folders.count(), CRATES.len(), "a crate that is not on the map");
    let everything: Vec<&str> = CRATES.iter().map(|(name, _)| *name).collect();
    let manifest = fs::read_to_string(format!("{ROOT}/Cargo.toml")).unwrap();
    must_be_empty(&beyond_the_map("mlx-manager", &manifest, &everything));
    let shared = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    assert!(!shared.contains("package = "), "the workspace renames a package");

    let planted = "[dependencies]\nmlx-manager-engine.workspace = true\nserde.workspace = true\n\
                   [target.'cfg(unix)'.dependencies]\nsqlx = \"1\"\n[dev-dependencies]\ntoml = \"1\"";
    assert_eq!(beyond_the_map("dialect", planted, &["llm"]).len(), 2);
    let renamed = "[dependencies]\ndb = { package = \"sqlx\" }\n[dev-dependencies]\nmlx-manager = { path = \"../..\" }";
    assert_eq!(beyond_the_map("dialect", renamed, &["llm"]).len(), 2);
}

#[test]
fn rooms_name_only_rooms_below_them() {
    let package = package();
    assert!(package.files.len() > 50 && package.names.len() > 1000, "the walk finds the sources");
    must_be_empty(&against_the_arrows(&package, "", &ROOMS));
    must_be_empty(&against_the_arrows(&package, "gateway", &GATEWAY));

    let broken = planted(&[
        ("src/lib.rs", "mod store; mod gateway; mod manager;"),
        ("src/store.rs", "use crate::{gateway::{self as wing, api::Thing}, store::Other};"),
        ("src/gateway/mod.rs", "pub mod api; mod cloud;"),
        ("src/gateway/api.rs", "use super::super::manager; fn f() { tokio::select! { _ = super::cloud::g() => {} } }"),
        (
            "src/gateway/cloud.rs",
            "use super::*; type T = super::api::Thing; #[cfg(test)] mod tests { use super::super::api; }",
        ),
        ("src/manager.rs", "mod models { use super::super::store::Store; }"),
    ]);
    let wings = against_the_arrows(&broken, "", &ROOMS);
    assert_eq!(wings.len(), 4, "{wings:?}");
    let inside = against_the_arrows(&broken, "gateway", &GATEWAY);
    assert_eq!(inside, ["src/gateway/cloud.rs names crate::gateway::api::Thing"]);
}

#[test]
fn crates_stay_in_their_rooms() {
    must_be_empty(&out_of_their_rooms(&package()));

    let broken = planted(&[
        ("src/lib.rs", "mod app; mod http; mod store;"),
        (
            "src/app.rs",
            "use {mlx_manager_telemetry::Telemetry, sqlx::{self as database}}; #[derive(clap::Parser)] struct S; fn f() { use tower_http as t; t::trace::new() }",
        ),
        ("src/http/mod.rs", "mod stack; use hyper::Request;"),
        ("src/http/stack.rs", "use mlx_manager_telemetry as told; fn f(url: reqwest::Url) { told::log::build() }"),
        (
            "src/store.rs",
            "fn f() { sqlx::query(\"\") } #[cfg(test)] fn g(x: hyper::X) {} macro_rules! m { () => { ::reqwest::get() } }",
        ),
    ]);
    let found = out_of_their_rooms(&broken);
    assert_eq!(found.len(), 8, "{found:?}");
}

#[test]
fn nothing_is_named_unseen() {
    let files = everything();
    let roots = CRATES.iter().map(|(name, _)| format!("crates/{name}/src/lib.rs")).chain(["src/lib.rs".to_owned()]);
    must_be_empty(&roots.flat_map(|root| hidden(&read(&files, &root))).collect::<Vec<_>>());
    let mapped: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let lost: Vec<_> = package().rooms.into_iter().filter(|room| !mapped.contains(&room.as_str())).collect();
    assert!(lost.is_empty(), "rooms that are not on the map: {lost:?}");

    let broken = planted(&[
        ("src/lib.rs", "mod store; mod glue; pub(crate) use sqlx; extern crate reqwest as web;"),
        ("src/store.rs", "use crate::*; use std::env::*;"),
        ("src/glue.rs", ""),
    ]);
    assert_eq!(hidden(&broken).len(), 3, "{:?}", hidden(&broken));
    assert!(broken.rooms.contains("glue"));
    assert_eq!(out_of_their_rooms(&broken).len(), 2, "{:?}", out_of_their_rooms(&broken));
}

#[test]
fn the_environment_is_read_in_config_only() {
    let files = everything();
    let others =
        CRATES.iter().filter(|(name, _)| *name != "config").map(|(name, _)| format!("crates/{name}/src/lib.rs"));
    let roots = others.chain(["src/lib.rs".to_owned(), "src/main.rs".to_owned()]);
    must_be_empty(&roots.flat_map(|root| readings_of_the_environment(&read(&files, &root))).collect::<Vec<_>>());

    let broken = planted(&[("src/lib.rs", "use std::{env::{self, temp_dir}}; fn f() { env::var_os(\"HOME\") }")]);
    assert_eq!(readings_of_the_environment(&broken), ["src/lib.rs names std::env::var_os"]);
}

#[test]
fn every_measurement_has_an_event() {
    let files = everything();
    for root in ["src/lib.rs", "crates/engine/src/lib.rs"] {
        must_be_empty(&measurements_without_an_event(&read(&files, root)));
    }
    let broken = planted(&[
        ("src/lib.rs", "mod app; mod cli;"),
        ("src/app.rs", "use mlx_manager_signal as signal; fn f() { signal::metric::add(1) }"),
        ("src/cli/mod.rs", "mod metrics;"),
        ("src/cli/metrics.rs", "use mlx_manager_signal::metric::name;"),
    ]);
    assert_eq!(measurements_without_an_event(&broken), ["src/app.rs names mlx_manager_signal::metric::add"]);
}

/// The engine's crate is the switch; the package asks for the feature where local models are mounted, and nowhere else.
#[test]
fn the_feature_is_asked_for_in_one_place() {
    let asks = |files: &Files| -> BTreeMap<String, usize> {
        let count = |text: &str| text.matches("feature = \"mlx\"").count();
        files.iter().map(|(path, text)| (path.clone(), count(text))).filter(|(_, count)| *count > 0).collect()
    };
    let found = asks(&everything());
    assert!(found.keys().all(|path| path.starts_with("src/gateway/local")), "{found:?}");
    assert!(found.values().sum::<usize>() <= 3, "{found:?}");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let files = everything();
    let roots: Vec<String> = CRATES.iter().map(|(name, _)| format!("crates/{name}/src/lib.rs")).collect();
    let roots = roots.iter().map(String::as_str).chain(["src/lib.rs", "src/main.rs"]);
    let known: Vec<Source> = roots.map(|root| read(&files, root)).collect();
    let lost: Vec<&String> =
        files.keys().filter(|path| !known.iter().any(|source| source.files.contains(*path))).collect();
    assert!(lost.is_empty(), "no module declares {lost:?}");
    let of_tests = |path: &str| path.ends_with("/tests.rs") || path.contains("/tests/");
    must_be_empty(&untidy(&files, of_tests));

    let broken = Files::from([
        ("src/long.rs".to_owned(), "//! Long.\n".repeat(601)),
        ("src/mute.rs".to_owned(), "use a;".to_owned()),
        ("src/utils.rs".to_owned(), "//! Things.".to_owned()),
    ]);
    assert_eq!(untidy(&broken, of_tests).len(), 3);
}

fn planted(files: &[(&str, &str)]) -> Source {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    read(&files, "src/lib.rs")
}
