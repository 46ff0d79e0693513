//! The only place that measures a request.
//!
//! A [`Meter`] is opened when a route accepts a request, before its body is read, and finishes exactly once: when the
//! answer ends, fails or is dropped. Then one [`Record`] becomes span attributes, a log line, metrics and an audit row,
//! which is why they agree.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as TaskContext, Poll, ready},
};

use futures_util::Stream;
use jiff::Timestamp;
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{
    Answer, Api, Context, Error, Event, EventStream, Inference, Outcome, Record, Request, ToolCall, UsageSource,
};
use mlx_manager_signal::{
    event::{InferenceFailedOver, OverheadMeasured, Phase, RequestFinished},
    genai,
    price::PriceList,
    redact::ModelLabel,
    span::{self, Destination, InferenceEnd},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::store::AuditSender;

/// Bytes of a token, as text is on average.
const BYTES_PER_TOKEN: u64 = 4;

/// Measures one request from its arrival to its end. It is large and goes through many hands.
pub struct Meter {
    record: Record,
    /// The model asked for; empty until it is known.
    model: ModelLabel,
    context: Context,
    audit: AuditSender,
    /// Cancelled when the daemon drops what is still open.
    cut_off: CancellationToken,
    target: Option<MeteredTarget>,
    response_id: Option<String>,
    /// The first and the last report of the provider, which of a stream's many are the telling ones.
    reported_usage: [Option<Box<str>>; 2],
    /// Whether the provider's own frames come by; then they are counted, and not what they mean besides.
    raw: bool,
    /// When the phase of our own that is going on began; `None` while others are at work.
    phase_began: Option<Instant>,
    first_content: Option<Instant>,
    last_content: Option<Instant>,
    /// What the provider's frames hold, in bytes as they are written.
    content_bytes: usize,
    /// How many chunks had come when usage was reported last.
    counted_at: Option<u64>,
    /// The tokens of the prompt, roughly; for where nobody counts.
    prompt_estimate: u64,
    /// Whether the head of a streamed answer went out, whatever comes after it.
    head_sent: Arc<AtomicBool>,
    /// Gathered only when the user switched content capture on.
    captured: Option<Captured>,
    ended: bool,
}

/// Who answers, for the price and the span.
struct MeteredTarget {
    called: Instant,
    model: ModelLabel,
    /// A local model has none.
    prices: Option<Arc<PriceList>>,
    span: Span,
}

#[derive(Default)]
struct Captured {
    text: String,
    reasoning: String,
    tool_calls: Vec<ToolCall>,
}

impl Meter {
    /// Opens the record of a request that just arrived. When it is dropped after `cut_off` was cancelled, its client is not
    /// whose doing that was.
    pub fn open(api: Api, context: &Context, audit: AuditSender, cut_off: CancellationToken) -> Box<Self> {
        Box::new(Self {
            record: Record::begin(context, api),
            model: ModelLabel::new(""),
            context: context.clone(),
            audit,
            cut_off,
            target: None,
            response_id: None,
            reported_usage: [None, None],
            raw: false,
            phase_began: None,
            first_content: None,
            last_content: None,
            content_bytes: 0,
            counted_at: None,
            prompt_estimate: 0,
            head_sent: Arc::default(),
            captured: span::captures_content().then(Captured::default),
            ended: false,
        })
    }

    /// The body is there.
    pub(crate) fn received(&mut self) {
        self.phase_began = Some(Instant::now());
    }

    /// The body was understood.
    pub fn decoded(&mut self, request: &Request) {
        let began = self.phase_ended(Phase::Decode);
        self.phase_began = began;
        self.named(&request.model);
        self.record.stream = request.stream;
        self.prompt_estimate = dialect::estimate_prompt(request);
    }

    /// Set when the head of a streamed answer goes out before anything is known of the answer.
    pub(crate) fn head_sent(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.head_sent)
    }

    /// The body was not understood, but this much of it was.
    pub(crate) fn named(&mut self, model: &str) {
        self.model = ModelLabel::new(model);
        self.record.requested_model = self.model.to_string();
    }

    /// The model asked for.
    pub fn model(&self) -> &ModelLabel {
        &self.model
    }

    /// A target is about to be called. `prices` are those of a provider.
    pub fn target(
        &mut self,
        destination: Destination<'_>,
        model: &ModelLabel,
        prices: Option<&Arc<PriceList>>,
        span: &Span,
    ) {
        self.phase_ended(Phase::Route);
        self.record.provider = Some(destination.provider().to_owned());
        self.record.inference = Some(Inference {
            system: destination.system(),
            model: model.to_string(),
            duration: std::time::Duration::ZERO,
            time_to_first_token: None,
        });
        self.target = Some(MeteredTarget {
            called: Instant::now(),
            model: model.clone(),
            prices: prices.cloned(),
            span: span.clone(),
        });
    }

    /// A target is about to be asked once more.
    pub(crate) fn retried(&mut self) {
        self.record.retries += 1;
    }

    /// The target failed, and another is about to be called.
    pub(crate) fn failed_over(&mut self, error: &Error) {
        self.record.retries += error.retries;
        let Some(target) = self.target.take() else { return };
        if let Some(inference) = &mut self.record.inference {
            inference.duration = target.called.elapsed();
            span::inference_failed_over(&target.span, &target.model, error);
        }
        InferenceFailedOver { record: &self.record, kind: error.kind.as_str() }.emit();
        self.record.inference = None;
    }

    /// Ends a request that failed before anything was sent.
    pub(crate) fn refuse(mut self: Box<Self>, error: &Error) {
        self.record.status = self.status_of(error);
        self.record.retries += error.retries;
        self.fail(error);
    }

    /// The status that the caller gets, or got.
    fn status_of(&self, error: &Error) -> u16 {
        if self.head_sent.load(Ordering::Relaxed) { 200 } else { error.status() }
    }

    /// Measures an answer to its end.
    pub fn measure(mut self: Box<Self>, answer: Answer) -> Metered {
        self.record.status = 200;
        self.record.retries += answer.retries;
        Metered { events: Some(answer.events), meter: self }
    }

    /// States how long a phase of our own took, and returns the time.
    fn phase_ended(&mut self, phase: Phase) -> Option<Instant> {
        let now = Instant::now();
        OverheadMeasured { phase, duration: now - self.phase_began.take()? }.emit();
        Some(now)
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Started { id, model, usage } => {
                // What was said first holds.
                self.response_id = self.response_id.take().or_else(|| id.clone());
                // A provider may repeat the name that it was asked for.
                let label = || model.as_deref().map(|model| ModelLabel::new(model).to_string());
                self.record.response_model = self.record.response_model.take().or_else(label);
                self.record.usage.update(*usage);
            }
            Event::LateHeader(..) => {}
            Event::Queued(wait) => self.record.queue = Some(*wait),
            Event::Usage(usage) => {
                self.record.usage.update(*usage);
                self.counted_at = Some(self.record.chunks);
            }
            Event::ReportedUsage(report) => {
                let [first, last] = &mut self.reported_usage;
                *if first.is_none() { first } else { last } = Some(report.clone());
            }
            Event::Finished { reason, .. } => self.record.finish_reason = Some(*reason),
            Event::Text(text) => {
                self.neutral_content();
                if let Some(captured) = &mut self.captured {
                    captured.text.push_str(text);
                }
            }
            Event::Reasoning(text) => {
                self.neutral_content();
                if let Some(captured) = &mut self.captured {
                    captured.reasoning.push_str(text);
                }
            }
            Event::ToolCall(call) => {
                self.neutral_content();
                if let Some(captured) = &mut self.captured {
                    call.add_to(&mut captured.tool_calls);
                }
            }
            Event::ToolCallDropped(index) => {
                if let Some(captured) = &mut self.captured {
                    // A call without a name is none; the others keep their places.
                    captured.tool_calls.get_mut(*index).into_iter().for_each(|call| call.name.clear());
                }
            }
            Event::Raw { content, .. } => {
                self.raw = true;
                if *content > 0 {
                    self.content_bytes += content;
                    self.content();
                }
            }
        }
    }

    fn neutral_content(&mut self) {
        if !self.raw {
            self.content();
        }
    }

    fn content(&mut self) {
        let now = Instant::now();
        self.first_content.get_or_insert(now);
        self.last_content = Some(now);
        self.record.chunks += 1;
    }

    fn fail(&mut self, error: &Error) {
        self.record.error_kind = Some(error.kind.as_str());
        self.record.error_message = Some(error.message.clone());
        self.end(error.kind.outcome(), Some(error));
    }

    fn end(&mut self, outcome: Outcome, error: Option<&Error>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.phase_began = Some(Instant::now());
        let record = &mut self.record;
        let arrived = self.context.arrived;
        record.outcome = outcome;
        record.duration = arrived.elapsed();
        record.finished_at = Timestamp::now();
        record.time_to_first_token = self.first_content.map(|first| first - arrived);
        record.generation = self.first_content.zip(self.last_content).map(|(first, last)| last - first);
        let is_cloud = self.target.as_ref().is_some_and(|target| target.prices.is_some());
        if is_cloud && record.chunks > 0 {
            // Nothing is no count of something.
            record.usage.output = record.usage.output.filter(|output| *output > 0);
            record.usage.input = record.usage.input.filter(|input| *input > 0);
        }
        record.usage_source = usage_source(record);
        // A count that came before the last of what it counts is no final one.
        let is_final = self.counted_at == Some(record.chunks) && record.usage_source == Some(UsageSource::Provider);
        if is_cloud && record.chunks > 0 && !is_final {
            // A provider that counts only at the end never came to it, and bills what it generated. A chunk is a token or
            // more, of which each has four bytes or so.
            let output = record.chunks.max(self.content_bytes as u64 / BYTES_PER_TOKEN);
            if record.usage.output.is_none_or(|counted| counted < output) {
                record.usage.output = Some(output);
                record.usage.input.get_or_insert(self.prompt_estimate);
                record.usage_source = Some(UsageSource::Estimated);
            }
        }
        if let (Some(target), Some(inference)) = (&self.target, &mut record.inference) {
            inference.duration = target.called.elapsed();
            inference.time_to_first_token = self.first_content.map(|first| first - target.called);
            let asked = inference.model.as_str();
            let model = record.response_model.as_deref().unwrap_or(asked);
            record.cost_usd = target.prices.as_ref().and_then(|prices| prices.cost_usd(model, asked, &record.usage));
            if let Some(captured) = &mut self.captured {
                captured.tool_calls.retain(|call| !call.name.is_empty());
            }
            let end = InferenceEnd {
                record,
                response_id: self.response_id.as_deref(),
                reported_usage: self.reported_usage.each_ref().map(Option::as_deref),
                content: self.captured.as_ref().map(|captured| genai::Answer {
                    text: &captured.text,
                    reasoning: &captured.reasoning,
                    tool_calls: &captured.tool_calls,
                }),
                error,
            };
            span::inference_finished(&target.span, &end);
        }
        self.context.span.in_scope(|| RequestFinished { record, error: error.map(|error| error as _) }.emit());
        self.audit.send(record.clone());
        self.phase_ended(Phase::Record);
    }
}

