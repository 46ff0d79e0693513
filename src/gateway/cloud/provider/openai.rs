//! OpenAI and everything compatible with it.

pub(super) const PATH: &str = "/chat/completions";

pub(super) const REMAINING: [(&str, &str); 2] =
    [("requests", "x-ratelimit-remaining-requests"), ("tokens", "x-ratelimit-remaining-tokens")];

/// The caller's headers that are for this API begin so.
pub(super) const OWN_HEADERS: &str = "openai-";
