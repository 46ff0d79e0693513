//! What a decoder opens and finds: a table of the file, and a value in one.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{problem::Place, schema::Key, setting::Raw};

/// A table being read.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    /// `log.sinks[1]`
    pub(super) path: String,
    pub(super) keys: &'static [Key],
    pub(super) table: DeTable<'a>,
    /// Where a problem with a missing key is shown.
    pub(super) place: Place,
    /// It isn't a table at all, which was reported; then nothing is missing in it.
    pub(super) broken: bool,
}

impl Section<'_> {
    /// Whether it stands in the user's own file.
    pub(super) fn is_from_user(&self) -> bool {
        self.place.is_in_file()
    }

    /// Whether the user wrote this key.
    pub(super) fn has(&self, key: &Key) -> bool {
        get(&self.table, key.name).is_some()
    }

    /// The keys that are written in it, with the range of each key.
    pub(super) fn written(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.table.iter().map(|(key, _)| (key.get_ref().as_ref(), key.span()))
    }

    /// The plain strings of a list, as written.
    pub(super) fn strings(&self, key: &Key) -> impl Iterator<Item = &str> {
        let array = get(&self.table, key.name).and_then(|value| value.get_ref().as_array());
        array.into_iter().flat_map(|array| array.iter()).filter_map(|item| item.get_ref().as_str())
    }

    /// A key's full name.
    pub(super) fn path_of(&self, key: &Key) -> String {
        self.path_of_name(key.name)
    }

    /// The full name of a key that may have any name.
    pub(super) fn path_of_name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// A value that was found.
#[derive(Debug, Clone)]
pub(super) struct Found<'a> {
    pub(super) path: String,
    pub(super) raw: Raw<'a>,
    pub(super) place: Place,
    pub(super) variables: Vec<String>,
    /// The variable that is all of it.
    pub(super) lone_variable: Option<String>,
}

/// What is said of a value that isn't allowed.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    /// As it follows "allowed: ".
    pub(super) allowed: &'a str,
    /// What to do about it.
    pub(super) hint: Option<String>,
    /// Whether the value must not be repeated.
    pub(super) secret: bool,
}

/// A problem was recorded in place of the value.
pub(super) struct Reported;

/// The value of a key, whatever it is.
pub(super) fn get<'t, 'a>(table: &'t DeTable<'a>, name: &str) -> Option<&'t Spanned<DeValue<'a>>> {
    table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
}
