//! Finds the file, reads it, and makes one checked [`Config`] of it, the environment and the defaults.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::Level as Severity;
use toml::de::DeTable;

use super::{
    Config, EXAMPLE, Environment, Problem, Problems, Secret, Shown, check, cloud, database,
    decode::{Decoder, Sources},
    local, log, metrics, otlp,
    overrides::{overlays, report_unused},
    problem::{Drawn, Place, draw, line_and_column},
    redaction::{Redacted, collect_secret_lines, collect_secrets},
    server,
    tables::TABLES,
    telemetry, traces,
};

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// `--config`
    pub config: Option<PathBuf>,
    /// Values given on the command line, by key (`server.listen`); they beat everything else. Numbers and booleans
    /// are written as text.
    pub overrides: Vec<(String, String)>,
    /// Variables and folders.
    pub environment: Environment,
}

/// A configuration without problems.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the daemon runs by.
    pub config: Config,
    /// The file that was read; `None` when the built-in default is in effect.
    pub file: Option<PathBuf>,
    /// Every effective value with its source, in the file's order.
    pub shown: Vec<Shown>,
    /// What is worth knowing and stops nothing.
    pub warnings: Vec<Problem>,
    /// What keeps the daemon from starting, though the configuration is sound: log files that can't be written.
    pub obstacles: Vec<Problem>,
    beaten: Vec<(String, Secret)>,
    source: Redacted,
}

impl Loaded {
    /// The file's name for people.
    pub fn file_name(&self) -> String {
        self.file.as_ref().map_or_else(|| "built-in default".to_owned(), |file| file.display().to_string())
    }

    /// Where the value that a warning is about came from, in words: `config.toml:12`, `command line`,
    /// `default via ${LOGFIRE_TOKEN}`.
    pub fn source_of(&self, warning: &Problem) -> String {
        let file = self.file_name();
        let shown = self.shown.iter().rev().find(|shown| shown.key == warning.key);
        shown.map_or_else(|| warning.place.describe(&file), |shown| shown.source(&file))
    }

    /// The keys outside of a section that have another value in `other`, or are in one of the two only; those of a plain
    /// section as `[server].listen`.
    pub fn differences(&self, other: &Self, section: &str) -> Vec<String> {
        let ours = |shown: &&Shown| shown.key.strip_prefix(section).is_none_or(|rest| !rest.starts_with(['.', '[']));
        let has = |shown: &Shown, all: &[Shown]| {
            all.iter().any(|other| (&other.key, &other.value, &other.said) == (&shown.key, &shown.value, &shown.said))
        };
        let changed = self.shown.iter().filter(|shown| !has(shown, &other.shown));
        let added = other.shown.iter().filter(|shown| self.shown.iter().all(|ours| ours.key != shown.key));
        let key = |shown: &Shown| match shown.key.rsplit_once('.') {
            Some((table, name)) if !table.contains('[') => format!("[{table}].{name}"),
            _ => shown.key.clone(),
        };
        changed.chain(added).filter(ours).map(key).collect()
    }

    /// What changed in a section of the file since `earlier` and has no effect, because something beats the file: each key
    /// with what does, in words.
    pub fn beaten_changes(&self, earlier: &Self, section: &str) -> Vec<String> {
        let changed = self.beaten.iter().filter(|beaten| !earlier.beaten.contains(beaten));
        let keys = changed.map(|(key, _)| key).filter(|key| key.starts_with(section));
        let by =
            |key: &String| self.shown.iter().find(|shown| shown.key == *key).map(|by| by.source(&self.file_name()));
        keys.map(|key| format!("{key} (by {})", by(key).unwrap_or_default())).collect()
    }

    /// Itself, if nothing keeps the daemon from starting.
    ///
    /// # Errors
    ///
    /// What does, all of it at once.
    pub fn startable(self) -> Result<Self, Problems> {
        match self.obstacles.is_empty() {
            true => Ok(self),
            false => Err(Problems { file: self.file_name(), source: self.source, problems: self.obstacles }),
        }
    }