/// Where counts come from that were reported.
fn usage_source(record: &Record) -> Option<UsageSource> {
    let usage = &record.usage;
    match (usage.output, record.finish_reason) {
        (Some(_), Some(_)) => Some(UsageSource::Provider),
        (Some(_), None) => Some(UsageSource::Partial),
        (None, _) => usage.input.map(|_| UsageSource::Partial),
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if std::thread::panicking() {
            let error = Error::new(mlx_manager_llm::ErrorKind::Internal, "the daemon failed at this request");
            self.record.status = self.status_of(&error);
            self.fail(&error);
        } else {
            if !self.record.stream {
                // The answer was still being gathered, so its status was never sent.
                self.record.status = 0;
            } else if self.head_sent.load(Ordering::Relaxed) {
                self.record.status = 200;
            }
            let outcome = if self.cut_off.is_cancelled() { Outcome::Shutdown } else { Outcome::ClientAbort };
            self.end(outcome, None);
        }
    }
}

/// The events of an answer as they pass the meter. Dropped before its end, the client went away, or the daemon stops.
pub struct Metered {
    /// Taken when it ends, so that the work behind it is given up at once.
    events: Option<EventStream>,
    meter: Box<Meter>,
}

impl Stream for Metered {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(events) = &mut this.events else { return Poll::Ready(None) };
        let next = ready!(events.as_mut().poll_next(task));
        match &next {
            Some(Ok(event)) => this.meter.observe(event),
            Some(Err(error)) => {
                if !this.meter.record.stream {
                    this.meter.record.status = error.status();
                }
                this.meter.fail(error);
                this.events = None;
            }
            None => {
                this.meter.end(Outcome::Ok, None);
                this.events = None;
            }
        }
        Poll::Ready(next)
    }
}
