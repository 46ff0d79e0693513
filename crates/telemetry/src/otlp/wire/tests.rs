//! What is written is what the SDK's exporter would have sent, to the byte.

use std::time::Duration;

use opentelemetry::trace::{Event, Link, TraceState};
use opentelemetry_proto::{
    tonic::{
        collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
        common::v1::any_value,
    },
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::*;

fn value() -> impl Strategy<Value = Value> {
    let text = || ".{0,20}".prop_map(opentelemetry::StringValue::from);
    prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::I64),
        (-4..4i64).prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        text().prop_map(Value::String),
        ".{100,300}".prop_map(|text| Value::String(text.into())),
        vec(any::<bool>(), 0..3).prop_map(|values| Value::Array(Array::Bool(values))),
        vec(any::<i64>(), 0..3).prop_map(|values| Value::Array(Array::I64(values))),
        vec(any::<f64>(), 0..3).prop_map(|values| Value::Array(Array::F64(values))),
        vec(text(), 0..20).prop_map(|values| Value::Array(Array::String(values))),
    ]
}

fn attribute_list() -> impl Strategy<Value = Vec<KeyValue>> {
    vec((".{0,10}", value()).prop_map(|(key, value)| KeyValue::new(key, value)), 0..6)
}

fn time() -> impl Strategy<Value = SystemTime> {
    prop_oneof![0..2u64, 1_700_000_000_000_000_000..1_800_000_000_000_000_000u64]
        .prop_map(|nanoseconds| UNIX_EPOCH + Duration::from_nanos(nanoseconds))
}

fn context() -> impl Strategy<Value = SpanContext> {
    (any::<u128>(), any::<u64>(), any::<u8>(), any::<bool>(), any::<bool>()).prop_map(
        |(trace, span, flags, remote, state)| {
            let state =
                if state { TraceState::from_key_value([("k", "v"), ("l", "w")]).unwrap() } else { TraceState::NONE };
            SpanContext::new(TraceId::from(trace), SpanId::from(span), TraceFlags::new(flags), remote, state)
        },
    )
}

fn spans() -> impl Strategy<Value = SpanData> {
    let kinds = vec![SpanKind::Internal, SpanKind::Server, SpanKind::Client, SpanKind::Producer, SpanKind::Consumer];
    let status = prop_oneof![Just(Status::Unset), Just(Status::Ok), ".{0,10}".prop_map(Status::error)];
    let event = (".{0,8}", time(), attribute_list(), 0..2u32).prop_map(|(n, t, a, d)| Event::new(n, t, a, d));
    let link = (context(), attribute_list(), 0..2u32).prop_map(|(context, a, d)| Link::new(context, a, d));
    let ids = (context(), prop_oneof![Just(0), any::<u64>()], any::<bool>());
    let lists = (attribute_list(), vec(event, 0..3), vec(link, 0..3), 0..300u32, any::<bool>());
    let target = prop_oneof![Just("mlx_manager::server::http"), Just("mlx_manager::store")];
    (ids, proptest::sample::select(kinds), ".{0,12}", time(), time(), lists, status, target).prop_map(
        |(
            ids,
            span_kind,
            name,
            start_time,
            end_time,
            (mut attributes, events, links, dropped, service),
            status,
            target,
        )| {
            if service {
                attributes.push(KeyValue::new("target", target));
            }
            let mut span = SpanData {
                span_context: ids.0,
                parent_span_id: SpanId::from(ids.1),
                parent_span_is_remote: ids.2,
                span_kind,
                name: name.into(),
                start_time,
                end_time,
                attributes,
                dropped_attributes_count: dropped,
                events: SpanEvents::default(),
                links: SpanLinks::default(),
                status,
                instrumentation_scope: super::super::scope(),
            };
            span.events.events = events;
            span.events.dropped_count = dropped;
            span.links.links = links;
            span.links.dropped_count = dropped;
            span
        },
    )
}

fn heads() -> (Heads, [Resource; 2]) {
    let resource = |name: &'static str| Resource::builder_empty().with_service_name(name).build();
    let resources = [resource("mlx-server"), Resource::builder_empty().with_schema_url([], "https://schema").build()];
    (Heads { server: Head::of(&resources[0]), manager: Head::of(&resources[1]) }, resources)
}

proptest! {
    #[test]
    fn spans_are_written_as_the_sdk_writes_them(spans in vec(spans(), 0..6)) {
        let (heads, resources) = heads();
        let items: Vec<_> = spans.iter().map(span).collect();
        let (server, manager): (Vec<_>, Vec<_>) =
            spans.into_iter().partition(|span| Service::of_span(span) == Service::Server);
        let mut expected = ExportTraceServiceRequest::default();
        for (spans, resource) in [server, manager].into_iter().zip(&resources) {
            if !spans.is_empty() {
                let resource = ResourceAttributesWithSchema::from(resource);
                expected.resource_spans.extend(group_spans_by_resource_and_scope(spans, &resource));
            }
        }
        prop_assert_eq!(request(&items, &heads), expected.encode_to_vec());
    }
}

#[test]
fn log_records_are_grouped_by_their_targets() {
    let record = |level, target| {
        let trace = Some((TraceId::from(7), SpanId::from(8)));
        let record = LogItem { timestamp: UNIX_EPOCH + Duration::from_secs(1), level, target, body: "", trace };
        let attributes = [("count", Any::Int(-1)), ("text", Any::Text("".into())), ("truth", Any::Bool(false))];
        log_record(&record, attributes.into_iter())
    };
    let (server, store) = ("mlx_manager::server::api", "mlx_manager::store");
    let items = [record(Level::ERROR, server), record(Level::INFO, store), record(Level::TRACE, server)];
    let (heads, _) = heads();
    let bytes = request(&items, &heads);
    let read = ExportLogsServiceRequest::decode(&*bytes).unwrap();
    assert_eq!(read.encode_to_vec(), bytes, "nothing that a reader doesn't know, and in its order");
    let scopes: Vec<_> = read.resource_logs.iter().flat_map(|logs| &logs.scope_logs).collect();
    let names: Vec<_> = scopes.iter().map(|scope| scope.scope.as_ref().unwrap().name.as_str()).collect();
    assert_eq!(names, [server, store]);
    let [error, trace] = &scopes[0].log_records[..] else { panic!("{scopes:?}") };
    assert_eq!((error.severity_number, &*error.severity_text, trace.severity_number), (17, "ERROR", 1));
    assert_eq!((error.time_unix_nano, error.flags, error.trace_id[15], error.span_id[7]), (1_000_000_000, 1, 7, 8));
    assert!(error.observed_time_unix_nano > error.time_unix_nano);
    assert_eq!(error.body.as_ref().unwrap().value, Some(any_value::Value::StringValue(String::new())));
    let values: Vec<_> = error.attributes.iter().map(|pair| pair.value.as_ref().unwrap().value.clone()).collect();
    let expected = [
        any_value::Value::IntValue(-1),
        any_value::Value::StringValue(String::new()),
        any_value::Value::BoolValue(false),
    ];
    assert_eq!(values, expected.map(Some));
}

#[test]
fn a_thread_keeps_little_room() {
    let long = "x".repeat(1_000_000);
    assert!(written(|to| bytes(1, long.as_bytes(), to)).len() > long.len());
    assert!(ROOM.take().capacity() <= KEPT_BYTES);
}
