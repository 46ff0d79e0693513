//! Writes `config.example.toml` from the tables' own descriptions.
//!
//! The file is also the built-in default: a daemon without a config file runs what it says.

use super::{
    schema::{Entry, Key, Table},
    tables::TABLES,
};

/// The example file, which is the configuration of a daemon that was given none.
pub const EXAMPLE: &str = include_str!("../../../config.example.toml");

const PREFACE: &str = "\
# mlx-manager's configuration. Every value below is the default; keep what you change, leave out the rest.
#
# Found at --config, $MLX_MANAGER_CONFIG, ./config.toml or ~/.config/mlx-manager/config.toml; without any of them
# the daemon runs exactly this file. `mlx-manager check --show` prints what is in effect and where it came from.
#
# ${VAR} and ${VAR:-default} are replaced in strings ($${ is a plain ${); in place of a number or a boolean write
# \"${VAR:-1}\". Sizes: \"10 MB\" (10^6), \"32 MiB\" (2^20). Durations: \"250 ms\", \"30 s\", \"7 days\".
# Relative paths start at this file's folder. A list of tables ([[...]]) that is left out keeps the entries shown
# here; one that is there is taken as written.
";

/// The column at which comments start where the line is short enough.
const COMMENT_COLUMN: usize = 31;
/// The longest line that still takes its comment at the end.
const WIDTH: usize = 118;

/// The text of `config.example.toml`.
pub fn write_example() -> String {
    let mut text = String::from(PREFACE);
    for table in TABLES {
        match table.entries {
            None => write_single(&mut text, table),
            Some(entries) => write_array(&mut text, table, entries),
        }
    }
    text
}

fn write_single(text: &mut String, table: &Table) {
    text.push('\n');
    write_line(text, &format!("[{}]", table.header), table.doc);
    for key in table.keys {
        if let Some(default) = key.default {
            write_line(text, &format!("{} = {default}", key.name), key.doc);
        } else if let Some(sample) = key.sample {
            write_line(text, &format!("# {} = {sample}", key.name), key.doc);
        }
    }
}

fn write_array(text: &mut String, table: &Table, entries: &[Entry]) {
    let mut explained: Vec<&str> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        text.push('\n');
        write_line(text, &format!("[[{}]]", table.header), if index == 0 { table.doc } else { "" });
        for (key, value) in *entry {
            write_line(text, &format!("{} = {value}", key.name), explain(key, &mut explained));
        }
    }
    // What no default entry uses is shown once, under the last of them.
    let used = |key: &&Key| entries.iter().any(|entry| entry.iter().any(|(used, _)| used.name == key.name));
    for key in table.keys.iter().filter(|key| !used(key)) {
        if let Some(sample) = key.sample {
            write_line(text, &format!("# {} = {sample}", key.name), key.doc);
        }
    }
    for (index, entry) in table.suggestions.iter().enumerate() {
        text.push('\n');
        let doc = if entries.is_empty() && index == 0 { table.doc } else { "" };
        write_line(text, &format!("# [[{}]]", table.header), doc);
        for (key, value) in *entry {
            write_line(text, &format!("# {} = {value}", key.name), explain(key, &mut explained));
        }
    }
}

/// A key's doc line, the first time it is met.
fn explain(key: &Key, explained: &mut Vec<&'static str>) -> &'static str {
    if explained.contains(&key.name) {
        return "";
    }
    explained.push(key.name);
    key.doc
}

fn write_line(text: &mut String, line: &str, comment: &str) {
    if comment.is_empty() {
        text.push_str(line);
    } else if line.len().max(COMMENT_COLUMN) + 2 + comment.len() <= WIDTH {
        text.push_str(&format!("{line:<COMMENT_COLUMN$}# {comment}"));
        if line.len() >= COMMENT_COLUMN {
            // The padding collapsed; a comment needs a space in front of it to be read easily.
            let cut = text.len() - comment.len() - 2;
            text.insert(cut, ' ');
        }
    } else {
        text.push_str(&format!("# {comment}\n{line}"));
    }
    text.push('\n');
}
