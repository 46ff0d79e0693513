//! Values that beat the file's, from the command line and the environment, and what is said of one that no key takes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Environment,
    decode::Decoder,
    log,
    overlay::Overlay,
    problem::{Place, Problem},
    setting::{nearest, suggest},
    tables::TABLES,
    telemetry,
};

/// What beats the file, by key.
pub(super) fn overlays<'a>(
    environment: &'a Environment,
    command_line: &'a [(String, String)],
) -> BTreeMap<String, Overlay<'a>> {
    let mut overlays = BTreeMap::new();
    // The later ones beat the earlier.
    for (variable, key) in [
        ("LOG_LEVEL", log::TABLE.path_of(&log::LEVEL)),
        ("MLX_MANAGER_LOG_LEVEL", log::TABLE.path_of(&log::LEVEL)),
        ("LOG_DIR", log::TABLE.path_of(&log::DIR)),
        ("MLX_MANAGER_LOG_DIR", log::TABLE.path_of(&log::DIR)),
        ("LOGFIRE_ENVIRONMENT", telemetry::TABLE.path_of(&telemetry::ENVIRONMENT)),
    ] {
        if let Some(text) = environment.set(variable) {
            overlays.insert(key, Overlay { text, place: Place::Environment(variable.to_owned()) });
        }
    }
    for (key, text) in command_line {
        overlays.insert(key.clone(), Overlay { text, place: Place::CommandLine });
    }
    overlays
}

/// Says of each value of the command line that no key took why.
pub(super) fn report_unused(decoder: &mut Decoder<'_>) {
    let given = decoder.overlays.iter().filter(|(_, overlay)| overlay.place == Place::CommandLine);
    let unused = given.filter(|(key, _)| !decoder.asked.contains(*key));
    let problems: Vec<Problem> = unused.map(|(key, _)| unused_key(key, &decoder.asked)).collect();
    decoder.problems.extend(problems);
}

/// `asked` are all keys that would have taken a value.
fn unused_key(key: &str, asked: &BTreeSet<String>) -> Problem {
    let below =
        |mark: char| asked.iter().find(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with(mark)));
    let list = TABLES.iter().any(|table| table.header == key && table.entries.is_some());
    let (message, hint) = if list {
        let example = below('[').map(|example| format!("set a value of an entry, such as `{example}`, or "));
        let hint = format!("{}write the entries in the file", example.unwrap_or_default());
        ("is a list of tables, which can't be set on the command line", Some(hint))
    } else if let Some(example) = below('.') {
        ("is a table, which can't be set on the command line", Some(format!("set a value in it, such as `{example}`")))
    } else {
        ("is no key of this configuration", hint(key, asked))
    };
    Problem {
        key: key.to_owned(),
        message: format!("`{key}` {message}"),
        label: String::new(),
        hint,
        place: Place::CommandLine,
        relation: false,
    }
}

fn hint(key: &str, asked: &BTreeSet<String>) -> Option<String> {
    let pairs = || asked.iter().filter_map(|other| other.rsplit_once('.'));
    let Some((table, name)) = key.rsplit_once('.') else {
        let same = pairs().filter(|(_, name)| *name == key).map(|(table, name)| format!("`{table}.{name}`"));
        let same: Vec<String> = same.take(3).collect();
        let near = || suggest(key, TABLES.iter().map(|table| table.header));
        return if same.is_empty() { near() } else { Some(format!("did you mean {}?", same.join(" or "))) };
    };
    let siblings = || pairs().filter(|(other, _)| *other == table).map(|(_, name)| name);
    if siblings().next().is_some() {
        let near = nearest(name, siblings()).map(|near| format!("did you mean `{table}.{near}`?"));
        return near.or_else(|| Some(format!("known there: {}", siblings().collect::<Vec<_>>().join(", "))));
    }
    let list = table.split_once('[').map(|(list, _)| list);
    if let Some(list) = list.filter(|list| TABLES.iter().any(|table| table.header == *list)) {
        let entry = |other: &'_ str| other.strip_prefix(list).is_some_and(|rest| rest.starts_with('['));
        let mut entries: Vec<&str> = pairs().map(|(table, _)| table).filter(|table| entry(table)).collect();
        entries.retain(|entry| entry.ends_with(']'));
        entries.dedup();
        let entries = if entries.is_empty() { "none".to_owned() } else { entries.join(", ") };
        return Some(format!("entries of `{list}`: {entries}"));
    }
    let near = nearest(table, pairs().map(|(table, _)| table))?;
    let names = pairs().filter(|(other, _)| *other == near).map(|(_, name)| name);
    nearest(name, names).map(|name| format!("did you mean `{near}.{name}`?"))
}
