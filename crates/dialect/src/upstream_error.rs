//! What went wrong at a provider: one classifier for a status, a body, a frame of a stream, in whichever dialect.
//!
//! A provider's own words may quote the prompt or a part of a key. They are for the caller alone; the neutral message, which
//! reaches logs and audit rows, is ours and carries only the status and the error's name.

use bytes::Bytes;
use mlx_manager_llm::{Dialect, Error, ErrorKind, Fault, UpstreamAnswer};

use super::{raw::Raw, refusal::Refusal};

const MAX_NAME_BYTES: usize = 64;
/// A body longer than this is told again in its words, which are cut.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The words by which servers say that a prompt is too long. None of them has a name for it that others share.
const CONTEXT_WORDS: [&str; 8] = [
    "maximum context length",
    "exceeds the context window",
    "prompt is too long",
    "exceeds the available context size",
    "greater than the context length",
    "input length and `max_tokens` exceed",
    "exceeds the maximum number of tokens",
    "context length exceeded",
];
const CONTEXT_NAMES: [&str; 4] = [
    "context_length_exceeded",
    "exceed_context_size_error",
    "context_window_exceeded",
    "model_max_prompt_tokens_exceeded",
];

/// The same for an account that has run dry.
const QUOTA_WORDS: [&str; 6] = [
    "insufficient balance",
    "insufficient credit",
    "insufficient funds",
    "insufficient quota",
    "credit balance is too low",
    "out of credits",
];
const QUOTA_NAMES: [&str; 9] = [
    "Arrearage",
    "insufficient_quota",
    "insufficient_balance",
    "insufficient_credits",
    "billing_error",
    "billing_hard_limit_reached",
    "billing_not_active",
    "payment_required",
    "exceeded_current_quota_error",
];

/// The same for a key that isn't taken, where the status says no more than that something is wrong.
const KEY_WORDS: [&str; 3] = ["api key not valid", "invalid api key", "incorrect api key"];
const KEY_NAMES: [&str; 3] = ["invalid_api_key", "API_KEY_INVALID", "authentication_error"];

/// The neutral error for an error answer. `status` is that of the answer, if it had one that says anything: an error in a
/// 200 or in a running stream names its own.
pub(super) fn decode(dialect: Dialect, status: Option<u16>, body: Bytes) -> Error {
    let refusal = Refusal::read(&body);
    let said = refusal.as_ref();
    let names = said.map(|said| said.names.as_slice()).unwrap_or_default();
    let status =
        status.or_else(|| said.and_then(|said| said.status)).or_else(|| names.iter().find_map(|name| status_of(name)));
    let words = said.and_then(|said| said.words.as_deref()).unwrap_or_default().to_lowercase();
    let status = status.or_else(|| status_by_words(&words)).unwrap_or(500);
    let (kind, fault) = classify(status, names, &words);
    if kind == ErrorKind::Unauthorized {
        // The key is ours, not the caller's, and such answers may quote parts of it: not passed on.
        // Nor may the words be such that telemetry scrubs them.
        return Error::new(kind, format!("the provider refused the key configured for it (status {status})"));
    }
    let name = names.iter().find(|name| is_name(name));
    let named = name.map(|name| format!(", {name}")).unwrap_or_default();
    let mut error = Error::new(kind, format!("the provider answered with an error (status {status}{named})"));
    if let Some(fault) = fault {
        error = error.with_fault(fault);
    }
    // A server error without a word is told as that of a gateway. What the caller did wrong has its status anyway.
    if said.is_some() || status < 500 {
        let words = refusal.and_then(|refusal| refusal.words);
        let body = is_in_shape(dialect, &body).then_some(body);
        error.upstream = Some(Box::new(UpstreamAnswer { dialect, status, body, words }));
    }
    error
}

/// The status that goes with a name, for where there is none else.
fn status_of(name: &str) -> Option<u16> {
    Some(match name {
        _ if CONTEXT_NAMES.contains(&name) => 400,
        "invalid_request_error" | "invalid_prompt" | "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "BadRequestError" => {
            400
        }
        "authentication_error" | "invalid_api_key" | "UNAUTHENTICATED" => 401,
        "insufficient_quota" | "rate_limit_error" | "rate_limit_exceeded" | "RESOURCE_EXHAUSTED" => 429,
        _ if QUOTA_NAMES.contains(&name) => 402,
        "permission_error" | "PERMISSION_DENIED" => 403,
        "not_found_error" | "model_not_found" | "NOT_FOUND" => 404,
        "request_too_large" => 413,
        "timeout_error" | "DEADLINE_EXCEEDED" => 504,
        "UNAVAILABLE" | "service_tier_capacity_exceeded" | "server_is_overloaded" | "server_overloaded" => 503,
        "overloaded_error" => 529,
        _ if name.to_ascii_lowercase().contains("throttling") => 429,
        _ => return None,
    })
}

