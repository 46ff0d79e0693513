//! What models are called on the hub, checked before it becomes part of a path or a URL.

use std::{fmt, str::FromStr};

/// A repository and which of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The repository.
    pub repository: Repository,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// A repository's name, `organisation/name`. Each part can be a folder's name, and the hub's rules keep `--` free to join
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The organisation or user.
    pub organisation: String,
    /// The model.
    pub name: String,
}

/// Why a text names no model.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// It hasn't the form, or a part has characters that the hub allows nobody.
    #[error(
        "it has the form ORG/NAME, such as mlx-community/Qwen3-0.6B-4bit, with letters, digits, `-`, `_` and `.`, \
         none of which is doubled or at an end but `_`"
    )]
    Name,
    /// What follows the `@` can't be a revision.
    #[error("what follows the @ is a branch, a tag or a commit, such as main")]
    Revision,
}

impl FromStr for Source {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, name) = name.split_once('/').ok_or(RepositoryError::Name)?;
        if !is_name(organisation) || !is_name(name) || name.ends_with(".git") {
            return Err(RepositoryError::Name);
        }
        // As git has it, and one that URLs don't do away with.
        let unfit =
            |character: char| character.is_whitespace() || character.is_control() || "\\~^:?*[".contains(character);
        if revision.is_empty() || matches!(revision, "." | "..") || revision.contains(unfit) {
            return Err(RepositoryError::Revision);
        }
        let repository = Repository { organisation: organisation.to_owned(), name: name.to_owned() };
        Ok(Self { repository, revision: revision.to_owned() })
    }
}

/// The rules of Hugging Face's own client.
fn is_name(part: &str) -> bool {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    (1..=96).contains(&part.len())
        && part.chars().all(|character| word(character) || "-.".contains(character))
        && part.starts_with(word)
        && part.ends_with(word)
        && !part.contains("--")
        && !part.contains("..")
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.organisation, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_revisions_are_told_apart() {
        let source: Source = "mlx-community/Qwen3-0.6B-4bit".parse().unwrap();
        assert_eq!(source.repository.to_string(), "mlx-community/Qwen3-0.6B-4bit");
        assert_eq!(source.revision, "main");
        let source: Source = "a/_b.c@refs/pr/7".parse().unwrap();
        assert_eq!((source.repository.name.as_str(), source.revision.as_str()), ("_b.c", "refs/pr/7"));
    }

    #[test]
    fn no_name_leads_out_of_the_models_folder() {
        let long = format!("a/{}", "b".repeat(97));
        for text in [
            "",
            "demo",
            "a/b/c",
            "../b",
            "a/..",
            "/etc/passwd",
            "a/",
            "/b",
            ".a/b",
            "a/.b",
            "a/b-",
            "a--b/c",
            "a/b..c",
            "a\\b/c",
            "a/b\0",
            "a/b c",
            "a/ü",
            "a/b.git",
            &long,
        ] {
            assert!(matches!(text.parse::<Source>(), Err(RepositoryError::Name)), "{text:?}");
        }
        for text in ["a/b@", "a/b@..", "a/b@x y", "a/b@x?y", "a/b@x\n"] {
            assert!(matches!(text.parse::<Source>(), Err(RepositoryError::Revision)), "{text:?}");
        }
    }
}