    /// The warnings as text, with escape sequences for colour if asked; empty when there are none.
    pub fn render_warnings(&self, color: bool) -> String {
        draw(&self.warnings, Severity::WARNING, Drawn { file: &self.file_name(), source: &self.source }, color)
    }
}

/// Loads the configuration: command line over environment over file over default.
///
/// # Errors
///
/// Everything that is wrong with it, at once.
pub fn load(options: &LoadOptions) -> Result<Loaded, Problems> {
    let environment = &options.environment;
    let Some((file, named_by)) = find_file(options) else {
        return load_text("", None, options);
    };
    let shown = file.display();
    let bytes = fs::read(&file)
        .map_err(|error| Problems::bare(format!("the config file `{shown}` can't be read: {error}"), named_by))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count() + 1;
        Problems::bare(format!("the config file `{shown}` isn't UTF-8, first at line {line}"), "save it as UTF-8")
    })?;
    let absolute = environment.working_directory.join(&file);
    load_text(&text, Some(&absolute), options)
}

/// The file in effect, by the search order, and a sentence on who named it.
fn find_file(options: &LoadOptions) -> Option<(PathBuf, &'static str)> {
    let environment = &options.environment;
    let working_directory = &environment.working_directory;
    if let Some(named) = &options.config {
        return Some((working_directory.join(named), "it was named by --config"));
    }
    if let Some(named) = environment.set("MLX_MANAGER_CONFIG") {
        return Some((working_directory.join(named), "it was named by the environment variable MLX_MANAGER_CONFIG"));
    }
    let mut candidates = vec![working_directory.join("config.toml")];
    candidates.extend(environment.user_folder("XDG_CONFIG_HOME", ".config").map(|d| d.join("mlx-manager/config.toml")));
    if environment.macos {
        let library = environment.home.as_ref().map(|home| home.join("Library/Application Support"));
        candidates.extend(library.map(|library| library.join("mlx-manager/config.toml")));
    }
    // A folder of that name isn't a config; a file that can't be read is, and says so when it is.
    let found = candidates.into_iter().find(|candidate| candidate.is_file())?;
    Some((found, "it is the first that was found, since neither --config nor MLX_MANAGER_CONFIG names one"))
}

/// Loads a text as if it stood in `file`.
///
/// # Errors
///
/// As [`load`].
pub fn load_text(text: &str, file: Option<&Path>, options: &LoadOptions) -> Result<Loaded, Problems> {
    let environment = &options.environment;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (user, errors) = DeTable::parse_recoverable(text);
    let (builtin, _) = DeTable::parse_recoverable(EXAMPLE);
    let mut secrets = find_secrets(text, &user, errors.is_empty());
    let folder = file.and_then(Path::parent).unwrap_or(&environment.working_directory).to_owned();
    let mut decoder = Decoder::new(Sources {
        environment,
        text,
        folder,
        user: user.into_inner(),
        builtin: builtin.into_inner(),
        overlays: overlays(environment, &options.overrides),
    });
    let config = decode(&mut decoder, file);
    report_unused(&mut decoder);
    secrets.append(&mut decoder.secrets);
    let source = Redacted::new(text, secrets);
    let mut problems = syntax_problems(text, &errors, &source);
    let damaged: Vec<Range<usize>> = errors.iter().map(|error| damage(text, error)).collect();
    // Where the file doesn't parse, what follows from comparing keys says more about the damage than about the user.
    problems.extend(
        decoder
            .problems
            .into_iter()
            .filter(|problem| errors.is_empty() || !(problem.relation || is_damaged(problem, &damaged))),
    );
    problems.sort_by_key(|problem| match &problem.place {
        Place::File { line, column, .. } => (0, *line, *column),
        _ => (1, 0, 0),
    });
    problems.dedup();
    let name = file.map_or_else(|| "built-in default".to_owned(), |file| name_for_people(file, environment));
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded {
            config,
            file: file.map(|_| PathBuf::from(&name)),
            shown: decoder.shown,
            warnings: decoder.warnings,
            obstacles: decoder.obstacles,
            beaten: decoder.beaten,
            source,
        }),
        _ if problems.is_empty() => Err(Problems::bare(
            format!("{name} can't be turned into a configuration"),
            "this is a defect of mlx-manager: a value was refused without a reason",
        )),
        _ => Err(Problems { file: name, source, problems }),
    }
}

