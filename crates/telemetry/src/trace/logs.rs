//! Log records on their way out by OTLP. The log room decides which records come here, and redacts them.

use std::{sync::Arc, time::SystemTime};

use opentelemetry::{
    InstrumentationScope, SpanId, TraceFlags, TraceId,
    logs::{AnyValue, LogRecord, Logger, LoggerProvider, Severity},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{LogProcessor, SdkLogRecord, SdkLogger, SdkLoggerProvider},
};
use tracing::Level;

use crate::otlp::{self, LogQueue, Service};

/// Sends log records to every destination that wants them. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct OtlpLogs {
    logger: Arc<SdkLogger>,
}

impl OtlpLogs {
    pub(super) fn new(queues: Vec<LogQueue>) -> Option<Self> {
        if queues.is_empty() {
            return None;
        }
        let provider = SdkLoggerProvider::builder()
            .with_resource(Resource::builder_empty().build())
            .with_log_processor(Router { queues })
            .build();
        Some(Self { logger: Arc::new(provider.logger_with_scope(otlp::scope())) })
    }

    /// Queues a record. `trace` are the ids of the span it was written in. What the export thread says itself is left out.
    pub fn emit(
        &self,
        timestamp: SystemTime,
        level: Level,
        target: &str,
        body: &str,
        attributes: impl Iterator<Item = (&'static str, AnyValue)>,
        trace: Option<(TraceId, SpanId)>,
    ) {
        let number = match level {
            Level::TRACE => Severity::Trace,
            Level::DEBUG => Severity::Debug,
            Level::INFO => Severity::Info,
            Level::WARN => Severity::Warn,
            Level::ERROR => Severity::Error,
        };
        if !self.logger.event_enabled(number, target, None) {
            return;
        }
        let mut record = self.logger.create_log_record();
        record.set_timestamp(timestamp);
        record.set_severity_number(number);
        record.set_severity_text(level.as_str());
        record.set_target(target.to_owned());
        record.set_body(AnyValue::String(body.to_owned().into()));
        record.add_attributes(attributes);
        if let Some((trace_id, span_id)) = trace {
            record.set_trace_context(trace_id, span_id, Some(TraceFlags::SAMPLED));
        }
        self.logger.emit(record);
    }
}

#[derive(Debug)]
struct Router {
    queues: Vec<LogQueue>,
}

impl LogProcessor for Router {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        let service = record.target().map_or(Service::Manager, |target| Service::of(target));
        for queue in &self.queues {
            queue.push(((record.clone(), scope.clone()), service));
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: std::time::Duration) -> OTelSdkResult {
        Ok(())
    }
}
