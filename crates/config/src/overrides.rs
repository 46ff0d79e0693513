//! Values that beat the file's, from the command line and the environment, and what is said of one that no key takes.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeArray, DeValue};

use super::{
    LoadOptions,
    problem::{Place, Problem},
    schema::TABLES,
    setting::{nearest, suggest},
};

/// A value that beats the file's.
#[derive(Debug, Clone)]
pub(super) struct Overlay<'a> {
    pub(super) text: &'a str,
    pub(super) place: Place,
}

impl<'a> Overlay<'a> {
    /// The value as a list, which is written as in the file: `["a", "b"]`.
    pub(super) fn list(&self) -> Option<DeArray<'a>> {
        match DeValue::parse(self.text).ok()?.into_inner() {
            DeValue::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// What beats the file, by key.
pub(super) fn overlays(options: &LoadOptions) -> BTreeMap<String, Overlay<'_>> {
    let mut overlays = BTreeMap::new();
    // The later ones beat the earlier.
    for (variable, key) in [
        ("LOG_LEVEL", "log.level"),
        ("MLX_MANAGER_LOG_LEVEL", "log.level"),
        ("LOG_DIR", "log.dir"),
        ("MLX_MANAGER_LOG_DIR", "log.dir"),
        ("LOGFIRE_ENVIRONMENT", "telemetry.environment"),
    ] {
        if let Some(text) = options.environment.set(variable) {
            overlays.insert(key.to_owned(), Overlay { text, place: Place::Environment(variable.to_owned()) });
        }
    }
    for (key, text) in &options.overrides {
        overlays.insert(key.clone(), Overlay { text, place: Place::CommandLine });
    }
    overlays
}

/// Says of a key of the command line why it took no value. `asked` are all keys that would have taken one.
pub(super) fn unused(key: &str, asked: &BTreeSet<String>) -> Problem {
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
