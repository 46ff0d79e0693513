//! One endpoint: where it is, how it is spoken to, and a batch as an HTTP request to it.

use std::time::Duration;

use http::{HeaderMap, header};
use jiff::Timestamp;
use mlx_manager_config::Protocol;
use mlx_manager_llm as llm;

use super::{
    answer::{self, Answer},
    spool::Batch,
};

/// Where batches go, and all that a request there needs.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Base URL without a trailing slash.
    pub url: String,
    pub protocol: Protocol,
    pub headers: HeaderMap,
    pub client: reqwest::Client,
    /// How long a request may take.
    pub timeout: Duration,
}

impl Endpoint {
    /// Posts a batch once.
    pub(super) async fn post(&self, batch: &Batch) -> Answer {
        let mut request = self
            .client
            .post(format!("{}/v1/{}", self.url, batch.signal.as_str()))
            .timeout(self.timeout)
            .headers(self.headers.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(batch.body.clone());
        if batch.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        let away = |error: reqwest::Error| Answer::unreachable(&error.without_url());
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return away(error),
        };
        let status = response.status();
        if status.is_success() {
            return match response.bytes().await {
                Ok(body) => Answer::taken(&body, &self.headers),
                Err(error) => away(error),
            };
        }
        let retry_after = llm::retry_after(response.headers(), Timestamp::now());
        let mut body = Vec::new();
        // An explanation that breaks off, or goes on and on, explains as much as is there.
        while body.len() < answer::WORDS_BYTES
            && let Ok(Some(piece)) = response.chunk().await
        {
            body.extend_from_slice(&piece);
        }
        Answer::of_failure(status, &body, retry_after, &self.headers)
    }
}
