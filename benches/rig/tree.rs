//! One chat completion as telemetry sees it: every span, measurement, log line and audit row, and no network.

use std::{
    cell::Cell,
    fs,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Request};
use mlx_manager::{
    app::BUILD,
    gateway::dispatch::meter::Meter,
    store::{self, AuditSender},
};
use mlx_manager_config::{LoadOptions, ProviderKind, load_text};
use mlx_manager_dialect as dialect;
use mlx_manager_llm as llm;
use mlx_manager_llm::{Answer, Api, Context, Dialect, Event, FinishReason, Usage};
use mlx_manager_signal::{
    event::{AttemptFinished, HttpRequestFinished, HttpRequestStarted, RequestDecoded, RouteDecided, TargetCalled},
    price::PriceList,
    propagate,
    route::Kind,
    span::{self, Destination, InferenceStart},
};
use mlx_manager_telemetry::{Telemetry, log::Terminal};
use reqwest::Url;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tracing::Span;
use uuid::Uuid;

use super::statistics::metric;

const MODEL: &str = "gpt-4o-mini";
const ROUTE: &str = Api::ChatCompletions.path();
/// The usage as the provider writes it.
const REPORTED: &str = r#"{"prompt_tokens":250,"completion_tokens":50,"total_tokens":300,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}"#;
/// What is put off is put off for half a second at most.
const SETTLE: Duration = Duration::from_millis(800);

/// What is switched on; each holds the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sinks {
    /// Nothing is installed: the calls themselves, and the audit.
    Nothing,
    /// Metrics, which can't be switched off, and spans that have ids only.
    Metrics,
    /// Spans by OTLP.
    Spans,
    /// Log files as the default has them, and logs and metrics by OTLP.
    Everything,
}

impl Sinks {
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Metrics, Self::Spans, Self::Everything];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Metrics => "metrics",
            Self::Spans => "spans",
            Self::Everything => "everything",
        }
    }

    fn config(self, collector: SocketAddr) -> String {
        let (send, signals) = match self {
            Self::Nothing | Self::Metrics => ("never", r#"["traces"]"#),
            Self::Spans => ("always", r#"["traces"]"#),
            Self::Everything => ("always", r#"["traces", "metrics", "logs"]"#),
        };
        let quiet = if self == Self::Everything { "" } else { "[log]\nlevel = \"off\"\nsinks = []\n" };
        format!(
            "[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"http://{collector}\"\nsend = \"{send}\"\n\
             signals = {signals}\n[local]\ndefault_model = \"\"\n{quiet}"
        )
    }
}

impl FromStr for Sinks {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|sinks| sinks.as_str() == text).with_context(|| format!("{text:?} can't be on"))
    }
}

/// This process with a daemon's telemetry and audit in it.
pub struct Daemon {
    telemetry: Option<Telemetry>,
    audit: AuditSender,
    body: String,
    url: Url,
    prices: Arc<PriceList>,
    sent: Cell<u64>,
    _runtime: tokio::runtime::Runtime,
    _folder: TempDir,
}

