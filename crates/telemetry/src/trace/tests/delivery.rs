//! What becomes of telemetry on its way: endpoints that are busy, away, slow or back again.

use std::time::Instant;

use opentelemetry::metrics::MeterProvider;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, metric::Data};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use tracing::Level;

use crate::otlp::{Any, LogItem};

use super::{
    collector::{HANG, eventually},
    *,
};

#[test]
fn a_busy_endpoint_is_tried_again_and_nothing_is_lost_or_doubled() {
    let collector = Collector::start();
    collector.answer(429);
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    within(&dispatch, || (0..5).for_each(|_| served(200)));
    eventually("a retry", || collector.headers().len() >= 3);
    assert_eq!(counts(&handle), (0, 0, 0));
    collector.answer(200);
    assert!(handle.flush(LONG));
    assert_eq!(collector.spans().len(), 5);
    assert_eq!(counts(&handle), (5, 0, 0));
    collector.answer(400);
    within(&dispatch, || served(200));
    assert!(handle.flush(LONG));
    assert_eq!(counts(&handle), (5, 0, 1), "a refusal is final");
}

#[test]
fn the_spool_keeps_what_the_endpoint_would_not_take_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start();
    collector.answer(503);
    let config = spooled(&collector, dir.path());
    let (dispatch, handle, _) = subscriber(&traces(), std::slice::from_ref(&config));
    for status in [201, 202, 203] {
        within(&dispatch, || served(status));
        assert!(handle.flush(LONG), "on disk is as good as flushed");
    }
    assert_eq!(counts(&handle), (0, 0, 0));
    let on_disk = handle.counters().spools().next().unwrap().bytes;
    assert!(on_disk > 0);
    assert!(handle.shutdown(LONG));
    drop((dispatch, handle));
    for file in std::fs::read_dir(dir.path().join("logfire")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()));
    }

    let before = collector.headers().len();
    let (dispatch, handle, _) = subscriber(&traces(), &[config]);
    eventually("a look at the endpoint", || collector.headers().len() > before);
    collector.answer(200);
    within(&dispatch, || served(204));
    assert!(handle.flush(LONG));
    eventually("all four spans", || counts(&handle).0 == 4);
    let statuses: Vec<_> =
        collector.spans().iter().map(|(_, span)| attribute(&span.attributes, "http.response.status_code")).collect();
    assert_eq!(statuses, [201, 202, 203, 204].map(|status| Some(Value::IntValue(status))), "in order, each once");
    eventually("an empty spool", || handle.counters().spools().next().unwrap().bytes == 0);
    assert!(collector.headers().iter().all(|headers| headers["authorization"] == TOKEN));
}

#[test]
fn an_endpoint_that_asks_for_patience_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    for spool in [false, true] {
        let collector = Collector::start();
        collector.answer(429);
        collector.retry_after(1);
        let config = if spool { spooled(&collector, dir.path()) } else { logfire(&collector) };
        let (dispatch, handle, _) = subscriber(&traces(), &[config]);
        within(&dispatch, || served(200));
        eventually("the first call", || !collector.headers().is_empty());
        collector.answer(200);
        eventually("delivery", || counts(&handle).0 == 1);
        let arrivals = collector.arrivals();
        assert_eq!(arrivals.len(), 2);
        assert!(arrivals[1] - arrivals[0] >= Duration::from_millis(950), "{:?}", arrivals[1] - arrivals[0]);
    }
}

#[test]
fn an_endpoint_that_hangs_holds_up_nobody_and_losses_are_counted() {
    let collector = Collector::start();
    collector.answer(HANG);
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    let spans: u64 = 20_000;
    let start = Instant::now();
    within(&dispatch, || (0..spans).for_each(|_| served(200)));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let (_, dropped, _) = counts(&handle);
    assert!((1..spans - 10_000).contains(&dropped), "{dropped}");
    let start = Instant::now();
    assert!(!handle.flush(Duration::from_millis(100)));
    assert!(!handle.shutdown(Duration::from_millis(200)), "memory only: what is left is lost");
    assert!(start.elapsed() < Duration::from_secs(5), "deadlines are kept");
    let (exported, dropped, failed) = counts(&handle);
    assert_eq!(exported + dropped + failed, spans, "every span is accounted for");
}

#[test]
fn a_batch_that_is_too_large_for_the_endpoint_is_given_up_and_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    for spool in [false, true] {
        let collector = Collector::start();
        let config = if spool { spooled(&collector, dir.path()) } else { logfire(&collector) };
        let (dispatch, handle, _) = subscriber(&traces(), &[config]);
        if spool {
            collector.answer(503);
            within(&dispatch, || served(200));
            assert!(handle.flush(LONG));
        }
        collector.answer(413);
        within(&dispatch, || served(200));
        assert!(handle.flush(LONG));
        let given_up = if spool { 2 } else { 1 };
        eventually("the refusal", || counts(&handle) == (0, 0, given_up));
        collector.answer(200);
        within(&dispatch, || served(201));
        assert!(handle.flush(LONG));
        eventually("the next one", || counts(&handle) == (1, 0, given_up));
        assert!(handle.shutdown(LONG));
    }
}

