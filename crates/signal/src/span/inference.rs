//! Where a request goes, and what its target makes of it: the spans of routing and of inference.

use std::error::Error as StdError;

use mlx_manager_config::{ProviderKind, SemanticConventions};
use mlx_manager_llm::{Api, Capture, Chat, Error, Outcome, Record, Request};
use opentelemetry::{
    KeyValue,
    trace::{SpanKind, TraceContextExt},
};
use tracing::Span;

use super::{Failure, Start, end, finish, key_values, recording, start, texts};
use crate::{
    genai,
    hook::{Conventions, Follower, StartedInference},
    provider,
    redact::{ModelLabel, clipped},
    target,
};

/// The routing of a request; a child of `parent`.
pub fn route(parent: &Span, model: &ModelLabel) -> Span {
    let model = model.in_span();
    let span = tracing::info_span!(target: target::SERVER_DISPATCH, parent: parent, "route");
    start(&span, |_| {
        let message = format!("route {model}");
        Start {
            name: Some(message.clone().into()),
            template: "route {gen_ai.request.model}",
            message,
            attributes: vec![KeyValue::new("gen_ai.request.model", model.to_owned())],
        }
    });
    span
}

/// Says which rule matched and which targets it names, in order.
pub fn route_finished(span: &Span, rule: &str, targets: &[String]) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let attributes =
        vec![KeyValue::new("mlx_manager.route.rule", rule.to_owned()), texts("mlx_manager.route.targets", targets)];
    finish(&context.span(), attributes, None);
}

/// Where an inference goes.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    /// The local engine.
    Local,
    /// A provider.
    Cloud {
        /// The `[[providers]]` name.
        provider: &'a str,
        /// Its dialect, from which `gen_ai.provider.name` follows.
        kind: ProviderKind,
        /// `server.address`
        address: &'a str,
        /// `server.port`
        port: u16,
    },
}

impl<'a> Destination<'a> {
    /// The `[[providers]]` name, or `mlx`.
    pub fn provider(self) -> &'a str {
        match self {
            Self::Local => provider::MLX,
            Self::Cloud { provider, .. } => provider,
        }
    }

    /// `gen_ai.provider.name`
    pub fn system(self) -> &'static str {
        match self {
            Self::Local => provider::MLX,
            Self::Cloud { kind, .. } => provider::system(kind),
        }
    }
}

/// What is asked of a target.
#[derive(Debug)]
pub struct InferenceStart<'a> {
    /// The caller's request.
    pub request: &'a Request,
    /// The model's name at the target.
    pub model: &'a ModelLabel,
    /// The target.
    pub destination: Destination<'a>,
    /// How to read the request; done only if `traces.capture_content` is on.
    pub capture: Capture,
}

/// One call to one target: the only span with usage and cost. A fallback is a sibling.
pub fn inference(parent: &Span, asked: &InferenceStart<'_>) -> Span {
    let InferenceStart { request, model, destination, capture } = *asked;
    let model = model.in_span();
    let operation = request.api.operation().as_str();
    let kind = match destination {
        Destination::Local => "internal",
        Destination::Cloud { .. } => "client",
    };
    let span = tracing::info_span!(target: target::SERVER_DISPATCH, parent: parent, "inference", otel.kind = kind);
    let (message, template) = match request.api {
        Api::ChatCompletions => ("Chat Completion", "Chat Completion with {request_data[model]!r}"),
        Api::Messages => ("Message", "Message with {request_data[model]!r}"),
    };
    start(&span, |conventions| {
        let name = format!("{operation} {model}");
        let message = format!("{message} with '{model}'");
        let provider = destination.system();
        let known = genai::Start { operation, provider, model, stream: request.stream, sampling: &request.sampling };
        let mut attributes = key_values(known.attributes(conventions.version));
        attributes.push(texts("logfire.tags", &["LLM".to_owned()]));
        attributes.push(KeyValue::new("mlx_manager.provider", destination.provider().to_owned()));
        if let Destination::Cloud { address, port, .. } = destination {
            attributes.extend([
                KeyValue::new("server.address", address.to_owned()),
                KeyValue::new("server.port", i64::from(port)),
            ]);
        }
        let whole = conventions.capture_content && conventions.version != SemanticConventions::Latest;
        let data = genai::request_data(model, whole.then(|| (capture.body)(request)));
        attributes.extend(key_values(vec![("request_data", data)]));
        attributes.push(KeyValue::new("logfire.json_schema", genai::JSON_SCHEMA));
        if conventions.capture_content && matches!(destination, Destination::Cloud { .. }) {
            attributes.extend(key_values(genai::input((capture.conversation)(request))));
        }
        Follower::tell(&span, || {
            let mut attributes = attributes.clone();
            attributes.push(KeyValue::new("logfire.msg_template", template));
            attributes.push(KeyValue::new("logfire.msg", message.clone()));
            let kind = match destination {
                Destination::Local => SpanKind::Internal,
                Destination::Cloud { .. } => SpanKind::Client,
            };
            StartedInference { span: &span, parent, name: name.clone(), kind, attributes }
        });
        Start { name: Some(name.into()), template, message, attributes }
    });
    span
}

