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

/// Takes what is known of an inference span at its start.
pub type Follow = dyn Fn(StartedInference<'_>) + Send + Sync;

/// Who follows inference spans from their start, to announce those that last; `None`: nobody. (An absent layer would not do
/// instead: it makes what it is part of look absent, too.)
pub struct Follower(pub Option<Box<Follow>>);

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Follower").field(&self.0.is_some()).finish()
    }
}

impl<S: Subscriber> Layer<S> for Follower {}

impl Follower {
    /// Tells whoever follows the spans of `span`'s subscriber of a new inference span, which is described only for somebody.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry::propagation::TextMapCompositePropagator;
    use parking_lot::Mutex;
    use tracing_subscriber::{Registry, layer::SubscriberExt, registry};

    use super::*;

    /// A layer that has no hooks.
    struct Other;

    impl<S: Subscriber> Layer<S> for Other {}

    /// Layers as the daemon holds them: several in a box, and that on a registry.
    fn composite(hook: impl Layer<Registry> + Send + Sync) -> Dispatch {
        let boxed: Box<dyn Layer<Registry> + Send + Sync> = Box::new(Other.and_then(hook).and_then(Other));
        Dispatch::new(registry().with(boxed))
    }

    fn conventions() -> Conventions {
        Conventions {
            recording: true,
            version: SemanticConventions::Both,
            capture_content: true,
            propagator: Box::leak(Box::new(TextMapCompositePropagator::new(Vec::new()))),
        }
    }

    fn started<'a>(span: &'a Span, parent: &'a Span) -> StartedInference<'a> {
        let name = "chat".to_owned();
        StartedInference { span, parent, name, kind: SpanKind::Client, attributes: Vec::new() }
    }

    #[test]
    fn conventions_are_those_of_the_spans_own_subscriber_and_of_the_one_in_effect() {
        let (mine, other) = (composite(conventions()), composite(Other));
        let span = dispatcher::with_default(&mine, || {
            assert!(Conventions::here().is_some_and(|conventions| conventions.capture_content));
            tracing::info_span!("span")
        });
        dispatcher::with_default(&other, || {
            assert!(Conventions::here().is_none());
            assert!(
                Conventions::of(&span).is_some_and(|conventions| conventions.recording),
                "wherever it is asked for"
            );
            assert!(Conventions::of(&tracing::info_span!("span")).is_none());
        });
        assert!(Conventions::here().is_none() && Conventions::of(&Span::none()).is_none());
    }

    #[test]
    fn a_follower_hears_of_spans_and_without_one_they_are_not_described() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let follow = move |started: StartedInference<'_>| ear.lock().push((started.name, started.span.id()));
        let id = dispatcher::with_default(&composite(Follower(Some(Box::new(follow)))), || {
            let span = tracing::info_span!("inference");
            Follower::tell(&span, || started(&span, &span));
            span.id()
        });
        assert_eq!(*heard.lock(), [("chat".to_owned(), id)]);
        for nobody in [composite(Follower(None)), composite(Other)] {
            let span = dispatcher::with_default(&nobody, || tracing::info_span!("inference"));
            Follower::tell(&span, || panic!("for nobody"));
        }
        Follower::tell(&Span::none(), || panic!("of nothing"));
    }

    /// A storyteller, as a layer of its own.
    struct Teller(Storyteller);

    impl<S: Subscriber> Layer<S> for Teller {
        #[expect(unsafe_code, reason = "the trait's way to find a part of a layer")]
        unsafe fn downcast_raw(&self, id: std::any::TypeId) -> Option<*const ()> {
            (id == std::any::TypeId::of::<Storyteller>()).then(|| std::ptr::from_ref(&self.0).cast())
        }
    }

    #[test]
    fn the_storyteller_is_given_the_current_span_and_what_is_missing_is_said() {
        let lines = |omitted: fn(&Id, &Dispatch) -> Option<u64>| {
            let lines = crate::testing::Lines::default();
            let layers = Teller(Storyteller(omitted)).and_then(lines.clone());
            dispatcher::with_default(&composite(layers), || {
                tell_story();
                tracing::info_span!("request").in_scope(tell_story);
            });
            lines.take()
        };
        let said = lines(|id, dispatch| {
            let registry = dispatch.downcast_ref::<Registry>()?;
            Some(tracing_subscriber::registry::LookupSpan::span(registry, id)?.name().len() as u64)
        });
        assert_eq!(said.len(), 1, "nothing outside of a span: {said:?}");
        assert_eq!((&*said[0].target, said[0].fields["omitted"].as_str()), (crate::target::SERVER_HTTP, "7"));
        assert!(lines(|_, _| Some(0)).is_empty() && lines(|_, _| None).is_empty());
    }

    #[test]
    fn somebody_listens_where_there_is_a_subscriber() {
        assert!(is_deaf());
        dispatcher::with_default(&composite(Other), || assert!(!is_deaf()));
    }
}
