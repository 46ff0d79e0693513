//! The spans of a model's download: one for the whole, and below it one for each HTTP call.

use std::error::Error as StdError;

use opentelemetry::{KeyValue, trace::TraceContextExt};
use tracing::Span;
use url::Url;

use super::{
    Failure, Start,
    attempt::{finish_call, start_call},
    count, end, finish, recording, start,
};
use crate::target;

/// A model's download, the root of its trace.
pub fn pull(repository: &str, revision: &str) -> Span {
    let span = tracing::info_span!(target: target::MODELS, parent: None, "pull");
    start(&span, |_| {
        let message = format!("pull {repository}");
        let attributes = vec![
            KeyValue::new("mlx_manager.model.repository", repository.to_owned()),
            KeyValue::new("mlx_manager.model.revision", revision.to_owned()),
        ];
        let name = Some(message.clone().into());
        Start { name, template: "pull {mlx_manager.model.repository}", message, attributes }
    });
    span
}

/// Says what the hub has: the commit, and what of it makes the model.
pub fn pull_resolved(span: &Span, commit: &str, files: usize, bytes: u64) {
    if let Some((_, context)) = recording(span) {
        context.span().set_attributes([
            KeyValue::new("mlx_manager.model.commit", commit.to_owned()),
            count("mlx_manager.files", files as u64),
            count("mlx_manager.bytes", bytes),
        ]);
    }
}

/// Ends a pull. `outcome` is of a closed set, the error's kind if there is one; `downloaded` is bytes.
pub fn pull_finished(span: &Span, outcome: &'static str, downloaded: u64, error: Option<&(dyn StdError + 'static)>) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let attributes =
        vec![KeyValue::new("mlx_manager.outcome", outcome), count("mlx_manager.bytes_downloaded", downloaded)];
    let failed = error.map(|error| {
        let failure = Failure::new(outcome, &error.to_string(), error.source());
        (outcome.into(), Some(failure))
    });
    finish(&context.span(), attributes, failed);
}

/// One physical HTTP call; a child of a pull. `resend` counts the calls before it for the same resource, redirected ones
/// too, as the conventions have it.
pub fn download(parent: &Span, url: &Url, resend: u32) -> Span {
    let span = tracing::info_span!(target: target::MODELS, parent: parent, "download", otel.kind = "client");
    start_call(&span, "GET", url, resend);
    span
}

/// Ends such a call: with its status and the bytes of its body that arrived, or with the kind of failure.
pub fn download_finished(span: &Span, status: Option<u16>, error_type: Option<&str>, bytes: u64) {
    let body = status.map(|_| count("http.response.body.size", bytes));
    finish_call(span, status, error_type, body.into_iter().collect());
}
