//! What a repository holds, as the hub's API says it, and which of it makes a model.
//!
//! Endpoints, fields and rules are those of Hugging Face's own client (`huggingface_hub` 2.4); the choice of files is
//! that of mlx-lm, without the code, which we wouldn't run.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{PullError, Repository};

/// Comes first, since it says whether the rest is of any use.
pub(super) const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The files of a model at one commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// A hexadecimal hash.
    pub(super) commit: String,
    /// Small ones before weights.
    pub(super) files: Vec<RemoteFile>,
}

/// A file on the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// A name without folders.
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// What its content hashes to; not every mirror says it for small files.
    pub(super) checksum: Option<Checksum>,
}

/// A hexadecimal hash.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// Of the content.
    Sha256(String),
    /// Of the content as git stores it.
    GitBlob(String),
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    size: u64,
    sha256: String,
}

impl Listing {
    /// Reads the API's answer.
    pub(super) fn read(body: &[u8], repository: &Repository) -> Result<Self, PullError> {
        let unusable = |reason: String| PullError::Unusable { repository: repository.to_string(), reason };
        let answer: Answer =
            serde_json::from_slice(body).map_err(|error| wrong(format!("it isn't a model's description ({error})")))?;
        // It becomes a folder's name.
        if !(7..=64).contains(&answer.sha.len()) || !answer.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong(format!("it calls {:?} a commit", clipped(&answer.sha))));
        }
        // Whoever names one file like this is not to be trusted with the others.
        if let Some(file) = answer.siblings.iter().find(|file| !is_safe(&file.rfilename)) {
            return Err(wrong(format!("it names a file {:?}", clipped(&file.rfilename))));
        }
        let mut files = Vec::new();
        for file in &answer.siblings {
            if is_wanted(&file.rfilename) {
                files.push(file.read()?);
            }
        }
        files.sort_by(|left, right| left.order().cmp(&right.order()));
        if files.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(wrong("it names a file twice".to_owned()));
        }
        let has = |name: &str| files.iter().any(|file| file.name == name);
        if !files.iter().any(RemoteFile::is_weights) {
            let foreign = [".gguf", ".bin", ".pth", ".pt", ".onnx", ".npz", ".safetensors"];
            let found = foreign.iter().find(|end| answer.siblings.iter().any(|file| file.rfilename.ends_with(**end)));
            let found = found.map(|end| format!(", only *{end}")).unwrap_or_default();
            return Err(unusable(format!("it has no model*.safetensors{found}")));
        }
        if let Some(missing) = [CONFIG, TOKENIZER].into_iter().find(|name| !has(name)) {
            return Err(unusable(format!("it has no {missing}")));
        }
        files
            .iter()
            .try_fold(0_u64, |sum, file| sum.checked_add(file.size))
            .ok_or_else(|| wrong("its sizes add up to more than there can be".to_owned()))?;
        Ok(Self { commit: answer.sha, files })
    }

    /// The size of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Sibling {
    fn read(&self) -> Result<RemoteFile, PullError> {
        let (size, checksum) = match (&self.lfs, self.size) {
            (Some(lfs), _) => (lfs.size, Some(Checksum::Sha256(lfs.sha256.clone()))),
            (None, Some(size)) => (size, self.blob_id.clone().map(Checksum::GitBlob)),
            (None, None) => return Err(wrong(format!("it doesn't tell the size of {}", self.rfilename))),
        };
        Ok(RemoteFile { name: self.rfilename.clone(), size, checksum })
    }
}

impl RemoteFile {
    fn is_weights(&self) -> bool {
        self.name.ends_with(".safetensors")
    }

    fn order(&self) -> (bool, bool, &str) {
        (self.name != CONFIG, self.is_weights(), &self.name)
    }
}

/// Whether a path stays below the folder that it is relative to, and can be shown on a terminal.
fn is_safe(path: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..");
    path.split('/').all(part) && !path.contains(|character: char| character == '\\' || character.is_control())
}

/// Whether a file is part of a model: not in a folder, where repositories keep other formats, nor a second copy of the
/// weights by another name.
fn is_wanted(path: &str) -> bool {
    if path.contains('/') || path.starts_with('.') {
        return false;
    }
    match path.rsplit_once('.') {
        Some((stem, "safetensors")) => stem.starts_with("model"),
        Some((_, "json" | "jinja" | "txt" | "model" | "tiktoken")) => true,
        _ => false,
    }
}

