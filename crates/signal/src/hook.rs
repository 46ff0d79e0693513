//! What the subscriber in effect carries for the signals: settings, and doors to what listens.
//!
//! Each is a layer that does nothing but be found through the subscriber of the span at hand. So there is no global, and
//! a test has its own.

use std::fmt;

use mlx_manager_config::SemanticConventions;
use opentelemetry::{KeyValue, propagation::TextMapPropagator, trace::SpanKind};
use tracing::{Dispatch, Span, Subscriber, dispatcher, span::Id, subscriber::NoSubscriber};
use tracing_subscriber::Layer;

/// How span constructors speak.
#[derive(Clone, Copy)]
pub struct Conventions {
    /// Whether anybody will ever see the attributes.
    pub recording: bool,
    /// The version of the GenAI conventions.
    pub version: SemanticConventions,
    /// Whether prompts and answers may be attributes.
    pub capture_content: bool,
    /// What reads trace context off the headers of a request.
    pub propagator: &'static (dyn TextMapPropagator + Send + Sync),
}

impl fmt::Debug for Conventions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Conventions")
            .field("recording", &self.recording)
            .field("version", &self.version)
            .field("capture_content", &self.capture_content)
            .finish_non_exhaustive()
    }
}

impl<S: Subscriber> Layer<S> for Conventions {}

impl Conventions {
    /// Those that a span's own subscriber carries.
    pub(crate) fn of(span: &Span) -> Option<Self> {
        span.with_subscriber(|(_, dispatch)| dispatch.downcast_ref::<Self>().copied()).flatten()
    }

    /// Those of the subscriber in effect here.
    pub(crate) fn here() -> Option<Self> {
        dispatcher::get_default(|dispatch| dispatch.downcast_ref::<Self>().copied())
    }
}

/// An inference span that started just now. Once it is started it can't be read, so all that is known comes along.
#[derive(Debug)]
pub struct StartedInference<'a> {
    /// The span.
    pub span: &'a Span,
    /// Its parent.
    pub parent: &'a Span,
    /// Its OpenTelemetry name.
    pub name: String,
    /// Its kind.
    pub kind: SpanKind,
    /// The attributes that are being set.
    pub attributes: Vec<KeyValue>,
}

type Follow = dyn Fn(StartedInference<'_>) + Send + Sync;

/// Who follows inference spans from their start, to announce those that last; `None`: nobody.
pub struct Follower(pub Option<Box<Follow>>);

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Follower").field(&self.0.is_some()).finish()
    }
}

impl<S: Subscriber> Layer<S> for Follower {}

impl Follower {
    /// Tells whoever follows `parent`'s subscriber of a new inference span, which is described only for somebody.
    pub(crate) fn tell<'a>(span: &'a Span, describe: impl FnOnce() -> StartedInference<'a>) {
        // The error says that the span is disabled, and then nobody follows it.
        span.with_subscriber(|(_, dispatch)| {
            if let Some(Self(Some(follow))) = dispatch.downcast_ref::<Self>() {
                follow(describe());
            }
        })
        .unwrap_or_default();
    }
}

/// Who keeps what requests say below the log's level. Given a span and its subscriber, it writes what the span's request
/// said, and says how many older records are missing; `None` where nothing is kept.
#[derive(Debug, Clone, Copy)]
pub struct Storyteller(pub fn(&Id, &Dispatch) -> Option<u64>);

/// Writes what the request that the current span belongs to said below the level, because the request failed. What it
/// says from now on is written too.
pub fn tell_story() {
    let omitted = Span::current().with_subscriber(|(id, dispatch)| {
        dispatch.downcast_ref::<Storyteller>().and_then(|teller| teller.0(id, dispatch))
    });
    if let Some(omitted @ 1..) = omitted.flatten() {
        tracing::debug!(target: crate::target::SERVER_HTTP, omitted, "older records of this request were not kept");
    }
}

/// Whether nobody listens to events here: the logs are not set up yet, or this thread is in the middle of one.
pub fn is_deaf() -> bool {
    dispatcher::get_default(|dispatch| dispatch.is::<NoSubscriber>())
}
