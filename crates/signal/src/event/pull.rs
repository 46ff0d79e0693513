//! What happens while a model is pulled.

use std::{error::Error, time::Duration};

use super::{
    cloud::{HttpCall, observe_call},
    milliseconds,
};
use crate::target;

/// The hub said what there is to download.
#[derive(Debug)]
pub struct PullStarted<'a> {
    /// `organisation/name`
    pub repository: &'a str,
    /// The commit that the revision means.
    pub commit: &'a str,
    /// Files of the model.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// What of it an earlier attempt left.
    pub bytes_present: u64,
}

impl PullStarted<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(
            target: target::MODELS,
            model = self.repository, commit = self.commit, files = self.files, bytes = self.bytes,
            bytes_present = self.bytes_present, "pulling a model"
        );
    }
}

/// One physical call to the hub, or to where it sent us, ended.
#[derive(Debug)]
pub struct DownloadFinished<'a> {
    /// The call.
    pub call: HttpCall<'a>,
    /// Bytes of the body.
    pub bytes: u64,
}

impl DownloadFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        let HttpCall { address, status, error_type, duration, .. } = self.call;
        tracing::debug!(
            target: target::MODELS,
            address, status, error_type, bytes = self.bytes, duration_ms = milliseconds(duration), "hub called"
        );
        observe_call("GET", self.call);
    }
}

/// A call failed, and another will be made.
#[derive(Debug)]
pub struct DownloadRetried<'a> {
    /// What was asked for.
    pub file: &'a str,
    /// Why it failed.
    pub error: &'a (dyn Error + 'static),
    /// Its kind, one of a closed set.
    pub reason: &'static str,
    /// How long we wait first.
    pub delay: Duration,
}

impl DownloadRetried<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::warn!(
            target: target::MODELS,
            file = self.file, reason = self.reason, delay_ms = milliseconds(self.delay), error = self.error, "retrying"
        );
    }
}

/// A file is there, and is what the hub says.
#[derive(Debug)]
pub struct FileDownloaded<'a> {
    /// Its name.
    pub file: &'a str,
    /// Its size.
    pub bytes: u64,
}

impl FileDownloaded<'_> {
    /// States the fact.
    pub fn emit(self) {
        tracing::info!(
            target: target::MODELS, file = self.file, bytes = self.bytes, "file downloaded"
        );
    }
}

/// A pull ended.
#[derive(Debug)]
pub struct PullFinished<'a> {
    /// `organisation/name`
    pub repository: &'a str,
    /// `pulled`, `updated`, `present`, `interrupted`, or the error's kind.
    pub outcome: &'static str,
    /// Bytes that came over the network.
    pub bytes_downloaded: u64,
    /// How long it took.
    pub duration: Duration,
    /// Why it failed.
    pub error: Option<&'a (dyn Error + 'static)>,
}

impl PullFinished<'_> {
    /// States the fact.
    pub fn emit(self) {
        let Self { repository: model, outcome, bytes_downloaded, duration, error } = self;
        let duration_ms = milliseconds(duration);
        match error {
            None => tracing::info!(
                target: target::MODELS, model, outcome, bytes_downloaded, duration_ms, "pull finished"
            ),
            Some(error) => tracing::error!(
                target: target::MODELS,
                model, outcome, bytes_downloaded, duration_ms, error, "pull failed"
            ),
        }
    }
}