/// Puts the prompts as the local engine understands them into its inference span, where those for a provider are from the
/// start; does nothing unless `traces.capture_content` is on.
pub fn capture_input(span: &Span, chat: &Chat) {
    if let Some((conventions, context)) = recording(span)
        && conventions.capture_content
    {
        context.span().set_attributes(key_values(genai::understood_input(chat)));
    }
}

/// Whether the content of an answer is wanted, so that nothing is gathered in vain.
pub fn captures_content() -> bool {
    Conventions::here().is_some_and(|conventions| conventions.recording && conventions.capture_content)
}

/// How an inference that answered the caller ended.
#[derive(Debug)]
pub struct InferenceEnd<'a> {
    /// The numbers.
    pub record: &'a Record,
    /// The provider's id of the answer.
    pub response_id: Option<&'a str>,
    /// The provider's first and last report of the usage, as it wrote them.
    pub reported_usage: [Option<&'a str>; 2],
    /// The answer; looked at only if `traces.capture_content` is on.
    pub content: Option<genai::Answer<'a>>,
    /// Why it failed.
    pub error: Option<&'a Error>,
}

/// Ends an inference span that answered the caller.
pub fn inference_finished(span: &Span, end: &InferenceEnd<'_>) {
    let Some((conventions, context)) = recording(span) else { return self::end(span) };
    let record = end.record;
    let inference = record.inference.as_ref();
    let known = genai::End {
        id: end.response_id,
        // One that never answered is named by what was asked of it, as Logfire's own clients do.
        model: record.response_model.as_deref().or(inference.map(|inference| inference.model.as_str())),
        finish_reason: record.finish_reason,
        usage: &record.usage,
        reported_usage: end.reported_usage,
        cost: record.cost_usd,
        time_to_first_chunk: inference.and_then(|inference| inference.time_to_first_token).filter(|_| record.stream),
    };
    let mut attributes = key_values(known.attributes(conventions.version));
    attributes.push(KeyValue::new("mlx_manager.outcome", record.outcome.as_str()));
    if let Some(content) = end.content.as_ref().filter(|_| conventions.capture_content) {
        attributes.extend(key_values(content.attributes(&known, conventions.version)));
    }
    let kind = match (record.outcome, record.error_kind) {
        // A client that goes away is nobody's failure: the status stays unset.
        (Outcome::Ok | Outcome::ClientAbort, _) => None,
        (outcome, kind) => Some(kind.unwrap_or_else(|| outcome.as_str())),
    };
    let failure = kind.map(|kind| {
        let message = record.error_message.as_deref().unwrap_or(record.outcome.as_str());
        let causes = end.error.and_then(StdError::source);
        let provider = record.provider.as_deref().unwrap_or_default();
        attributes.push(KeyValue::new("logfire.exception.fingerprint", fingerprint(kind, provider)));
        (kind.into(), Some(Failure::new(kind, message, causes)))
    });
    finish(&context.span(), attributes, failure);
}

/// By which Logfire tells issues apart: what failed where, and not in which words.
fn fingerprint(kind: &str, provider: &str) -> String {
    let source = format!("mlx-manager inference {provider} {kind}");
    let digest = ring::digest::digest(&ring::digest::SHA256, source.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ends an inference span whose target failed while another is tried. `model` is the one asked of it.
pub fn inference_failed_over(span: &Span, model: &ModelLabel, error: &Error) {
    let Some((_, context)) = recording(span) else { return end(span) };
    let kind = error.kind.as_str();
    let failure = Failure::new(kind, &error.message, error.source());
    let attributes = vec![KeyValue::new("gen_ai.response.model", clipped(model.as_str()).to_owned())];
    finish(&context.span(), attributes, Some((kind.into(), Some(failure))));
}
