//! What an endpoint says to a batch, and which of its words may be repeated.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use mlx_manager_signal::redact;
use prost::Message;

/// Of an endpoint's own words so much is looked at, and so many characters of it are repeated.
pub(super) const WORDS_BYTES: usize = 4096;
const WORDS_CHARS: usize = 200;

/// What an endpoint said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Taken {
        rejected: u64,
        /// Why, in the endpoint's words.
        message: String,
    },
    Refused(String),
    /// It would say so to any batch: our key or the address is wrong, and may be put right.
    Denied(String),
    Away {
        reason: String,
        retry_after: Option<Duration>,
    },
}

impl Answer {
    /// What stands for an answer that never came.
    pub(super) fn unreachable(error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::Away { reason, retry_after: None }
    }

    /// A success with this body; `headers` were sent, and must not be repeated. All three signals answer alike: field 1 holds the partial success, whose field 1 is the
    /// count of rejected items and whose field 2 says why. A body that is no such message rejects nothing.
    pub(super) fn taken(body: &[u8], headers: &HeaderMap) -> Self {
        let (rejected, message) = partial_success(body).unwrap_or_default();
        Self::Taken { rejected, message: words(&message, headers) }
    }

    /// Any other status, with what the endpoint said and when it wants to be asked again.
    pub(super) fn of_failure(
        status: StatusCode,
        body: &[u8],
        retry_after: Option<Duration>,
        headers: &HeaderMap,
    ) -> Self {
        let mut reason = format!("status {status}");
        let words = words(body, headers);
        if !words.is_empty() {
            reason.push_str(": ");
            reason.push_str(&words);
        }
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Self::Away { reason, retry_after },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Self::Denied(reason),
            status if status.is_server_error() => Self::Away { reason, retry_after },
            _ => Self::Refused(reason),
        }
    }
}

/// An endpoint's words, short and fit for the log: without what looks like a secret, or is one that it was sent.
fn words(words: &[u8], headers: &HeaderMap) -> String {
    let words = String::from_utf8_lossy(&words[..words.len().min(WORDS_BYTES)]);
    let words = words.replace(|character: char| character.is_control(), " ");
    let sent = headers.values().filter_map(|value| value.to_str().ok()?.split_whitespace().last());
    if sent.into_iter().any(|secret| words.contains(secret)) {
        return "[it repeats a header]".to_owned();
    }
    let words = redact::text(words.trim());
    match words.char_indices().nth(WORDS_CHARS) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.into_owned(),
    }
}

/// `Export{Trace,Metrics,Logs}ServiceResponse`, which differ in names only.
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    /// Signed on paper. Read like this, a negative count is a large one, and means all that was sent.
    #[prost(uint64, tag = "1")]
    rejected: u64,
    /// Text on paper. Words that are not UTF-8 must not cost the count.
    #[prost(bytes = "vec", tag = "2")]
    message: Vec<u8>,
}

/// The count of rejected items, and why they are.
fn partial_success(body: &[u8]) -> Option<(u64, Vec<u8>)> {
    let PartialSuccess { rejected, message } = Response::decode(body).ok()?.partial_success?;
    Some((rejected, message))
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn a_partial_success_is_read() {
        assert_eq!(partial_success(&[]), None);
        assert_eq!(partial_success(b"{}"), None);
        // partial_success { rejected_spans: 300, error_message: "no" }
        let body = [0x0a, 0x07, 0x08, 0xac, 0x02, 0x12, 0x02, b'n', b'o'];
        assert_eq!(partial_success(&body), Some((300, b"no".to_vec())));
        let answer = Answer::taken(&body, &HeaderMap::new());
        assert_eq!(answer, Answer::Taken { rejected: 300, message: "no".to_owned() });
        // partial_success { error_message: "a warning" }
        assert_eq!(partial_success(&[0x0a, 0x02, 0x12, 0x00]), Some((0, Vec::new())));
        assert_eq!(partial_success(&[0x0a, 0x7f, 0x08]), None, "cut off");
        assert_eq!(partial_success(&[0x0a, 0x03, 0x08, 0x01, 0x12]), None, "cut off within");
        // rejected_spans: -1, then a field of a later version, then words that are no text.
        let odd =
            [0x0a, 0x11, 0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0x1a, 0x00, 0x12, 0x02, 0xff, b'a'];
        assert_eq!(partial_success(&odd), Some((u64::MAX, b"\xffa".to_vec())));
    }

    #[test]
    fn an_endpoints_words_are_short_and_harmless() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic bWx4OnRvcC1zZWNyZXQ="));
        let said = |text: &str| words(text.as_bytes(), &headers);
        assert_eq!(said("\u{1b}[31mno such\ntenant\r\n"), "[31mno such tenant");
        assert_eq!(said(&"é".repeat(10_000)), "é".repeat(WORDS_CHARS) + "…");
        assert_eq!(said("bad login bWx4OnRvcC1zZWNyZXQ="), "[it repeats a header]");
        assert!(!said("the password is hunter2").contains("hunter2"));
        assert_eq!(words(&[0xff, b'a'], &headers), "\u{fffd}a");
    }
}
