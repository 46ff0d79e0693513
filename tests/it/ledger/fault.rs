//! What providers refuse with, in the shapes that their servers write it, and what must become of it.

/// A failure that a provider tells of.
#[derive(Debug)]
pub struct Fault {
    pub name: &'static str,
    pub status: u16,
    /// The outcome and the kind that it has to get.
    pub outcome: &'static str,
    pub kind: &'static str,
    /// Bodies in OpenAI's way; `{}` stands for nothing.
    bodies: &'static [&'static str],
    /// By which Anthropic calls it.
    anthropic: &'static str,
    words: &'static str,
    /// Nothing but the status tells.
    pub only_status: bool,
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "bad request",
        status: 400,
        outcome: "invalid_request",
        kind: "upstream_refused",
        bodies: &[
            r#"{"error":{"message":"Unknown field: n.","type":"invalid_request_error","param":"n","code":null}}"#,
            r#"{"object":"error","message":"n is wrong","type":"BadRequestError","param":null,"code":400}"#,
        ],
        anthropic: "invalid_request_error",
        words: "n: wrong",
        only_status: false,
    },
    Fault {
        name: "context length",
        status: 400,
        outcome: "invalid_request",
        kind: "context_length_exceeded",
        bodies: &[
            r#"{"error":{"message":"This model's maximum context length is 8 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}"#,
        ],
        anthropic: "invalid_request_error",
        words: "prompt is too long: 9 tokens > 8 maximum",
        only_status: false,
    },
    Fault {
        name: "insufficient quota",
        status: 402,
        outcome: "upstream_error",
        kind: "insufficient_quota",
        bodies: &[
            r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}"#,
            r#"{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
        ],
        anthropic: "billing_error",
        words: "Your credit balance is too low",
        only_status: false,
    },
    Fault {
        name: "forbidden",
        status: 403,
        outcome: "forbidden",
        kind: "forbidden",
        bodies: &[
            r#"{"error":{"message":"Not in your country.","type":"permission_error","code":"PERMISSION_DENIED"}}"#,
            r#"[{"error":{"code":403,"message":"Not for you.","status":"PERMISSION_DENIED"}}]"#,
        ],
        anthropic: "permission_error",
        words: "Not for this key's workspace",
        only_status: false,
    },
    Fault {
        name: "unauthorized",
        status: 401,
        outcome: "unauthorized",
        kind: "unauthorized",
        bodies: &[
            r#"{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
        ],
        anthropic: "authentication_error",
        words: "invalid x-api-key",
        only_status: true,
    },
    Fault {
        name: "no such model",
        status: 404,
        outcome: "not_found",
        kind: "model_not_found",
        bodies: &[
            r#"{"error":{"message":"The model does not exist.","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#,
            r#"{"error":{"message":"gone","code":404}}"#,
        ],
        anthropic: "not_found_error",
        words: "model: claude-0",
        only_status: false,
    },
    Fault {
        name: "unprocessable",
        status: 422,
        outcome: "invalid_request",
        kind: "upstream_refused",
        bodies: &[r#"{"detail":[{"loc":["body","n"],"msg":"value is no number","type":"int_parsing"}]}"#, "n is wrong"],
        anthropic: "invalid_request_error",
        words: "n: wrong",
        only_status: true,
    },
    Fault {
        name: "rate limit",
        status: 429,
        outcome: "rate_limited",
        kind: "rate_limited",
        bodies: &[
            r#"{"error":{"message":"Rate limit reached.","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
            r#"{"error":{"code":429,"message":"Resource has been exhausted.","status":"RESOURCE_EXHAUSTED"}}"#,
        ],
        anthropic: "rate_limit_error",
        words: "slow down",
        only_status: false,
    },
    Fault {
        name: "server error",
        status: 500,
        outcome: "upstream_error",
        kind: "upstream_error",
        bodies: &[
            r#"{"error":{"message":"The server had an error.","type":"server_error","param":null,"code":null}}"#,
            r#"{"error":"boom"}"#,
        ],
        anthropic: "api_error",
        words: "Internal server error",
        only_status: false,
    },
    Fault {
        name: "unavailable",
        status: 503,
        outcome: "upstream_error",
        kind: "upstream_error",
        bodies: &[
            r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
            r#"{"error":{"message":"busy","code":"503"}}"#,
        ],
        anthropic: "api_error",
        words: "Service unavailable",
        only_status: false,
    },
    Fault {
        name: "overloaded",
        status: 529,
        outcome: "upstream_error",
        kind: "upstream_error",
        bodies: &[r#"{"error":{"message":"Overloaded","type":"overloaded_error"}}"#],
        anthropic: "overloaded_error",
        words: "Overloaded",
        only_status: false,
    },
    Fault {
        name: "gateway's page",
        status: 502,
        outcome: "upstream_error",
        kind: "upstream_error",
        bodies: &["<html><body>Bad Gateway</body></html>", ""],
        anthropic: "",
        words: "",
        only_status: true,
    },
];

impl Fault {
    /// The body of the refusal, in one of its shapes.
    pub fn body(&self, anthropic: bool, shape: usize) -> String {
        if anthropic && !self.anthropic.is_empty() {
            let (name, words) = (self.anthropic, self.words);
            return format!(
                r#"{{"type":"error","error":{{"type":"{name}","message":"{words}"}},"request_id":"req_1"}}"#
            );
        }
        self.bodies[shape % self.bodies.len()].to_owned()
    }

    /// Whether the same target is asked again.
    pub fn is_again(&self) -> bool {
        self.outcome == "rate_limited" || self.kind == "upstream_error"
    }

    /// Whether another target is asked.
    pub fn is_over(&self) -> bool {
        self.kind != "upstream_refused"
    }
}