#[test]
fn what_an_endpoint_takes_in_part_is_counted_in_part_and_not_sent_again() {
    let collector = Collector::start();
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    for (rejected, counted) in [(1, (0, 0, 1)), (0, (1, 0, 1)), (300, (1, 0, 2))] {
        collector.reject(rejected);
        within(&dispatch, || served(200));
        assert!(handle.flush(LONG));
        assert_eq!(counts(&handle), counted);
    }
    assert_eq!(collector.spans().len(), 3);
}

#[test]
fn shutdown_saves_to_disk_what_a_hanging_endpoint_does_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start();
    collector.answer(HANG);
    let (dispatch, handle, _) = subscriber(&traces(), &[spooled(&collector, dir.path())]);
    within(&dispatch, || (0..1_000).for_each(|_| served(200)));
    let start = Instant::now();
    assert!(handle.shutdown(Duration::from_secs(2)));
    assert!(start.elapsed() < Duration::from_secs(10));
    drop((dispatch, handle));

    collector.answer(200);
    let (_dispatch, handle, _) = subscriber(&traces(), &[spooled(&collector, dir.path())]);
    eventually("delivery", || counts(&handle).0 == 1_000);
    assert_eq!(collector.spans().len(), 1_000);
}

fn record(level: Level, target: &'static str, body: &'static str) -> LogItem<'static> {
    LogItem { timestamp: SystemTime::now(), level, target, body, trace: None }
}

#[test]
fn nothing_that_the_export_thread_does_is_exported() {
    let collector = Collector::start();
    let (dispatch, handle, logs) = subscriber(&traces(), &[logfire(&collector)]);
    let (done, finished) = std::sync::mpsc::channel();
    let theirs = dispatch.clone();
    handle.exporters.export_runtime().spawn(async move {
        within(&theirs, || served(500));
        logs.unwrap().emit(&record(Level::ERROR, "reqwest", "oops"), std::iter::empty());
        done.send(()).unwrap();
    });
    finished.recv().unwrap();
    within(&dispatch, || served(200));
    assert!(handle.flush(LONG));
    assert_eq!(collector.spans().len(), 1);
    assert_eq!(collector.logs().len(), 0);
}

#[test]
fn log_records_carry_their_trace_and_their_service() {
    let collector = Collector::start();
    let (dispatch, handle, logs) = subscriber(&traces(), &[logfire(&collector)]);
    let logs = logs.unwrap();
    let ids = within(&dispatch, || {
        let context = server_span().context();
        let ids = context.span().span_context().clone();
        (ids.trace_id(), ids.span_id())
    });
    let attributes = [("tokens", Any::Int(7)), ("model", Any::Text("demo".into()))];
    let slow = LogItem { trace: Some(ids), ..record(Level::WARN, "mlx_manager::server::dispatch", "slow") };
    logs.emit(&slow, attributes.into_iter());
    logs.emit(&record(Level::INFO, "mlx_manager::serverless", "up"), std::iter::empty());
    assert!(handle.flush(LONG));
    let records = collector.logs();
    let (service, record) = &records[0];
    assert_eq!((service.as_str(), record.severity_number, record.severity_text.as_str()), ("mlx-server", 13, "WARN"));
    assert_eq!(record.body.clone().unwrap().value, string("slow"));
    assert_eq!(attribute(&record.attributes, "tokens"), Some(Value::IntValue(7)));
    assert_eq!(record.trace_id, ids.0.to_bytes());
    assert_eq!(record.span_id, ids.1.to_bytes());
    assert_eq!(records[1].0, "mlx-manager");
    assert_eq!(records[1].1.trace_id, [0_u8; 0]);
    let logs = handle.counters().read().find(|reading| reading.signal == Signal::Logs).unwrap();
    assert_eq!(logs.exported, 2);
}

#[test]
fn metrics_take_the_same_way_in_deltas_for_logfire() {
    let collector = Collector::start();
    let plain =
        OtlpConfig { name: "plain".to_owned(), kind: OtlpKind::Otlp, send: Send::Always, ..logfire(&collector) };
    let (_dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector), plain]);
    for (destination, temporality) in
        handle.metrics().unwrap().into_iter().zip([AggregationTemporality::Delta, AggregationTemporality::Cumulative])
    {
        let reader = PeriodicReader::builder(destination.exporter).with_interval(Duration::from_secs(3600)).build();
        let provider = SdkMeterProvider::builder().with_resource(destination.resource).with_reader(reader).build();
        provider.meter("test").u64_counter("requests").build().add(3, &[]);
        provider.force_flush().unwrap();
        let request = collector.metrics().pop().unwrap();
        let metric = request.resource_metrics[0].scope_metrics[0].metrics[0].clone();
        assert_eq!(metric.name, "requests");
        let Some(Data::Sum(sum)) = metric.data else { panic!("{metric:?}") };
        assert_eq!(sum.aggregation_temporality(), temporality);
        let reading = handle
            .counters()
            .read()
            .find(|reading| *reading.destination == *destination.name && reading.signal == Signal::Metrics);
        assert_eq!(reading.unwrap().exported, 1);
        provider.shutdown().unwrap();
    }
    assert_eq!(collector.headers()[0]["content-encoding"], "gzip");
    assert!(!collector.headers()[1].contains_key("content-encoding"));
}
