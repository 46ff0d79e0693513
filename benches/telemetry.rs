//! What telemetry costs where the request pays for it: per span, per measurement, per streamed token and per request.
//!
//! `cargo bench --bench telemetry`. No network but the exporter's. Peers run in the same process, round by round, on the
//! same attributes and labels. benches/README.md says more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]
#![expect(clippy::disallowed_macros, reason = "a peer records the way its own documentation shows")]

mod rig {
    pub mod clock;
    pub mod collector;
    pub mod cores;
    pub mod cost;
    pub mod elsewhere;
    pub mod machine;
    pub mod ps;
    pub mod rounds;
    pub mod serve;
    pub mod statistics;
    pub mod tree;
}

use std::{cell::Cell, env, hint::black_box, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::{FutureExt, StreamExt, stream};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use mlx_manager_llm::{Answer, Event};
use mlx_manager_signal::{
    event::{AttemptFinished, RouteDecided},
    redact::ModelLabel,
    span,
};
use opentelemetry::{
    KeyValue,
    trace::{Span as _, SpanKind, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor},
};
use tracing::{Span, info_span};
use tracing_subscriber::{Registry, layer::SubscriberExt};

use rig::{
    clock::ThreadTime,
    collector::Collector,
    cores::Cores,
    cost::Used,
    elsewhere::Elsewhere,
    machine::machine,
    rounds::Rounds,
    tree::{Daemon, Sinks},
};

/// The daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;
/// Spans of a round: what our queue for the exporter holds, with room to spare.
const SPANS: u32 = 8_000;
const MEASUREMENTS: u32 = 50_000;
const TOKENS: u32 = 200_000;
/// Of the requests, which the queues can take.
const BURST: u32 = 100;
const BURSTS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(20);
/// The aims.
const AIM_REQUEST_MICROSECONDS: f64 = 40.0;
const AIM_TOKEN_NANOSECONDS: f64 = 100.0;

/// The first argument of this binary where it is to make requests; the receiver's address and what is on follow.
const REQUESTS: &str = "requests";
/// The same where it is to measure the pieces of one. Both are processes of their own, for telemetry is installed once
/// and for all, and what the console sink says belongs to nobody here.
const PIECES: &str = "pieces";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [REQUESTS, collector, sinks] => return requests(sinks.parse()?, collector.parse()?),
        [PIECES, collector] => return pieces(collector.parse()?),
        _ => {}
    }
    println!("{}", machine());
    let cores = Cores::share_out();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (collector, address) = runtime.block_on(Collector::start())?;
    let child = |arguments: &[&str]| {
        let mut command = cores.gateway(env::current_exe()?.as_os_str());
        let output = command.args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let address = address.to_string();
    println!("medians (lowest–highest) of {ROUNDS} rounds");
    print!("{}", child(&[PIECES, &address])?);

    let mut trees: Vec<(Sinks, [Rounds; 3])> =
        Sinks::ALL.into_iter().map(|sinks| (sinks, Default::default())).collect();
    for _ in 0..ROUNDS {
        for (sinks, rounds) in &mut trees {
            let text = child(&[REQUESTS, &address, sinks.as_str()])?;
            let figures: Vec<_> = text.split_whitespace().collect();
            ensure!(figures.len() == rounds.len(), "no figures: {text:?}");
            for (rounds, figure) in rounds.iter_mut().zip(figures) {
                rounds.0.push(figure.parse()?);
            }
        }
    }
    ensure!(collector.bytes() > 0, "nothing was exported");
    println!(
        "\na request's whole telemetry, µs of the caller by itself and between a daemon's other work, and of the other threads"
    );
    println!("{:<20} {:>20} {:>20} {:>20}", "on is …", "by itself", "between", "others");
    for (sinks, [warm, cold, others]) in &trees {
        println!("{:<20} {warm:>20.1} {cold:>20.1} {others:>20.1}", sinks.as_str());
    }
    let [_, cold, others] = &trees.last().context("there are no arms")?.1;
    let full = cold.median() + others.median();
    println!(
        "aim: at most {AIM_REQUEST_MICROSECONDS} µs of all threads ({})",
        verdict(full <= AIM_REQUEST_MICROSECONDS)
    );
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// Measures and prints what the parts of a request's telemetry cost.
fn pieces(collector: std::net::SocketAddr) -> Result<()> {
    let daemon = Daemon::start(Sinks::Everything, collector)?;
    report("a span with 9 attributes", &spans(&daemon));
    report("a measurement", &measurements()?);
    let tokens = tokens(&daemon);
    report("a streamed token", &tokens);
    let token = tokens.last().context("there are no tokens")?.1.median();
    println!("aim: at most {AIM_TOKEN_NANOSECONDS} ns ({})", verdict(token <= AIM_TOKEN_NANOSECONDS));
    daemon.settle();
    daemon.check()
}

fn report(what: &str, arms: &Arms) {
    println!("\n{what:<44} {:>24}", "ns of the caller");
    for (name, rounds) in arms {
        println!("{name:<44} {rounds:>24}");
    }
}

/// A name, and what does a piece of work so many times.
type Work<'a> = (&'static str, Box<dyn Fn(u32) + 'a>);

/// Names and figures.
type Arms = Vec<(&'static str, Rounds)>;

/// Measures the arms in turn. Each gets how often to do its work, and says what it cost in nanoseconds for one.
fn interleaved(count: u32, arms: Vec<Work<'_>>, between: impl Fn()) -> Arms {
    let mut rounds: Arms = arms.iter().map(|(name, _)| (*name, Rounds::default())).collect();
    // The first round only warms up.
    for round in 0..=ROUNDS {
        for ((_, work), (_, rounds)) in arms.iter().zip(&mut rounds) {
            let started = ThreadTime::now();
            work(count);
            let used = started.nanoseconds() / f64::from(count);
            if round > 0 {
                rounds.0.push(used);
            }
            between();
        }
    }
    rounds
}

/// Makes requests and prints what one cost, in microseconds: the thread that makes one after the other, the same where it does
/// a daemon's other work before each, and all other threads.
fn requests(sinks: Sinks, collector: std::net::SocketAddr) -> Result<()> {
    let daemon = Daemon::start(sinks, collector)?;
    let request = daemon.decoded()?;
    let one = || {
        let started = ThreadTime::now();
        daemon.request(&request);
        started.nanoseconds()
    };
    let bursts = |one: &dyn Fn() -> f64| -> f64 {
        let burst = |_| {
            let used = (0..BURST).map(|_| one()).sum::<f64>();
            // A load that the queues can take: the aim is a cost, not a peak.
            thread::sleep(PAUSE);
            used
        };
        (0..BURSTS).map(burst).sum()
    };
    (0..BURST).for_each(|_| daemon.request(&request));
    daemon.settle();
    let (before, started) = (Used::of(std::process::id())?, ThreadTime::now());
    let warm = bursts(&one);
    daemon.settle();
    let others = Used::of(std::process::id())?.since(&before).as_secs_f64() * 1e9 - started.nanoseconds();
    let elsewhere = Elsewhere::open(daemon.body())?;
    let failed = Cell::new(None);
    let cold = bursts(&|| {
        failed.set(elsewhere.work().err().or(failed.take()));
        one()
    });
    failed.take().map_or(Ok(()), Err)?;
    daemon.settle();
    daemon.check()?;
    let figures = [warm, cold, others].map(|nanoseconds| nanoseconds / 1e3 / f64::from(BURST * BURSTS));
    println!("{} {} {}", figures[0], figures[1], figures[2]);
    Ok(())
}

/// Takes spans and forgets them.
#[derive(Debug)]
struct Nowhere;

impl SpanProcessor for Nowhere {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        black_box(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The span of a call to a provider, in three ways. Ours goes into the exporter's queue, the peers' nowhere.
fn spans(daemon: &Daemon) -> Arms {
    let provider = SdkTracerProvider::builder().with_span_processor(Nowhere).build();
    let tracer = provider.tracer("peer");
    let url = daemon.url();
    let full = url.to_string();
    let raw = |count: u32| {
        for _ in 0..count {
            let attributes = vec![
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("url.full", full.clone()),
                KeyValue::new("url.path", url.path().to_owned()),
                KeyValue::new("url.scheme", url.scheme().to_owned()),
                KeyValue::new("server.address", url.host_str().unwrap_or_default().to_owned()),
                KeyValue::new("server.port", 443),
                KeyValue::new("logfire.msg", format!("POST {full}")),
            ];
            let builder = tracer.span_builder("POST").with_kind(SpanKind::Client).with_attributes(attributes);
            let mut span = builder.start(&tracer);
            span.set_attribute(KeyValue::new("http.response.status_code", 200));
            span.set_attribute(KeyValue::new("logfire.level_num", 9));
            span.end();
        }
    };
    let dispatch: tracing::Dispatch =
        Registry::default().with(tracing_opentelemetry::layer().with_tracer(provider.tracer("layer"))).into();
    let layer = |count: u32| {
        tracing::dispatcher::with_default(&dispatch, || {
            for _ in 0..count {
                let span = info_span!(
                    "attempt",
                    otel.name = "POST",
                    otel.kind = "client",
                    http.request.method = "POST",
                    url.full = full,
                    url.path = url.path(),
                    url.scheme = url.scheme(),
                    server.address = url.host_str(),
                    server.port = 443,
                    logfire.msg = format!("POST {full}"),
                    http.response.status_code = tracing::field::Empty,
                    logfire.level_num = tracing::field::Empty,
                );
                span.record("http.response.status_code", 200);
                span.record("logfire.level_num", 9);
            }
        });
    };
    let ours = |count: u32| {
        for _ in 0..count {
            let span = span::attempt(&Span::none(), url, 0);
            span::attempt_finished(&span, Some(200), None);
        }
    };
    let arms: Vec<Work<'_>> = vec![
        ("opentelemetry's own API, no tracing span", Box::new(raw)),
        ("tracing-opentelemetry, as it comes", Box::new(layer)),
        ("ours, with log context and queue", Box::new(ours)),
    ];
    interleaved(SPANS, arms, || daemon.settle())
}

/// A histogram with five labels and a counter with one, through the macros into a Prometheus recorder and through our
/// events into ours, which feeds OTLP too. Ours include the log line that nobody wants.
fn measurements() -> Result<Arms> {
    let builder = PrometheusBuilder::new();
    let buckets = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
    let recorder = builder.set_buckets_for_metric(Matcher::Full("duration".to_owned()), &buckets)?.build_recorder();
    let page = recorder.handle();
    let (address, port, duration) = ("api.openai.com", 443, Duration::from_millis(300));
    let macros = |count: u32| {
        metrics::with_local_recorder(&recorder, || {
            for _ in 0..count {
                metrics::histogram!(
                    "duration", "method" => "POST", "server_address" => address.to_owned(),
                    "server_port" => port.to_string(), "status_code" => 200.to_string()
                )
                .record(duration.as_secs_f64());
            }
        });
    };
    let ours = |count: u32| {
        for _ in 0..count {
            AttemptFinished { provider: "openai", address, port, status: Some(200), error_type: None, duration }.emit();
        }
    };
    let counter_macro = |count: u32| {
        metrics::with_local_recorder(&recorder, || {
            for _ in 0..count {
                metrics::counter!("decisions", "rule" => "gpt-*".to_owned()).increment(1);
            }
        });
    };
    let model = ModelLabel::new("gpt-4o-mini");
    let counter_ours = |count: u32| {
        for _ in 0..count {
            RouteDecided { rule: "gpt-*", model: &model, target: Some("openai") }.emit();
        }
    };
    let arms: Vec<Work<'_>> = vec![
        ("histogram: metrics' macro, Prometheus", Box::new(macros)),
        ("histogram: ours, Prometheus and OTLP", Box::new(ours)),
        ("counter: metrics' macro, Prometheus", Box::new(counter_macro)),
        ("counter: ours, Prometheus and OTLP", Box::new(counter_ours)),
    ];
    Ok(interleaved(MEASUREMENTS, arms, || page.run_upkeep()))
}

/// An answer of many tokens, as it is and through the meter.
fn tokens(daemon: &Daemon) -> Arms {
    let events = |count: u32| {
        let frame = bytes::Bytes::from_static(b"data: {}\n\n");
        stream::iter((0..count).map(move |_| Ok(Event::Raw { frame: frame.clone(), content: 1 }))).boxed()
    };
    let bare = |count: u32| events(count).for_each(consumed).now_or_never().unwrap_or_default();
    let metered = |count: u32| {
        let (_, _, meter) = daemon.open();
        let answer = meter.measure(Answer { headers: http::HeaderMap::new(), events: events(count), retries: 0 });
        answer.for_each(consumed).now_or_never().unwrap_or_default();
    };
    let arms: Vec<Work<'_>> = vec![("the events alone", Box::new(bare)), ("through the meter", Box::new(metered))];
    interleaved(TOKENS, arms, || ())
}

fn consumed(event: Result<Event, mlx_manager_llm::Error>) -> std::future::Ready<()> {
    drop(black_box(event));
    std::future::ready(())
}
