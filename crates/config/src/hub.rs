//! Where models are pulled from, as the environment says it: the variables that Hugging Face's own client reads.
//!
//! No section of the file, because only one command needs it, and whoever uses that client has set them already.

use std::time::Duration;

use super::{
    Environment, Secret,
    setting::{BaseUrl, Raw, Setting},
};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The hub and who asks it.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Its base URL, without a trailing slash (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The access token, for private and gated models (`HF_TOKEN`).
    pub token: Option<Secret>,
    /// How long a connection may be silent before it counts as broken (`HF_HUB_DOWNLOAD_TIMEOUT`, in seconds).
    pub read_timeout: Duration,
}

/// A variable that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HubConfigError {
    /// `HF_ENDPOINT` is no URL; one that holds credentials isn't repeated.
    #[error("the environment variable HF_ENDPOINT {}can't be used; allowed: {}", quoted(.0), BaseUrl::allowed())]
    Endpoint(String),
    /// `HF_TOKEN` can't be sent.
    #[error("the environment variable HF_TOKEN has characters that an HTTP header can't carry: copy the token again")]
    Token,
    /// `HF_HUB_DOWNLOAD_TIMEOUT` is no time.
    #[error("the environment variable HF_HUB_DOWNLOAD_TIMEOUT {0:?} can't be used; allowed: seconds above zero")]
    Timeout(String),
}

fn quoted(value: &str) -> String {
    if value.contains('@') { String::new() } else { format!("{value:?} ") }
}

impl HubConfig {
    /// Reads the variables; one that is empty counts as unset.
    ///
    /// # Errors
    /// When one of them can't be used.
    pub fn from_environment(environment: &Environment) -> Result<Self, HubConfigError> {
        let endpoint = match environment.set("HF_ENDPOINT") {
            None => DEFAULT_ENDPOINT.to_owned(),
            Some(text) => {
                let raw = Raw::Text { text: text.to_owned(), substituted: false };
                BaseUrl::read(&raw).map_err(|_| HubConfigError::Endpoint(text.to_owned()))?.0
            }
        };
        let token = environment.set("HF_TOKEN").map(str::trim).filter(|token| !token.is_empty());
        if token.is_some_and(|token| http::HeaderValue::from_str(token).is_err()) {
            return Err(HubConfigError::Token);
        }
        let read_timeout = match environment.set("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => DEFAULT_READ_TIMEOUT,
            Some(text) => text
                .trim()
                .parse()
                .ok()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .filter(|timeout| !timeout.is_zero())
                .ok_or_else(|| HubConfigError::Timeout(text.to_owned()))?,
        };
        Ok(Self { endpoint, token: token.map(Secret::new), read_timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<HubConfig, String> {
        let environment = variables.iter().fold(Environment::new("/"), |all, (name, value)| all.with(name, value));
        HubConfig::from_environment(&environment).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_replace_defaults_unless_they_are_empty() {
        let plain = hub(&[("HF_TOKEN", " "), ("HF_ENDPOINT", "")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.token), (DEFAULT_ENDPOINT, None));
        assert_eq!(plain.read_timeout, DEFAULT_READ_TIMEOUT);
        let set = [("HF_TOKEN", "hf_x\n"), ("HF_ENDPOINT", "http://mirror:8080/"), ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5")];
        let set = hub(&set).unwrap();
        assert_eq!((set.endpoint.as_str(), set.token), ("http://mirror:8080", Some(Secret::new("hf_x"))));
        assert_eq!(set.read_timeout, Duration::from_millis(2500));
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_secrets() {
        assert!(hub(&[("HF_ENDPOINT", "huggingface.co")]).unwrap_err().contains("HF_ENDPOINT \"huggingface.co\""));
        let error = hub(&[("HF_ENDPOINT", "https://me:hunter2@huggingface.co")]).unwrap_err();
        assert!(error.contains("without credentials") && !error.contains("hunter2"), "{error}");
        let error = hub(&[("HF_TOKEN", "hf_a\u{7}b")]).unwrap_err();
        assert!(error.contains("HF_TOKEN") && !error.contains("hf_a"), "{error}");
        for timeout in ["0", "-1", "soon", "1e400"] {
            assert!(hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", timeout)]).unwrap_err().contains(timeout));
        }
    }
}
