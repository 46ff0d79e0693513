//! The same numbers by OTLP: made once, sent everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mlx_manager_llm::Outcome;
use mlx_manager_signal::{event, metric::name};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        Temporality,
        data::{AggregatedMetrics, MetricData, ResourceMetrics},
        exporter::PushMetricExporter,
    },
};
use parking_lot::Mutex;

use super::{emit_everything, finish, metrics_with, record};
use crate::metric::{limit::Limits, meter_provider};

#[derive(Clone)]
struct Received {
    temporality: Temporality,
    points: Arc<Mutex<Vec<BTreeMap<String, f64>>>>,
}

impl Received {
    fn new(temporality: Temporality) -> Self {
        Self { temporality, points: Arc::default() }
    }

    fn last(&self) -> BTreeMap<String, f64> {
        self.points.lock().last().cloned().unwrap_or_default()
    }
}

impl PushMetricExporter for Received {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut points = BTreeMap::new();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let name = metric.name();
            let mut keep = |attributes: Vec<String>, value: f64| {
                points.insert(format!("{name}{{{}}}", attributes.join(",")), value);
            };
            let text = |attributes: &mut dyn Iterator<Item = &opentelemetry::KeyValue>| {
                attributes
                    .map(|pair| format!("{}={:?}", pair.key, pair.value))
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect::<Vec<_>>()
            };
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    sum.data_points().for_each(|point| keep(text(&mut point.attributes()), point.value() as f64));
                }
                AggregatedMetrics::F64(MetricData::Sum(sum)) => {
                    sum.data_points().for_each(|point| keep(text(&mut point.attributes()), point.value()));
                }
                AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                    gauge.data_points().for_each(|point| keep(text(&mut point.attributes()), point.value()));
                }
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    histogram.data_points().for_each(|point| {
                        assert!(point.bounds().count() > 5);
                        keep(text(&mut point.attributes()), point.count() as f64);
                    });
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        self.points.lock().push(points);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        self.temporality
    }
}

#[test]
fn the_same_numbers_go_out_by_otlp() {
    let (logfire, collector) = (Received::new(Temporality::Delta), Received::new(Temporality::Cumulative));
    let hour = Duration::from_secs(3600);
    let provider = meter_provider(Resource::builder_empty().build(), [logfire.clone(), collector.clone()], hour);
    let metrics = metrics_with(Limits::default(), Some(provider.clone()));
    let tokens =
        r#"mlx_manager.tokens{model=String(Owned("demo")),provider=String(Owned("mlx")),type=String(Owned("output"))}"#;
    let duration = r#"gen_ai.server.request.duration{gen_ai.operation.name=String(Owned("chat")),gen_ai.provider.name=String(Owned("mlx")),gen_ai.request.model=String(Owned("demo")),mlx_manager.provider=String(Owned("mlx"))}"#;
    for round in 1..=3 {
        metrics.within(|| finish(&record(Some("mlx"), "demo", Outcome::Ok)));
        metrics.flush().unwrap();
        assert_eq!(logfire.last().get(tokens), Some(&41.0), "round {round}: {:#?}", logfire.last().keys());
        assert_eq!(collector.last().get(tokens), Some(&(41.0 * f64::from(round))));
        assert_eq!(logfire.last().get(duration), Some(&1.0));
        assert_eq!(collector.last().get(duration), Some(&f64::from(round)));
        for received in [&logfire, &collector] {
            assert_eq!(
                received.last().get("mlx_manager.queue.depth{}"),
                Some(&0.0),
                "an unchanged gauge is sent again"
            );
            assert!(received.last()["process.memory.usage{}"] > 1e6);
        }
    }
    metrics.within(emit_everything);
    metrics.flush().unwrap();
    let names: BTreeSet<String> =
        collector.last().keys().filter_map(|series| Some(series.split_once('{')?.0.to_owned())).collect();
    let expected: BTreeSet<String> = name::catalogue().map(|(_, definition)| definition.otlp_name.to_owned()).collect();
    assert_eq!(names, expected);
    let called = collector.last().keys().any(|series| series.contains("server.port=I64(443)"));
    assert!(called, "ports are integers");
    provider.shutdown().unwrap();
}

#[test]
fn an_exporter_runs_by_itself() {
    let received = Received::new(Temporality::Cumulative);
    let provider = meter_provider(Resource::builder_empty().build(), [received.clone()], Duration::from_millis(10));
    let metrics = metrics_with(Limits::default(), Some(provider.clone()));
    metrics.within(|| event::QueueDepth(4).emit());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while received.last().get("mlx_manager.queue.depth{}") != Some(&4.0) {
        assert!(std::time::Instant::now() < deadline, "nothing was exported");
        std::thread::yield_now();
    }
    provider.shutdown().unwrap();
}