/// Checks that the engine can compute what a config.json describes.
pub(super) fn check_supported(
    path: &Path,
    repository: &Repository,
    supported: &[&'static str],
) -> Result<(), PullError> {
    #[derive(Deserialize)]
    struct Config {
        model_type: Option<String>,
    }
    let unusable = |reason: String| PullError::Unusable { repository: repository.to_string(), reason };
    let text = fs::read(path).map_err(|source| PullError::Disk { path: path.to_owned(), source })?;
    let config: Config = serde_json::from_slice(&text).map_err(|error| unusable(format!("its {CONFIG}: {error}")))?;
    let found = config.model_type.unwrap_or_default();
    if supported.contains(&found.as_str()) {
        return Ok(());
    }
    let list = supported.join(", ");
    Err(unusable(format!("its model_type is {:?}, and the engine computes {list}", clipped(&found))))
}

fn wrong(reason: String) -> PullError {
    PullError::Answer { reason }
}

/// What a server said, cut to a length that a message may have.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(100)]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn small(name: &str) -> Value {
        json!({ "rfilename": name, "size": 7, "blobId": "b10b" })
    }

    fn weights(name: &str, size: u64) -> Value {
        json!({ "rfilename": name, "size": size, "blobId": "d00d", "lfs": { "sha256": "5a", "size": size, "pointerSize": 130 } })
    }

    fn read(files: &[Value]) -> Result<Listing, String> {
        let body = json!({ "sha": COMMIT, "siblings": files, "tags": ["mlx"] }).to_string();
        let repository = Repository { organisation: "org".to_owned(), name: "model".to_owned() };
        Listing::read(body.as_bytes(), &repository).map_err(|error| format!("{}: {error}", error.kind()))
    }

    #[test]
    fn the_files_of_a_model_are_chosen_and_nothing_else() {
        let listing = read(&[
            small(".gitattributes"),
            small("README.md"),
            weights("model-00002-of-00002.safetensors", 20),
            weights("model-00001-of-00002.safetensors", 10),
            small("tokenizer.json"),
            small("config.json"),
            small("chat_template.jinja"),
            small("merges.txt"),
            small("tokenizer.model"),
            small("model.safetensors.index.json"),
            small("modeling_custom.py"),
            small("original/params.json"),
            weights("consolidated.safetensors", 30),
            weights("pytorch_model.bin", 30),
            weights("model.gguf", 30),
            weights("consolidated.00.pth", 30),
            weights("picture.png", 30),
        ])
        .unwrap();
        let names: Vec<_> = listing.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "config.json",
                "chat_template.jinja",
                "merges.txt",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer.model",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]
        );
        assert_eq!((listing.commit.as_str(), listing.bytes()), (COMMIT, 6 * 7 + 30));
        assert_eq!(listing.files[0].checksum, Some(Checksum::GitBlob("b10b".to_owned())));
        assert_eq!(listing.files[6].checksum, Some(Checksum::Sha256("5a".to_owned())));
    }

    #[test]
    fn a_name_that_leads_elsewhere_refuses_the_whole_repository() {
        let good = [small("config.json"), small("tokenizer.json"), weights("model.safetensors", 1)];
        assert!(read(&good).is_ok());
        for name in [
            "../x.json",
            "/etc/x.json",
            "a/../../x.json",
            "..",
            "a\\x.json",
            "./x.json",
            "x\u{1b}[2J.json",
            "a//x.json",
            "",
        ] {
            let files: Vec<_> = good.iter().cloned().chain([small(name)]).collect();
            let error = read(&files).unwrap_err();
            assert!(error.starts_with("answer: ") && !error.contains('\u{1b}'), "{name:?}: {error}");
        }
        let twice: Vec<_> = good.iter().cloned().chain([small("config.json")]).collect();
        assert!(read(&twice).unwrap_err().contains("twice"));
        let huge: Vec<_> = good.iter().cloned().chain([weights("model-2.safetensors", u64::MAX)]).collect();
        assert!(read(&huge).unwrap_err().contains("more than there can be"));
    }

    #[test]
    fn what_is_no_model_says_what_it_is_instead() {
        let gguf = read(&[small("config.json"), weights("model.gguf", 1)]).unwrap_err();
        assert!(gguf.starts_with("unusable: ") && gguf.contains("only *.gguf"), "{gguf}");
        let bare = read(&[small("config.json"), weights("model.safetensors", 1)]).unwrap_err();
        assert!(bare.contains("no tokenizer.json"), "{bare}");
        assert!(read(&[]).unwrap_err().contains("no model*.safetensors"));
    }

    #[test]
    fn only_a_supported_architecture_is_worth_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG);
        let repository = Repository { organisation: "org".to_owned(), name: "model".to_owned() };
        let check = |text: &str| {
            fs::write(&path, text).unwrap();
            check_supported(&path, &repository, &["llama", "qwen3"]).map_err(|error| error.to_string())
        };
        assert_eq!(check(r#"{"model_type": "qwen3"}"#), Ok(()));
        assert!(
            check(r#"{"model_type": "mamba"}"#)
                .unwrap_err()
                .contains("\"mamba\", and the engine computes llama, qwen3")
        );
        assert!(check("{}").unwrap_err().contains("model_type is \"\""));
        assert!(check("<html>").unwrap_err().contains("its config.json"));
    }
}