/// The status that goes with words in lower case, for where not even a name is there.
fn status_by_words(words: &str) -> Option<u16> {
    let any = |known: &[&str]| known.iter().any(|known| words.contains(known));
    Some(match () {
        () if any(&QUOTA_WORDS) => 402,
        () if any(&CONTEXT_WORDS) => 400,
        () if any(&KEY_WORDS) => 401,
        () if any(&["too many requests", "rate limit", "rate exceeded"]) => 429,
        () if any(&["overloaded", "no healthy upstream", "at capacity"]) => 503,
        () => return None,
    })
}

/// What kind of failure it is, and whose doing where the kind alone doesn't say. `words` are in lower case.
fn classify(status: u16, names: &[String], words: &str) -> (ErrorKind, Option<Fault>) {
    let named = |known: &[&str]| names.iter().any(|name| known.contains(&&**name));
    let worded = |known: &[&str]| known.iter().any(|known| words.contains(known));
    match status {
        401 => (ErrorKind::Unauthorized, None),
        400 | 403 if named(&KEY_NAMES) || worded(&KEY_WORDS) => (ErrorKind::Unauthorized, None),
        400..=499 if status == 402 || named(&QUOTA_NAMES) || worded(&QUOTA_WORDS) => {
            (ErrorKind::InsufficientQuota, None)
        }
        400 | 413 | 422 if named(&CONTEXT_NAMES) || worded(&CONTEXT_WORDS) => (ErrorKind::ContextLength, None),
        403 | 451 => (ErrorKind::Forbidden, None),
        404 | 410 => (ErrorKind::ModelNotFound, None),
        // It is this request that is too large for the rate, and others aren't.
        429 if words.contains("request too large") => (ErrorKind::RateLimited, Some(Fault::Target)),
        429 => (ErrorKind::RateLimited, None),
        408 | 409 | 424 | 425 => (ErrorKind::Upstream, None),
        // Another may well take a larger body, have the endpoint, see images or know the parameter.
        405 | 413 => (ErrorKind::UpstreamRefused, Some(Fault::Target)),
        400..=499 if lacks_support(words) => (ErrorKind::UpstreamRefused, Some(Fault::Target)),
        400..=499 => (ErrorKind::UpstreamRefused, None),
        501 => (ErrorKind::Upstream, Some(Fault::Target)),
        _ => (ErrorKind::Upstream, None),
    }
}

fn lacks_support(words: &str) -> bool {
    words.contains("unsupported")
        || words.contains("support") && ["not ", "n't ", "no "].iter().any(|negation| words.contains(negation))
}

/// Whether a provider's text is a name, and not a sentence that could hold anything.
fn is_name(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(word)
}

/// Whether clients of a dialect find what went wrong in a body.
fn is_in_shape(dialect: Dialect, body: &Bytes) -> bool {
    let Some(body) = (body.len() <= MAX_BODY_BYTES).then(|| std::str::from_utf8(body).ok()).flatten() else {
        return false;
    };
    let Some(body) = Raw::parse(body) else { return false };
    let Some(error) = body.get("error") else { return false };
    let has_text = |value: Raw<'_>, name: &str| value.get(name).is_some_and(|text| text.text().is_some());
    match dialect {
        Dialect::OpenAi => has_text(error, "message"),
        Dialect::Anthropic => has_text(body, "type") && has_text(error, "type") && has_text(error, "message"),
    }
}

/// The provider's body, when the caller speaks its dialect and can read it.
pub(super) fn own_body(error: &Error, dialect: Dialect) -> Option<Bytes> {
    let upstream = error.upstream.as_ref().filter(|upstream| upstream.dialect == dialect)?;
    upstream.body.clone()
}

/// The provider's words, for a body of the caller's dialect.
pub(super) fn words(error: &Error) -> Option<String> {
    error.upstream.as_ref()?.words.clone()
}