/// A file below the working directory is called as it would be typed there.
fn name_for_people(file: &Path, environment: &Environment) -> String {
    file.strip_prefix(&environment.working_directory).unwrap_or(file).display().to_string()
}

/// The part of a text about which a syntax error leaves nothing to say: its line, and for a table's header all that is
/// in the table, whose keys now seem to be somebody else's.
fn damage(text: &str, error: &toml::de::Error) -> Range<usize> {
    let position = text.floor_char_boundary(error.span().map_or(text.len(), |span| span.start));
    let start = text[..position].rfind('\n').map_or(0, |newline| newline + 1);
    let mut end = text[position..].find('\n').map_or(text.len(), |newline| position + newline);
    if text[start..].trim_start().starts_with('[') {
        end = text[end..].find("\n[").map_or(text.len(), |newline| end + newline);
    }
    start..end
}

/// Whether a problem begins where the text is damaged, or the damage begins within what it is about.
fn is_damaged(problem: &Problem, damaged: &[Range<usize>]) -> bool {
    let Place::File { span, .. } = &problem.place else { return false };
    damaged.iter().any(|range| (range.start..=range.end).contains(&span.start) || span.contains(&range.start))
}

fn find_secrets(text: &str, user: &toml::Spanned<DeTable<'_>>, parsed: bool) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    let whole = toml::Spanned::new(user.span(), toml::de::DeValue::Table(user.get_ref().clone()));
    collect_secrets(&whole, false, &mut secrets);
    if !parsed {
        collect_secret_lines(text, &mut secrets);
    }
    secrets
}

fn syntax_problems(text: &str, errors: &[toml::de::Error], source: &Redacted) -> Vec<Problem> {
    let problem = |error: &toml::de::Error| {
        let span = error.span().unwrap_or(text.len()..text.len());
        let start = span.start.min(text.len());
        let span = start..span.end.clamp(start, text.len());
        let (line, column) = line_and_column(text, start);
        let found = source.text.get(source.map(&span)).unwrap_or_default();
        let message = if found.trim().is_empty() || found.contains('\n') {
            format!("this isn't TOML: {}", error.message())
        } else {
            format!("this isn't TOML: {} (found `{found}`)", error.message())
        };
        Problem {
            key: String::new(),
            message,
            label: error.message().to_owned(),
            hint: None,
            place: Place::File { span, line, column },
            relation: false,
        }
    };
    errors.iter().map(problem).collect()
}

/// Every section is decoded before the first failure counts, so that all problems are found.
fn decode(decoder: &mut Decoder<'_>, file: Option<&Path>) -> Option<Config> {
    decoder.check_headers(TABLES);
    let server = server::decode(decoder);
    let log = log::decode(decoder);
    let telemetry = telemetry::decode(decoder);
    let prometheus = metrics::decode(decoder);
    let traces = traces::decode(decoder);
    let otlp = otlp::decode(decoder);
    let local = local::decode(decoder);
    let (providers, cloud, prices) = cloud::decode(decoder);
    let database = database::decode(decoder);
    check::listeners(decoder, server.as_ref(), prometheus.as_ref());
    check::log_files(decoder, log.as_ref(), database.as_ref(), file);
    check::default_model(decoder, local.as_ref());
    let config = Config {
        server: server?,
        log: log?,
        telemetry: telemetry?,
        prometheus: prometheus?,
        traces: traces?,
        otlp: otlp?,
        local: local?,
        providers: providers?,
        cloud: cloud?,
        prices: prices?,
        database: database?,
    };
    if decoder.problems.is_empty() {
        check::places(decoder, &config);
    }
    Some(config)
}
