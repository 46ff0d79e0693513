//! Walks the parsed file and collects every problem on the way, and every effective value with its origin.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::PathBuf,
};

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    Environment, Secret,
    overlay::Overlay,
    problem::{Place, Problem, line_and_column},
    redaction::{collect_unknown, is_secret_name, redact_url},
    schema::{Key, Table},
    section::{Found, Refusal, Reported, Section, get},
    setting::{Name, Raw, Setting, nearest, suggest},
    show::Shown,
    substitute::{SubstituteError, lone_variable, substitute},
};

/// Reads sections, and keeps what it met.
pub(super) struct Decoder<'a> {
    pub(super) environment: &'a Environment,
    /// The user's text.
    text: &'a str,
    /// The folder of the user's file; the working directory without one.
    folder: PathBuf,
    user: DeTable<'a>,
    builtin: DeTable<'a>,
    pub(super) overlays: BTreeMap<String, Overlay<'a>>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// What stands in the way of the daemon, and of no other command.
    pub(super) obstacles: Vec<Problem>,
    pub(super) shown: Vec<Shown>,
    /// What the file says, as it stands there, of keys whose value comes from elsewhere.
    pub(super) beaten: Vec<(String, Secret)>,
    /// Where tables in braces stand.
    pub(super) places: BTreeMap<String, Place>,
    /// Every key that was looked up.
    pub(super) asked: BTreeSet<String>,
    /// What a diagnostic must not show.
    pub(super) secrets: Vec<Range<usize>>,
}

