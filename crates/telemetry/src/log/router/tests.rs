use std::sync::atomic::{AtomicU64, Ordering};

use mlx_manager_config::{Level as Limit, LogConfig, SemanticConventions, Timezone};
use mlx_manager_signal::{
    hook::{Conventions, Follower},
    propagate,
    target::{HTTP, LOG, SERVER_CLOUD, SERVER_DISPATCH, STORE},
};
use opentelemetry::trace::{SpanContext as OtelSpanContext, SpanId, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use parking_lot::Mutex;
use tracing::{Level, info_span, subscriber::with_default};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::log::{Terminal, build, record::Value};

fn config(level: Limit) -> LogConfig {
    LogConfig {
        level,
        directives: vec![],
        targets: vec![],
        dir: "".into(),
        timezone: Timezone::Utc,
        failure_story: false,
        sinks: vec![],
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    level: Level,
    message: String,
    fields: Fields,
    context: Fields,
    request_id: Option<String>,
    trace: Option<TraceIds>,
    spans: Vec<&'static str>,
}

#[derive(Default)]
struct Observer(Mutex<Vec<Seen>>);

impl RecordObserver for Observer {
    fn observe(&self, record: &LogRecord<'_>) {
        self.0.lock().push(Seen {
            level: record.level,
            message: record.message.to_owned(),
            fields: record.fields.clone(),
            context: record.context.clone(),
            request_id: record.request_id.map(str::to_owned),
            trace: record.trace,
            spans: record.spans.to_vec(),
        });
    }
}

/// Keeps finished spans.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

/// Runs something under a router with a real trace layer, and returns the finished spans.
fn traced(level: Limit, observer: Option<Arc<dyn RecordObserver>>, run: impl FnOnce()) -> Vec<SpanData> {
    let exporter = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    // As the daemon has it; the router passes no entering on.
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_context_activation(false);
    let layer: BoxedLayer = Box::new(layer);
    let (router, _handle) =
        build(&config(level), Terminal::default(), Some(TraceLayer { layer, recording: true }), observer).unwrap();
    with_default(Registry::default().with(router), run);
    exporter.0.lock().clone()
}

fn observed(level: Limit, run: impl FnOnce()) -> Vec<Seen> {
    let observer = Arc::new(Observer::default());
    let (router, _handle) = build(&config(level), Terminal::default(), None, Some(observer.clone())).unwrap();
    with_default(Registry::default().with(router), run);
    observer.0.lock().clone()
}

fn fields(list: &[(&'static str, Value<'_>)]) -> Fields {
    let mut fields = Fields::default();
    list.iter().for_each(|(key, value)| fields.set(key, *value));
    fields
}

#[test]
fn log_level_changes_no_span_and_extensions_reach_the_trace_layer() {
    for level in [Limit::Off, Limit::Error, Limit::Trace] {
        let remote = OtelSpanContext::new(
            TraceId::from(0x77_u128),
            SpanId::from(5_u64),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        let spans = traced(level, None, || {
            let outer = info_span!(target: "mlx_manager::server::http", "outer", late = tracing::field::Empty);
            outer.set_parent(opentelemetry::Context::new().with_remote_span_context(remote.clone())).unwrap();
            outer.in_scope(|| {
                tracing::error!("what only who ends the span can judge");
                info_span!(target: LOG, "inner").in_scope(|| ());
                tracing::debug_span!(target: LOG, "too fine").in_scope(|| ());
                info_span!(target: "hyper::client", "foreign").in_scope(|| ());
            });
            outer.set_attribute("key", "value");
            outer.record("late", 3);
        });
        let names: Vec<_> = spans.iter().map(|span| span.name.to_string()).collect();
        assert_eq!(names, ["inner", "outer"], "{level:?}");
        assert!(spans.iter().all(|span| span.span_context.trace_id() == TraceId::from(0x77_u128)));
        assert_eq!(spans[0].parent_span_id, spans[1].span_context.span_id());
        for (key, value) in [("key", "value"), ("late", "3")] {
            assert!(spans[1].attributes.iter().any(|pair| pair.key.as_str() == key && pair.value.as_str() == value));
        }
        assert!(spans[1].events.is_empty(), "a record is exported as a record");
    }
}

#[test]
fn records_carry_the_ids_of_their_trace() {
    let observer = Arc::new(Observer::default());
    let spans = traced(Limit::Info, Some(observer.clone()), || {
        info_span!(target: LOG, "outer", request_id = "r1").in_scope(|| {
            tracing::info!("first");
            tracing::info!("second");
        });
        tracing::info!("outside");
    });
    let seen = observer.0.lock().clone();
    let expected = TraceIds::of(&spans[0].span_context);
    assert!(expected.is_some());
    let found: Vec<_> =
        seen.iter().map(|seen| (seen.message.as_str(), seen.trace, seen.request_id.as_deref())).collect();
    assert_eq!(found, [("first", expected, Some("r1")), ("second", expected, Some("r1")), ("outside", None, None)]);
}

#[test]
fn context_is_typed_and_late_record_replaces() {
    let seen = observed(Limit::Error, || {
        let outer =
            info_span!(target: LOG, "outer", request_id = tracing::field::Empty, model = "a", gen_ai.prompt = "secret");
        let _outer = outer.enter();
        let inner = info_span!(target: LOG, "inner", tokens = 1_i64, model = "b");
        outer.record("request_id", "first");
        outer.record("request_id", "second");
        inner.record("tokens", 2_i64);
        inner.in_scope(|| tracing::error!(own = true, "message"));
        tracing::warn!("below the level");
    });
    assert_eq!(
        seen,
        [Seen {
            level: Level::ERROR,
            message: "message".into(),
            fields: fields(&[("own", Value::Bool(true))]),
            context: fields(&[("tokens", Value::Signed(2)), ("model", Value::Text("b"))]),
            request_id: Some("second".into()),
            trace: None,
            spans: vec!["outer", "inner"],
        }]
    );
}

#[test]
fn own_request_id_counts_outside_of_a_span_and_an_event_hides_its_context() {
    let seen = observed(Limit::Info, || {
        tracing::info!(request_id = "r1", "outside");
        let span = info_span!(target: LOG, "span", request_id = "r1", tokens = 1);
        span.in_scope(|| tracing::info!(request_id = "r1", tokens = 2, "same"));
        span.in_scope(|| tracing::info!(request_id = "r2", "other"));
        tracing::info!(parent: &span, "explicit parent");
    });
    let found: Vec<_> = seen.into_iter().map(|seen| (seen.request_id.unwrap(), seen.fields, seen.context)).collect();
    let tokens = |count| fields(&[("tokens", Value::Signed(count))]);
    let other = fields(&[("request_id", Value::Text("r2"))]);
    assert_eq!(
        found,
        [
            ("r1".to_owned(), Fields::default(), Fields::default()),
            ("r1".to_owned(), tokens(2), Fields::default()),
            ("r1".to_owned(), other, tokens(1)),
            ("r1".to_owned(), Fields::default(), tokens(1)),
        ]
    );
}

#[derive(Debug, thiserror::Error)]
#[error("outer failed")]
struct Outer(#[source] std::io::Error);

#[test]
fn error_fields_carry_their_causes() {
    let seen = observed(Limit::Info, || {
        let error = Outer(std::io::Error::other("the disk is gone"));
        tracing::error!(error = &error as &dyn std::error::Error, "failed");
    });
    let chain = ["outer failed".to_owned(), "the disk is gone".to_owned()];
    assert_eq!(seen[0].fields, fields(&[("error", Value::Error(&chain))]));
}

#[test]
fn callsite_that_nobody_takes_is_off() {
    let evaluated = AtomicU64::new(0);
    let seen = observed(Limit::Error, || {
        assert!(!tracing::enabled!(Level::INFO));
        assert!(!tracing::enabled!(target: "hyper", Level::WARN));
        assert!(tracing::enabled!(Level::ERROR));
        tracing::info!(lazy = evaluated.fetch_add(1, Ordering::Relaxed), "unseen");
        tracing::error!(lazy = evaluated.fetch_add(1, Ordering::Relaxed), "seen");
    });
    assert_eq!((seen.len(), evaluated.into_inner()), (1, 1));
}

#[test]
fn the_hooks_are_found_through_the_router() {
    let conventions = Conventions {
        recording: true,
        version: SemanticConventions::Both,
        capture_content: false,
        propagator: Box::leak(Box::new(TraceContextPropagator::new())),
    };
    let layer: BoxedLayer = Box::new(tracing_opentelemetry::layer().and_then(conventions).and_then(Follower(None)));
    let (router, _handle) =
        build(&config(Limit::Info), Terminal::default(), Some(TraceLayer { layer, recording: true }), None).unwrap();
    let dispatch = Dispatch::new(Registry::default().with(router));
    assert!(dispatch.downcast_ref::<Conventions>().is_some_and(|conventions| conventions.recording));
    assert!(dispatch.is::<Follower>() && dispatch.is::<Storyteller>());

    let (router, _handle) = build(&config(Limit::Info), Terminal::default(), None, None).unwrap();
    let dispatch = Dispatch::new(Registry::default().with(router));
    assert!(dispatch.is::<Storyteller>() && !dispatch.is::<Conventions>() && !dispatch.is::<Follower>());
}

/// Runs something under a router whose trace layer is there for ids only, and returns the names of finished spans.
fn for_ids(observer: Option<Arc<dyn RecordObserver>>, run: impl FnOnce()) -> Vec<String> {
    let exporter = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer: BoxedLayer = Box::new(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
    let layer = TraceLayer { layer, recording: false };
    let (router, _handle) = build(&config(Limit::Info), Terminal::default(), Some(layer), observer).unwrap();
    with_default(Registry::default().with(router), run);
    exporter.0.lock().iter().map(|span| span.name.to_string()).collect()
}

#[test]
fn where_nobody_exports_spans_all_go_by_the_ids_of_the_outermost() {
    let observer = Arc::new(Observer::default());
    let mut ids = None;
    let finished = for_ids(Some(observer.clone()), || {
        let http = tracing::info_span!(target: SERVER_HTTP, "http", request_id = "r-1");
        let inference = tracing::info_span!(target: SERVER_DISPATCH, parent: &http, "inference", model = "m");
        let attempt = tracing::info_span!(target: SERVER_CLOUD, parent: &inference, "attempt");
        attempt.in_scope(|| tracing::error!("inside"));
        ids = propagate::ids(&http);
        assert_eq!(propagate::ids(&attempt), ids);
        let mut headers = http::HeaderMap::new();
        propagate::inject(&attempt, &mut headers);
        assert!(headers["traceparent"].to_str().unwrap().contains(&ids.as_ref().unwrap().span_id));
    });
    assert_eq!(finished, ["http"]);
    let (seen, ids) = (observer.0.lock().remove(0), ids.unwrap());
    let trace = seen.trace.unwrap();
    assert_eq!((trace.trace_id.to_string(), trace.span_id.to_string()), (ids.trace_id, ids.span_id));
    assert_eq!((seen.request_id.as_deref(), seen.spans), (Some("r-1"), vec!["http", "inference", "attempt"]));
    assert_eq!(seen.context, fields(&[("model", Value::Text("m"))]));
}

#[test]
fn where_nobody_takes_records_either_there_is_a_requests_own_span_and_no_other() {
    let finished = for_ids(None, || {
        let http = tracing::info_span!(target: SERVER_HTTP, "http", request_id = "r-1");
        let inference = tracing::info_span!(target: SERVER_DISPATCH, parent: &http, "inference");
        assert!(inference.is_disabled() && tracing::info_span!(target: STORE, "database").is_disabled());
        let ids = propagate::ids(&http);
        assert!(ids.is_some() && propagate::ids(&inference).is_none(), "outside of the request");
        http.in_scope(|| assert_eq!(propagate::ids(&inference), ids));
        assert!(!tracing::info_span!(target: HTTP, "http").is_disabled());
    });
    assert_eq!(finished, ["http", "http"]);
}