impl Daemon {
    pub fn start(sinks: Sinks, collector: SocketAddr) -> Result<Self> {
        let folder = TempDir::new()?;
        let file = folder.path().join("config.toml");
        let text = sinks.config(collector);
        fs::write(&file, &text)?;
        let config = load_text(&text, Some(&file), &LoadOptions::default())
            .map_err(|problems| anyhow::anyhow!("the configuration is wrong: {problems:?}"))?;
        let config = config.config;
        let telemetry = match sinks {
            Sinks::Nothing => None,
            // A pipe for the console sink, as under a supervisor.
            _ => Some(Telemetry::start(&config, Terminal::default(), BUILD)?),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (audit, write) = store::writer(config.database, std::future::pending());
        runtime.spawn(write);
        let text = "The quick brown fox jumps over the lazy dog and runs on. ".repeat(14);
        let body = json!({
            "model": MODEL, "temperature": 0.7, "max_tokens": 256, "messages": [{ "role": "user", "content": text }],
        });
        let prices = Arc::new(PriceList::new(Dialect::OpenAi, "https://api.openai.com/v1", "openai", &[]));
        let (body, url) = (body.to_string(), "https://api.openai.com/v1/chat/completions".parse()?);
        Ok(Self { telemetry, audit, body, url, prices, sent: Cell::new(0), _runtime: runtime, _folder: folder })
    }

    /// A request that arrived, and its record.
    pub fn open(&self) -> (Span, Context, Box<Meter>) {
        let request = Request::post(ROUTE)
            .header("host", "127.0.0.1:10242")
            .header("user-agent", "OpenAI/Python 2.8.0")
            .body(())
            .unwrap_or_default();
        let request_id: Arc<str> = Uuid::now_v7().to_string().into();
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 50_000));
        let span = span::http_server(Kind::Inference, "POST", Some(ROUTE), Some(peer), &request_id);
        span::http_server_request(&span, Some(ROUTE), &request);
        propagate::extract(&span, request.headers());
        HttpRequestStarted { method: "POST", route: ROUTE, kind: Kind::Inference }.emit();
        let trace = propagate::ids(&span).map(Arc::new);
        let context = Context { trace, ..Context::new(request_id, span.clone()) };
        self.sent.set(self.sent.get() + 1);
        let meter = Meter::open(Api::ChatCompletions, &context, self.audit.clone(), CancellationToken::new());
        (span, context, meter)
    }

    /// Everything that is said of one request, in the order of `http`, `api`, `dispatch` and `cloud`.
    pub fn request(&self, request: &llm::Request) {
        let (span, context, mut meter) = self.open();
        let started = context.arrived;
        meter.decoded(request);
        let model = meter.model().clone();
        span.in_scope(|| {
            RequestDecoded { model: &model, stream: request.stream, bytes: self.body.len() }.emit();
        });
        let routed = span::route(&span, &model);
        routed.in_scope(|| {
            span::route_finished(&routed, "gpt-*", &["openai".to_owned()]);
            RouteDecided { rule: "gpt-*", model: &model, target: Some("openai") }.emit();
        });
        let (address, port) = ("api.openai.com", 443);
        let destination = Destination::Cloud { provider: "openai", kind: ProviderKind::OpenAi, address, port };
        span.in_scope(|| TargetCalled { provider: "openai", model: &model }.emit());
        let asked = InferenceStart { request, model: &model, destination, capture: dialect::CAPTURE };
        let inference = span::inference(&span, &asked);
        meter.target(destination, &model, Some(&self.prices), &inference);
        inference.in_scope(|| {
            let attempt = span::attempt(&inference, &self.url, 0);
            propagate::inject(&attempt, &mut HeaderMap::new());
            span::attempt_finished(&attempt, Some(200), None);
            let (status, error_type) = (Some(200), None);
            AttemptFinished { provider: "openai", address, port, status, error_type, duration: started.elapsed() }
                .emit();
        });
        drop(inference);
        let usage =
            Usage { input: Some(250), output: Some(50), cache_read: Some(0), reasoning: Some(0), ..Usage::default() };
        let text = |text: &str| Some(text.to_owned());
        let events = [
            Event::Started {
                id: text("chatcmpl-bench"),
                model: text("gpt-4o-mini-2024-07-18"),
                usage: Usage::default(),
            },
            Event::Raw { frame: "{}".into(), content: 1 },
            Event::Usage(usage),
            Event::ReportedUsage(REPORTED.into()),
            Event::Finished { reason: FinishReason::Stop, stop_sequence: None },
        ];
        let events = stream::iter(events.map(Ok)).boxed();
        let answer = meter.measure(Answer { headers: HeaderMap::new(), events, retries: 0 });
        answer.for_each(|_| std::future::ready(())).now_or_never().unwrap_or_default();
        let mut headers = HeaderMap::new();
        context.trace.iter().for_each(|ids| propagate::write(ids, &mut headers));
        span::http_server_finished(&span, Some(200), None);
        span.in_scope(|| {
            let (status, error_type, duration) = (Some(200), None, started.elapsed());
            HttpRequestFinished { method: "POST", route: ROUTE, kind: Kind::Inference, status, error_type, duration }
                .emit();
        });
    }

    /// The body of each request.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The provider's address.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The request that all are.
    pub fn decoded(&self) -> Result<llm::Request> {
        match dialect::decode_head(Api::ChatCompletions, self.body.clone().into()) {
            Ok(request) => Ok(request),
            Err(error) => bail!("{}", error.message),
        }
    }

    /// Waits until what was put off is done, the exporter's half second included.
    pub fn settle(&self) {
        thread::sleep(SETTLE);
    }

    /// Figures of what was lost are worth nothing.
    pub fn check(&self) -> Result<()> {
        let Some(telemetry) = &self.telemetry else { return Ok(()) };
        let page = telemetry.metrics().render();
        for (name, expected) in [
            ("mlx_manager_audit_rows_written_total", self.sent.get()),
            ("mlx_manager_audit_rows_dropped_total", 0),
            ("mlx_manager_telemetry_dropped_total", 0),
            ("mlx_manager_log_records_dropped_total", 0),
        ] {
            let counted = metric(&page, name, "");
            ensure!(counted == expected as f64, "{name} is {counted} instead of {expected}");
        }
        Ok(())
    }
}
