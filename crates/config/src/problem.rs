//! What is wrong with a config: all of it at once, each with its place, what was found and what is allowed.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::redaction::Redacted;

/// Where a value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file: a range of bytes, with the line and column (both from 1, in characters) at which it starts.
    File {
        /// Bytes of the file as the user wrote it.
        span: Range<usize>,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// In this environment variable.
    Environment(String),
    /// On the command line.
    CommandLine,
    /// In the built-in default.
    Default,
}

impl Place {
    /// Whether it is in the user's own file.
    pub(super) fn is_in_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// In words: `config.toml:12`, `environment LOG_LEVEL`, `command line`, `default`.
    pub(super) fn describe(&self, file: &str) -> String {
        match self {
            Self::File { line, .. } => format!("{file}:{line}"),
            Self::Environment(name) => format!("environment {name}"),
            Self::CommandLine => "command line".to_owned(),
            Self::Default => "default".to_owned(),
        }
    }
}

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key it is about, `log.sinks[1].rotation.size`; empty when it is about the whole file.
    pub key: String,
    /// One sentence that names the value found.
    pub message: String,
    /// What is allowed, or why it can't be.
    pub label: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where.
    pub place: Place,
    /// Whether it only follows from comparing keys; such a one is dropped when the file doesn't even parse.
    pub(super) relation: bool,
}

/// Every problem of a config.
#[derive(Debug, Clone)]
pub struct Problems {
    /// The file's name as the user knows it.
    pub(super) file: String,
    pub(super) source: Redacted,
    /// In the file's order; never empty.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// A problem without a file to show.
    pub(super) fn bare(message: String, hint: &str) -> Self {
        let problem = Problem {
            key: String::new(),
            message,
            label: String::new(),
            hint: Some(hint.to_owned()),
            place: Place::Default,
            relation: false,
        };
        Self { file: String::new(), source: Redacted::default(), problems: vec![problem] }
    }

    /// Each on a line of its own, for a log.
    pub fn lines(&self) -> Vec<String> {
        let line = |problem: &Problem| {
            let notes = [Some(&problem.label).filter(|label| !label.is_empty()), problem.hint.as_ref()];
            let notes: Vec<_> = notes.into_iter().flatten().map(String::as_str).collect();
            let place = match &problem.place {
                Place::Default => String::new(),
                place => format!("{}: ", place.describe(&self.file)),
            };
            format!("{place}{} ({})", problem.message, notes.join("; "))
        };
        self.problems.iter().map(line).collect()
    }

    /// All of them as text for people, with escape sequences for colour if asked.
    pub fn render(&self, color: bool) -> String {
        let mut text = draw(&self.problems, Level::ERROR, Drawn { file: &self.file, source: &self.source }, color);
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        let file = if self.file.is_empty() { "the configuration" } else { &self.file };
        text.push_str(&format!("{count} {noun} in {file}\n"));
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// The file that problems are drawn over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drawn<'a> {
    /// Its name as the user knows it.
    pub(super) file: &'a str,
    /// Its text without secrets.
    pub(super) source: &'a Redacted,
}

/// Draws problems or warnings over the redacted source.
pub(super) fn draw(problems: &[Problem], level: Level<'static>, drawn: Drawn<'_>, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let Drawn { file, source } = drawn;
    let mut text = String::new();
    for problem in problems {
        let title = level.clone().primary_title(problem.message.as_str());
        let mut notes = Vec::new();
        let group = match &problem.place {
            Place::File { span, .. } => {
                let annotation = AnnotationKind::Primary.span(source.map(span)).label(problem.label.as_str());
                title.element(Snippet::source(source.text.as_str()).path(file).annotation(annotation))
            }
            place => {
                if !problem.label.is_empty() {
                    notes.push((Level::NOTE, problem.label.clone()));
                }
                match place {
                    Place::Environment(name) => {
                        notes.push((Level::NOTE, format!("set by the environment variable {name}")));
                    }
                    Place::CommandLine => notes.push((Level::NOTE, "given on the command line".to_owned())),
                    Place::File { .. } | Place::Default => {}
                }
                Group::with_title(title)
            }
        };
        notes.extend(problem.hint.iter().map(|hint| (Level::HELP, hint.clone())));
        let group = notes.into_iter().fold(group, |group, (level, note)| {
            group.element(level.message(annotate_snippets::normalize_untrusted_str(&note)))
        });
        text.push_str(&renderer.render(&[group]));
        text.push_str("\n\n");
    }
    text
}

/// The line and column, both from 1, of a byte of a text.
pub(super) fn line_and_column(text: &str, position: usize) -> (usize, usize) {
    let position = text.floor_char_boundary(position);
    let before = &text[..position];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