/// What a decoder reads from.
pub(super) struct Sources<'a> {
    pub(super) environment: &'a Environment,
    /// The user's text; empty when there is no file.
    pub(super) text: &'a str,
    pub(super) folder: PathBuf,
    pub(super) user: DeTable<'a>,
    pub(super) builtin: DeTable<'a>,
    pub(super) overlays: BTreeMap<String, Overlay<'a>>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(sources: Sources<'a>) -> Self {
        let Sources { environment, text, folder, user, builtin, overlays } = sources;
        Self {
            environment,
            text,
            folder,
            user,
            builtin,
            overlays,
            problems: Vec::new(),
            warnings: Vec::new(),
            obstacles: Vec::new(),
            shown: Vec::new(),
            beaten: Vec::new(),
            places: BTreeMap::new(),
            asked: BTreeSet::new(),
            secrets: Vec::new(),
        }
    }

    /// Refuses keys at the top, and in the tables that only hold tables, that aren't known.
    pub(super) fn check_headers(&mut self, tables: &[Table]) {
        let user = self.user.clone();
        self.check_header_level("", &user, tables);
    }

    fn check_header_level(&mut self, prefix: &str, table: &DeTable<'a>, tables: &[Table]) {
        let child = |header: &'static str| {
            let rest = if prefix.is_empty() { Some(header) } else { header.strip_prefix(prefix)?.strip_prefix('.') };
            rest.map(|rest| rest.split('.').next().unwrap_or(rest))
        };
        let names: Vec<&str> = tables.iter().filter_map(|table| child(table.header)).collect();
        for (key, value) in table.iter() {
            let name = key.get_ref().as_ref();
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            if !names.contains(&name) {
                collect_unknown(key.get_ref(), value, &mut self.secrets);
                let hint = suggest(name, names.iter().copied());
                self.unknown_key(&path, key.span(), hint, names.clone());
            } else if !tables.iter().any(|table| table.header == path) {
                match value.get_ref() {
                    DeValue::Table(table) => self.check_header_level(&path, table, tables),
                    _ => {
                        self.report(&path, self.place(value.span()), "must be a table", &format!("allowed: [{path}…]"))
                    }
                }
            }
        }
    }

    fn unknown_key(&mut self, path: &str, span: Range<usize>, hint: Option<String>, mut names: Vec<&str>) {
        names.sort_unstable();
        names.dedup();
        let place = self.place(span);
        self.problems.push(Problem {
            key: path.to_owned(),
            message: format!("unknown key `{path}`"),
            label: hint.clone().unwrap_or_else(|| "unknown here".to_owned()),
            hint: Some(format!("known here: {}", names.join(", "))),
            place,
            relation: false,
        });
    }

    /// Opens a table that may be missing.
    pub(super) fn table(&mut self, table: &Table) -> Section<'a> {
        let found = find(&self.user, table.header).cloned();
        self.section(table.header.to_owned(), table.keys, found, true)
    }

    /// The entries of an array of tables: the user's if there are any, else those of the built-in default.
    pub(super) fn entries(&mut self, table: &Table) -> Vec<Section<'a>> {
        let user = find(&self.user, table.header).cloned();
        let from_user = user.is_some();
        let Some(value) = user.or_else(|| find(&self.builtin, table.header).cloned()) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            let place = self.place(value.span());
            self.report(table.header, place, "must be a list of tables", &format!("allowed: [[{}]]", table.header));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{index}]", table.header);
            sections.push(self.section(path, table.keys, Some(item.clone()), from_user));
        }
        sections
    }

    /// Opens a table within a table. `None` when it is absent; the default counts as present.
    pub(super) fn nested(&mut self, section: &Section<'a>, key: &Key, keys: &'static [Key]) -> Option<Section<'a>> {
        let path = section.path_of(key);
        let (value, from_user) = match get(&section.table, key.name) {
            Some(value) => (value.clone(), section.is_from_user()),
            None => match section.keys.iter().find(|known| known.name == key.name)?.default {
                Some(default) => (parse_default(default)?, false),
                // What the command line says of its keys makes a table of its own.
                None if self.given(section, key) => return Some(self.section(path, keys, None, false)),
                None => return None,
            },
        };
        Some(self.section(path, keys, Some(value), from_user))
    }

    fn section(
        &mut self,
        path: String,
        keys: &'static [Key],
        value: Option<Spanned<DeValue<'a>>>,
        from_user: bool,
    ) -> Section<'a> {
        let place = match &value {
            Some(value) if from_user => self.place(value.span()),
            _ => Place::Default,
        };
        let mut broken = false;
        let table = match value.map(Spanned::into_inner) {
            Some(DeValue::Table(table)) => table,
            None => DeTable::new(),
            Some(_) => {
                self.report(&path, place.clone(), "must be a table", "allowed: a table");
                broken = true;
                DeTable::new()
            }
        };
        Section { path, keys, table, place, broken }
    }

    /// Refuses the keys of a section that it doesn't have. `children` are the names of tables within it.
    pub(super) fn check_keys(&mut self, section: &Section<'a>, children: &[&str]) {
        let mut names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
        names.extend(children);
        for (key, value) in section.table.iter() {
            let (name, span) = (key.get_ref().as_ref(), key.span());
            if !names.contains(&name) {
                // Whatever it was meant to be, it may be a secret under a misspelt name.
                collect_unknown(key.get_ref(), value, &mut self.secrets);
                let hint = nearest(name, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
                self.unknown_key(&section.path_of_name(name), span, hint, names.clone());
            }
        }
    }

    /// Refuses keys that belong to another `kind` of entry.
    pub(super) fn check_kind(&mut self, section: &Section<'a>, kind: &str) {
        for (name, span) in section.written() {
            let only = section.keys.iter().find(|key| key.name == name).and_then(|key| key.only);
            if let Some(only) = only.filter(|only| *only != kind) {
                let place = if section.is_from_user() { self.place(span) } else { Place::Default };
                let path = section.path_of_name(name);
                self.report(
                    &path,
                    place,
                    &format!("is only for kind = \"{only}\""),
                    &format!("this one is \"{kind}\""),
                );
            }
        }
    }

    /// The value of a key: from the command line, the environment, the file, or its default.
    pub(super) fn find(&mut self, section: &Section<'a>, key: &Key) -> Result<Option<Found<'a>>, Reported> {
        self.find_named(section, key.name)
    }

    fn find_named(&mut self, section: &Section<'a>, name: &str) -> Result<Option<Found<'a>>, Reported> {
        let path = section.path_of_name(name);
        self.asked.insert(path.clone());
        if let Some(Overlay { text, place }) = self.overlays.get(&path).cloned() {
            if let Some(value) = get(&section.table, name).filter(|_| section.is_from_user()) {
                let said = self.text.get(value.span()).unwrap_or_default();
                self.beaten.push((path.clone(), Secret::new(said)));
            }
            let raw = Raw::Text { text: text.to_owned(), substituted: true };
            let (variables, lone_variable) = (Vec::new(), None);
            return Ok(Some(Found { path, raw, place, variables, lone_variable }));
        }
        if let Some(value) = get(&section.table, name) {
            let place = if section.is_from_user() { self.place(value.span()) } else { Place::Default };
            return self.found(path, value.clone(), place).map(Some);
        }
        let default = section.keys.iter().find(|key| key.name == name).and_then(|key| key.default);
        match default.and_then(parse_default) {
            Some(value) => self.found(path, value, Place::Default).map(Some),
            None => Ok(None),
        }
    }

    /// A value of the file, with its variables replaced.
    fn found(&mut self, path: String, value: Spanned<DeValue<'a>>, place: Place) -> Result<Found<'a>, Reported> {
        let mut variables = Vec::new();
        let lone = value.get_ref().as_str().and_then(lone_variable).map(str::to_owned);
        let raw = match value.into_inner() {
            DeValue::String(text) => match substitute(&text, self.environment) {
                Ok(done) => {
                    let substituted = !done.variables.is_empty();
                    variables = done.variables;
                    Raw::Text { text: done.text, substituted }
                }
                Err(error) => {
                    self.report_substitution(&path, place, error);
                    return Err(Reported);
                }
            },
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => Raw::Integer(number),
                Err(_) => Raw::Float(f64::INFINITY),
            },
            DeValue::Float(float) => Raw::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(boolean) => Raw::Boolean(boolean),
            DeValue::Datetime(datetime) => Raw::Datetime(datetime.to_string()),
            DeValue::Array(array) => Raw::Array(array),
            DeValue::Table(_) => Raw::Table,
        };
        Ok(Found { path, raw, place, variables, lone_variable: lone })
    }

    fn report_substitution(&mut self, path: &str, place: Place, error: SubstituteError) {
        let (message, label, hint) = match error {
            SubstituteError::Missing(name) => (
                format!("`{path}` needs the environment variable {name}, which isn't set"),
                format!("{name} isn't set"),
                suggest(&name, self.environment.names())
                    .unwrap_or_else(|| format!("set it, or give a default: \"${{{name}:-}}\"")),
            ),
            SubstituteError::Unclosed => (
                format!("`{path}` has a `${{` without its `}}`"),
                "allowed: ${VAR} or ${VAR:-default}".to_owned(),
                "write $${ for a plain ${".to_owned(),
            ),
            SubstituteError::BadName(name) => (
                format!("`{path}` names a variable {name:?}"),
                "allowed: letters, digits and `_`, not starting with a digit".to_owned(),
                "allowed forms: ${VAR} or ${VAR:-default}; write $${ for a plain ${".to_owned(),
            ),
        };
        self.problems.push(Problem { key: path.to_owned(), message, label, hint: Some(hint), place, relation: false });
    }

    /// A typed value; `None` when it is absent, or wrong, which is then recorded.
    pub(super) fn get<T: Setting>(&mut self, section: &Section<'a>, key: &Key) -> Option<T> {
        self.get_named(section, key.name)
    }

    /// The typed value of a key that may have any name.
    pub(super) fn get_named<T: Setting>(&mut self, section: &Section<'a>, name: &str) -> Option<T> {
        let found = self.find_named(section, name).ok().flatten()?;
        self.read(&found)
    }

    /// A typed value that has to be given.
    pub(super) fn required<T: Setting>(&mut self, section: &Section<'a>, key: &Key) -> Option<T> {
        match self.find(section, key) {
            Ok(Some(found)) => self.read(&found),
            Ok(None) if section.broken => None,
            Ok(None) => {
                let path = section.path_of(key);
                self.problems.push(Problem {
                    key: path.clone(),
                    message: format!("`{path}` is missing"),
                    label: format!("`{}` has to be given here", key.name),
                    hint: Some(format!("allowed: {}", T::allowed())),
                    place: section.place.clone(),
                    relation: true,
                });
                None
            }
            Err(Reported) => None,
        }
    }

    /// Reads a value that was found, and keeps it for `check --show`.
    pub(super) fn read<T: Setting>(&mut self, found: &Found<'a>) -> Option<T> {
        match T::read(&found.raw) {
            Ok(value) => {
                let secret = T::SECRET && found.raw.text() != Some("");
                let shown = if secret { "\"***\"".to_owned() } else { redact_url(&found.raw.toml()) };
                self.show(found, shown);
                Some(value)
            }
            Err(hint) => {
                self.refuse(found, Refusal { allowed: &T::allowed(), hint, secret: T::SECRET });
                None
            }
        }
    }

    /// Records that a value isn't what is allowed.
    pub(super) fn refuse(&mut self, found: &Found<'a>, refusal: Refusal<'_>) {
        let Refusal { allowed, hint, secret } = refusal;
        let hidden = secret || found.variables.iter().any(|name| is_secret_name(name));
        let value = if hidden { "this value".to_owned() } else { found.raw.describe() };
        let name = match &found.place {
            Place::Environment(variable) => variable.clone(),
            _ => found.path.clone(),
        };
        self.problems.push(Problem {
            key: found.path.clone(),
            message: format!("`{name}` can't be {}", redact_url(&value)),
            label: format!("allowed: {allowed}"),
            hint,
            place: found.place.clone(),
            relation: false,
        });
    }

    /// A list of strings that are each read as `T`.
    pub(super) fn list<T: Setting>(&mut self, section: &Section<'a>, key: &Key) -> Option<Vec<(T, Found<'a>)>> {
        let found = self.find(section, key).ok().flatten()?;
        let overlay = self.overlays.get(&found.path);
        let hint = overlay.map(|_| "write it as in the file: [\"…\", \"…\"]".to_owned());
        let array = match &found.raw {
            Raw::Array(array) => Some(array.clone()),
            _ => overlay.and_then(Overlay::list),
        };
        let Some(array): Option<DeArray<'a>> = array else {
            let allowed = format!("a list, each of {}", T::allowed());
            self.refuse(&found, Refusal { allowed: &allowed, hint, secret: false });
            return None;
        };
        let mut values = Vec::new();
        let mut texts = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let place = if found.place.is_in_file() { self.place(item.span()) } else { found.place.clone() };
            let path = format!("{}[{index}]", found.path);
            let Ok(item) = self.found(path, item.clone(), place) else { continue };
            match T::read(&item.raw) {
                Ok(value) => {
                    texts.push(item.raw.toml());
                    values.push((value, item));
                }
                Err(hint) => self.refuse(&item, Refusal { allowed: &T::allowed(), hint, secret: T::SECRET }),
            }
        }
        self.show(&found, format!("[{}]", texts.join(", ")));
        Some(values)
    }

    /// A path, with a leading `~/` and its base resolved.
    pub(super) fn path(&mut self, section: &Section<'a>, key: &Key) -> Option<PathBuf> {
        let found = self.find(section, key).ok().flatten()?;
        match found.raw.text() {
            Some(text) if !text.is_empty() && !text.contains('\0') => {
                let path = self.resolve(text, &found);
                self.show(&found, super::setting::quote(&path.to_string_lossy()));
                Some(path)
            }
            _ => {
                self.refuse(&found, Refusal { allowed: "a path", hint: None, secret: false });
                None
            }
        }
    }

    /// Joins a path with its base: the file's folder for what the file says, else the working directory.
    pub(super) fn resolve(&self, text: &str, found: &Found<'a>) -> PathBuf {
        if let (Some(rest), Some(home)) = (text.strip_prefix("~/"), &self.environment.home) {
            return home.join(rest);
        }
        let base = match found.place {
            Place::File { .. } | Place::Default => &self.folder,
            Place::Environment(_) | Place::CommandLine => &self.environment.working_directory,
        };
        // Joining components drops `.` parts, so that two spellings of a path show as one.
        base.join(text).components().collect()
    }

    /// Keeps a value for `check --show`.
    pub(super) fn show(&mut self, found: &Found<'a>, value: String) {
        self.shown.push(Shown {
            key: found.path.clone(),
            value,
            place: found.place.clone(),
            variables: found.variables.clone(),
            said: Secret::new(found.raw.toml()),
        });
    }

    /// Where a key's value stands, if it was read.
    pub(super) fn place_of(&self, key: &str) -> Place {
        let shown = self.shown.iter().rev().find(|shown| shown.key == key).map(|shown| &shown.place);
        shown.or_else(|| self.places.get(key)).cloned().unwrap_or(Place::Default)
    }

    /// Whether a key, or one below it, was said anywhere: in the file, on the command line or in the environment.
    pub(super) fn given(&self, section: &Section<'a>, key: &Key) -> bool {
        let path = section.path_of(key);
        let said = |key: &String| key.strip_prefix(&path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        section.has(key) || self.overlays.keys().any(said)
    }

    /// The keys of a table that are said outside the file, where any name is one.
    pub(super) fn overlaid(&mut self, section: &Section<'a>) -> Vec<(String, Place)> {
        let name = |key: &String| Some(key.strip_prefix(&section.path)?.strip_prefix('.')?.to_owned());
        let overlays = self.overlays.iter();
        let names: Vec<_> = overlays.filter_map(|(key, overlay)| Some((name(key)?, overlay.place.clone()))).collect();
        self.asked.extend(names.iter().map(|(name, _)| section.path_of_name(name)));
        names
    }

    /// An entry's name, which no earlier entry has.
    pub(super) fn unique_name(&mut self, section: &Section<'a>, key: &Key, names: &mut Vec<String>) -> Option<String> {
        let name = self.required::<Name>(section, key)?.0;
        self.check_unique(section, key, &name, names);
        Some(name)
    }

    /// Refuses a name that an earlier entry has, and adds it to the names taken.
    pub(super) fn check_unique(&mut self, section: &Section<'a>, key: &Key, name: &str, names: &mut Vec<String>) {
        if names.iter().any(|known| known == name) {
            let path = section.path_of(key);
            let place = self.place_of(&path);
            self.report_relation(
                &path,
                place,
                &format!("is \"{name}\", a name that is taken"),
                "each name stands once",
            );
        }
        names.push(name.to_owned());
    }

    /// Records a problem of one key: `` `key` message ``.
    pub(super) fn report(&mut self, key: &str, place: Place, message: &str, label: &str) {
        self.problems.push(Problem {
            key: key.to_owned(),
            message: format!("`{key}` {message}"),
            label: label.to_owned(),
            hint: None,
            place,
            relation: false,
        });
    }

    /// Records a problem that follows from several keys.
    pub(super) fn report_relation(&mut self, key: &str, place: Place, message: &str, hint: &str) {
        self.problems.push(relation(key, place, message, hint));
    }

    /// Records something worth knowing that stops nothing.
    pub(super) fn warn(&mut self, key: &str, message: &str, hint: &str) {
        let place = self.place_of(key);
        self.warnings.push(relation(key, place, message, hint));
    }

    /// Records something that keeps the daemon from starting.
    pub(super) fn obstacle(&mut self, key: &str, message: &str, hint: &str) {
        let place = self.place_of(key);
        self.obstacles.push(relation(key, place, message, hint));
    }

    fn place(&self, span: Range<usize>) -> Place {
        let (line, column) = line_and_column(self.text, span.start.min(self.text.len()));
        Place::File { span, line, column }
    }
}

fn relation(key: &str, place: Place, message: &str, hint: &str) -> Problem {
    Problem {
        key: key.to_owned(),
        message: format!("`{key}` {message}"),
        label: String::new(),
        hint: Some(hint.to_owned()),
        place,
        relation: true,
    }
}

/// The value below a dotted header.
fn find<'t, 'a>(table: &'t DeTable<'a>, header: &str) -> Option<&'t Spanned<DeValue<'a>>> {
    match header.split_once('.') {
        None => get(table, header),
        Some((first, rest)) => match get(table, first)?.get_ref() {
            DeValue::Table(table) => find(table, rest),
            _ => None,
        },
    }
}

fn parse_default(text: &'static str) -> Option<Spanned<DeValue<'static>>> {
    DeValue::parse(text).ok()
}
