//! The one tracing layer: it owns the sinks and the trace layer, and decides per callsite who takes what.
//!
//! Two layers would not do: the interest of one switches callsites off for the other, and per-layer filters lose the
//! context of spans. So interest and level hint are the union of all takers, each callback looks at its own bit, and
//! everything is forwarded to the trace layer by hand.

use std::{
    any::TypeId,
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use opentelemetry::trace::TraceContextExt;
use tracing::{
    Dispatch, Event, Metadata,
    callsite::Identifier,
    dispatcher::WeakDispatch,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};
use tracing_subscriber::{Layer, Registry, layer::Context, registry::SpanRef};

use super::{
    Core, draft,
    filter::{Callsite, Filter, Mask, OBSERVED, SPAN},
    record::{Collector, Fields, LogRecord, TraceIds},
};

/// The trace layer, which the router takes in.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Takes every record that passes the log level, to export it.
pub trait RecordObserver: Send + Sync {
    /// Called on the thread of the event; must neither wait nor log.
    fn observe(&self, record: &LogRecord<'_>);
}

/// The one layer; put it on a plain [`Registry`].
pub struct Router {
    core: Arc<Core>,
    filter: Filter,
    masks: RwLock<HashMap<Identifier, Mask>>,
    traces: Option<BoxedLayer>,
    observer: Option<Arc<dyn RecordObserver>>,
    /// The subscriber that this layer is part of: trace ids are found through it.
    dispatch: OnceLock<WeakDispatch>,
}

/// What log lines need of a span.
struct SpanContext {
    fields: Fields,
    trace: Option<TraceIds>,
}

impl Router {
    pub(super) fn new(
        core: Arc<Core>,
        filter: Filter,
        traces: Option<BoxedLayer>,
        observer: Option<Arc<dyn RecordObserver>>,
    ) -> Self {
        Self { core, filter, masks: RwLock::default(), traces, observer, dispatch: OnceLock::new() }
    }

    fn mask(&self, metadata: &Metadata<'_>) -> Mask {
        let masks = self.masks.read().unwrap_or_else(PoisonError::into_inner);
        masks.get(&metadata.callsite()).copied().unwrap_or_else(|| self.compute(metadata))
    }

    fn compute(&self, metadata: &Metadata<'_>) -> Mask {
        let callsite = if metadata.is_span() { Callsite::Span } else { Callsite::Event };
        self.filter.enabled(metadata.target(), *metadata.level(), callsite)
    }

    /// The trace ids of a span. The trace layer starts its span at this point, so that a parent must be set before.
    fn trace_ids(&self, span: &SpanRef<'_, Registry>) -> Option<TraceIds> {
        self.traces.as_ref()?;
        if let Some(trace) = span.extensions().get::<SpanContext>().and_then(|context| context.trace) {
            return Some(trace);
        }
        let dispatch = self.dispatch.get()?.upgrade()?;
        let context = tracing_opentelemetry::get_otel_context(&span.id(), &dispatch)?;
        let trace = TraceIds::of(context.span().span_context())?;
        if let Some(context) = span.extensions_mut().get_mut::<SpanContext>() {
            context.trace = Some(trace);
        }
        Some(trace)
    }

    fn record(&self, event: &Event<'_>, mask: Mask, context: &Context<'_, Registry>) {
        let metadata = event.metadata();
        draft::with(|draft| {
            event.record(&mut draft.event);
            let mut trace = None;
            for span in context.event_scope(event).into_iter().flatten() {
                trace = trace.or_else(|| self.trace_ids(&span));
                if let Some(context) = span.extensions().get::<SpanContext>() {
                    draft.inherit(&context.fields);
                }
                if *metadata.level() == tracing::Level::ERROR {
                    draft.spans.insert(0, span.name());
                }
            }
            draft.settle_request();
            let record = LogRecord {
                timestamp: self.core.now(),
                level: *metadata.level(),
                target: metadata.target(),
                line: metadata.line(),
                message: &draft.event.message,
                fields: &draft.event.fields,
                context: &draft.context,
                request_id: Some(draft.request_id.as_str()).filter(|id| !id.is_empty()),
                trace,
                spans: &draft.spans,
            };
            self.core.deliver(&record, mask, &mut draft.rendered);
            if mask & OBSERVED != 0
                && let Some(observer) = &self.observer
            {
                observer.observe(&record);
            }
        });
    }
}

impl Layer<Registry> for Router {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        // A layer belongs to one subscriber; were it registered again, the first registration would still be right.
        drop(self.dispatch.set(dispatch.downgrade()));
        if let Some(traces) = &self.traces {
            traces.on_register_dispatch(dispatch);
        }
    }

    fn on_layer(&mut self, subscriber: &mut Registry) {
        if let Some(traces) = &mut self.traces {
            traces.on_layer(subscriber);
        }
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let mask = self.compute(metadata);
        self.masks.write().unwrap_or_else(PoisonError::into_inner).insert(metadata.callsite(), mask);
        if let Some(traces) = &self.traces {
            // Its own wish is moot, the mask decides, but it may keep books of callsites.
            traces.register_callsite(metadata);
        }
        if mask == 0 { Interest::never() } else { Interest::always() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, Registry>) -> bool {
        self.mask(metadata) != 0
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter.max_level())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, Registry>) {
        if self.mask(attributes.metadata()) & SPAN == 0 {
            return;
        }
        // Before the extensions are locked: formatting a value may panic, and the panic is logged in this span.
        let mut collected = Collector::span();
        attributes.record(&mut collected);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanContext { fields: collected.fields, trace: None });
        }
        if let Some(traces) = &self.traces {
            traces.on_new_span(attributes, id, context);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, Registry>) {
        let mut collected = Collector::span();
        values.record(&mut collected);
        if let Some(span) = context.span(id)
            && let Some(context) = span.extensions_mut().get_mut::<SpanContext>()
        {
            context.fields.merge(&collected.fields);
        }
        if let Some(traces) = &self.traces {
            traces.on_record(id, values, context);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, Registry>) {
        let mask = self.mask(event.metadata());
        if mask != 0 {
            self.record(event, mask, &context);
        }
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, Registry>) {
        if let Some(traces) = &self.traces {
            traces.on_follows_from(id, follows, context);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, Registry>) {
        if let Some(traces) = &self.traces {
            traces.on_enter(id, context);
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, Registry>) {
        if let Some(traces) = &self.traces {
            traces.on_exit(id, context);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, Registry>) {
        if let Some(traces) = &self.traces {
            traces.on_close(id, context);
        }
    }

    fn on_id_change(&self, old: &Id, new: &Id, context: Context<'_, Registry>) {
        if let Some(traces) = &self.traces {
            traces.on_id_change(old, new, context);
        }
    }

    #[expect(
        unsafe_code,
        reason = "the trait's way to find a layer; without it setting a span's parent or attributes silently does nothing"
    )]
    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            return Some(std::ptr::from_ref(self).cast());
        }
        // SAFETY: the pointer is the trace layer's own answer for this type, and the layer lives as long as the router.
        self.traces.as_ref().and_then(|traces| unsafe { traces.downcast_raw(id) })
    }
}

#[cfg(test)]
mod tests;
