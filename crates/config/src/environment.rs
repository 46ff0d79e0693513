//! What the process was started with: variables, working directory, home. The only reader of the environment.

use std::{collections::BTreeMap, path::PathBuf};

/// A process's surroundings, as values, so that tests bring their own.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// The working directory.
    pub working_directory: PathBuf,
    /// The user's home folder, if there is one.
    pub home: Option<PathBuf>,
    /// Whether macOS's folders are used beside the XDG ones.
    pub macos: bool,
}

impl Environment {
    /// This process's own. Variables that aren't UTF-8 count as unset.
    pub fn from_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            variables,
            working_directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            home: etcetera::home_dir().ok(),
            macos: cfg!(target_os = "macos"),
        }
    }

    /// Surroundings without any variable.
    pub fn new(working_directory: impl Into<PathBuf>) -> Self {
        Self { working_directory: working_directory.into(), ..Self::default() }
    }

    /// Sets a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A variable's value, which may be empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A variable's value where an empty one counts as unset, as `VAR= command` and compose files leave it.
    pub fn set(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Whether a terminal is to be left without colours.
    pub fn refuses_color(&self) -> bool {
        self.set("NO_COLOR").is_some() || self.get("TERM") == Some("dumb")
    }

    /// The names of all variables.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// A folder given by an XDG variable, or below the home folder. XDG ignores relative paths, and so does this.
    pub(super) fn user_folder(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let given = self.set(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        given.or_else(|| self.home.as_ref().map(|home| home.join(below_home)))
    }
}
