//! How a section describes itself: its keys, their defaults as TOML text, and one line on each.
//!
//! The decoder takes defaults from here and the example file is written from here, so the two can't drift.

/// One key of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// As written in the file.
    pub(super) name: &'static str,
    /// Its default as TOML text; `None` when it may be left out or has to be given.
    pub(super) default: Option<&'static str>,
    /// A value to show, commented out, in the example, for a key without a default.
    pub(super) sample: Option<&'static str>,
    /// What it does; may be empty where the name says it all.
    pub(super) doc: &'static str,
    /// The only `kind` of entry that has it.
    pub(super) only: Option<&'static str>,
}

impl Key {
    /// A key with a default.
    pub(super) const fn new(name: &'static str, default: &'static str, doc: &'static str) -> Self {
        Self { name, default: Some(default), sample: None, doc, only: None }
    }

    /// A key that has to be given, or whose absence means something.
    pub(super) const fn bare(name: &'static str, doc: &'static str) -> Self {
        Self { name, default: None, sample: None, doc, only: None }
    }

    /// A value for the example, which is commented out there.
    pub(super) const fn sample(mut self, sample: &'static str) -> Self {
        self.sample = Some(sample);
        self
    }

    /// The same key of a table that lies over another one: left out, it has that one's value and needs no words of its own.
    pub(super) const fn inherited(mut self) -> Self {
        self.default = None;
        self.doc = "";
        self
    }

    /// Restricts the key to entries of one `kind`.
    pub(super) const fn only(mut self, kind: &'static str) -> Self {
        self.only = Some(kind);
        self
    }
}

/// The keys of one entry of an array of tables, with their values as TOML text.
pub(super) type Entry = &'static [(Key, &'static str)];

/// One table of the file, or an array of tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// The name between the brackets.
    pub(super) header: &'static str,
    /// A line above it.
    pub(super) doc: &'static str,
    /// Its keys.
    pub(super) keys: &'static [Key],
    /// `None` for a plain table; for an array the entries that stand when the user's file has none.
    pub(super) entries: Option<&'static [Entry]>,
    /// Entries that the example shows commented out.
    pub(super) suggestions: &'static [Entry],
}

impl Table {
    /// A plain table.
    pub(super) const fn single(header: &'static str, doc: &'static str, keys: &'static [Key]) -> Self {
        Self { header, doc, keys, entries: None, suggestions: &[] }
    }

    /// An array of tables.
    pub(super) const fn array(
        header: &'static str,
        doc: &'static str,
        keys: &'static [Key],
        entries: &'static [Entry],
    ) -> Self {
        Self { header, doc, keys, entries: Some(entries), suggestions: &[] }
    }

    /// A key's full name: `server.listen`.
    pub(super) fn path_of(&self, key: &Key) -> String {
        format!("{}.{}", self.header, key.name)
    }

    /// The full name of a key of one entry: `log.sinks[1].file`.
    pub(super) fn path_in_entry(&self, index: usize, key: &Key) -> String {
        format!("{}[{index}].{}", self.header, key.name)
    }
}
