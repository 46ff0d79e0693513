//! The one tracing layer: it owns the sinks and the trace layer, and decides per callsite who takes what.
//!
//! Two layers would not do: the interest of one switches callsites off for the other, and per-layer filters lose the
//! context of spans. So interest and level hint are the union of all takers, each callback looks at its own bit, and
//! everything is forwarded to the trace layer by hand.

use std::{
    any::TypeId,
    sync::{Arc, OnceLock},
};

use mlx_manager_signal::{hook::Storyteller, target::SERVER_HTTP};
use opentelemetry::trace::TraceContextExt;
use tracing::{
    Dispatch, Event, Metadata,
    dispatcher::WeakDispatch,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};
use tracing_subscriber::{
    Layer, Registry,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use super::{
    Core,
    draft::{self, Draft},
    filter::{Mask, OBSERVED, SPAN},
    format::Rendered,
    plan::Plan,
    record::{Collector, Fields, LogRecord, TraceIds},
    story::{KeptRecord, Story},
};

/// The trace layer, which the router takes in.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The trace layer and what it is for.
pub struct TraceLayer {
    /// The layer.
    pub layer: BoxedLayer,
    /// Whether somebody exports what it makes. Otherwise it is there for ids only.
    pub recording: bool,
}

/// Takes every record that passes the log level, to export it.
pub trait RecordObserver: Send + Sync {
    /// Called on the thread of the event; must neither wait nor log.
    fn observe(&self, record: &LogRecord<'_>);
}

/// The one layer; put it on a plain [`Registry`].
pub struct Router {
    core: Arc<Core>,
    traces: Option<BoxedLayer>,
    /// The subscriber that this layer is part of: trace ids are found through it.
    dispatch: OnceLock<WeakDispatch>,
    storyteller: Storyteller,
}

/// What log lines need of a span.
struct SpanContext {
    fields: Fields,
    trace: Option<TraceIds>,
    /// The story of the request that it is part of.
    story: Option<Arc<Story>>,
}

/// The hook by which a failed request has its story told. Returns how many older records are missing.
fn tell_story(id: &Id, dispatch: &Dispatch) -> Option<u64> {
    let (router, registry) = (dispatch.downcast_ref::<Router>()?, dispatch.downcast_ref::<Registry>()?);
    let story = story_of(&registry.span(id)?)?;
    let plan = router.core.plan();
    Some(story.tell(|record| router.write_story(&plan, record)))
}

fn story_of(span: &SpanRef<'_, Registry>) -> Option<Arc<Story>> {
    span.extensions().get::<SpanContext>()?.story.clone()
}

impl Router {
    pub(super) fn new(core: Arc<Core>, traces: Option<BoxedLayer>) -> Self {
        Self { core, traces, dispatch: OnceLock::new(), storyteller: Storyteller(tell_story) }
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

    /// Gathers what an event and its spans say. `follows`: the spans have a say in who takes it.
    fn gather(
        &self,
        draft: &mut Draft,
        event: &Event<'_>,
        follows: bool,
        context: &Context<'_, Registry>,
    ) -> Option<TraceIds> {
        event.record(&mut draft.event);
        let mut trace = None;
        for span in context.event_scope(event).into_iter().flatten() {
            trace = trace.or_else(|| self.trace_ids(&span));
            if let Some(context) = span.extensions().get::<SpanContext>() {
                draft.inherit(&context.fields);
            }
            if *event.metadata().level() == tracing::Level::ERROR {
                draft.spans.insert(0, span.name());
            }
            if follows {
                draft.span_targets.push(span.metadata().target());
            }
        }
        draft.settle_request();
        trace
    }

    fn deliver(&self, plan: &Plan, record: &LogRecord<'_>, mask: Mask, rendered: &mut Rendered) {
        plan.deliver(record, mask, rendered);
        if mask & OBSERVED != 0
            && let Some(observer) = &self.core.observer
        {
            observer.observe(record);
        }
    }

    /// Who takes it is asked anew, since the sinks may be others than when the record was made.
    fn write_story(&self, plan: &Plan, kept: &KeptRecord) {
        let record = kept.record();
        let mask = plan.filter.select(record.target, record.level, &kept.span_targets);
        self.deliver(plan, &record, mask, &mut Rendered::default());
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
        if self.core.in_effect.load().known(metadata).is_none() {
            self.core.in_effect.rcu(|in_effect| in_effect.with(metadata));
        }
        if let Some(traces) = &self.traces {
            // Its own wish is moot, the mask decides, but it may keep books of callsites.
            traces.register_callsite(metadata);
        }
        let taken = self.core.in_effect.load().taken(metadata);
        match taken.mask {
            _ if taken.is_never() => Interest::never(),
            0 => Interest::sometimes(),
            _ if taken.story => Interest::sometimes(),
            _ => Interest::always(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, Registry>) -> bool {
        let taken = self.core.in_effect.load().taken(metadata);
        if !taken.story && taken.mask != 0 {
            return true;
        }
        // What depends on the spans around it, outside of spans is not for anybody.
        !taken.is_never() && context.lookup_current().is_some_and(|span| !taken.story || story_of(&span).is_some())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.core.in_effect.load().plan.filter.max_level())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, Registry>) {
        let metadata = attributes.metadata();
        let in_effect = self.core.in_effect.load();
        if in_effect.taken(metadata).mask & SPAN == 0 {
            return;
        }
        let keeps_stories = in_effect.plan.filter.keeps_stories();
        drop(in_effect);
        // Before the extensions are locked: formatting a value may panic, and the panic is logged in this span.
        let mut collected = Collector::span();
        attributes.record(&mut collected);
        if let Some(span) = context.span(id) {
            let story = keeps_stories.then(|| span.parent().and_then(|parent| story_of(&parent)));
            let story = story.and_then(|inherited| {
                let opens = metadata.target() == SERVER_HTTP;
                inherited.or_else(|| opens.then(|| Arc::new(Story::new(Arc::clone(&self.core.stories)))))
            });
            // A span that nobody exports goes by the ids of the one around it.
            let around = if self.core.traced { None } else { span.parent() };
            let trace = around.as_ref().and_then(|around| self.trace_ids(around));
            span.extensions_mut().insert(SpanContext { fields: collected.fields, trace, story });
            if around.is_some() {
                return;
            }
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
        let metadata = event.metadata();
        let in_effect = self.core.in_effect.load();
        let taken = in_effect.taken(metadata);
        if taken.is_never() {
            return;
        }
        let story = match taken.story {
            true => match context.event_span(event).and_then(|span| story_of(&span)) {
                Some(story) => Some(story),
                None => return,
            },
            false => None,
        };
        let plan = &in_effect.plan;
        draft::with(|draft, rendered| {
            let trace = self.gather(draft, event, taken.follows, &context);
            let mask = match taken.follows {
                true => plan.filter.select(metadata.target(), *metadata.level(), &draft.span_targets),
                false => taken.mask,
            };
            let record = draft.record(metadata, self.core.now(), trace);
            match story {
                _ if mask == 0 => {}
                None => self.deliver(plan, &record, mask, rendered),
                Some(story) => {
                    let kept = KeptRecord::of(&record, metadata, draft.span_targets.clone());
                    story.add(kept, |kept| self.write_story(plan, kept));
                }
            }
        });
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, Registry>) {
        if let Some(traces) = &self.traces {
            traces.on_follows_from(id, follows, context);
        }
    }

    // Entering and leaving are not passed on. The trace layer would note the time at each, that is at each poll of a request,
    // for spans that nobody ends; ours are ended by who knows how it went, or with their last handle.

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
        if id == TypeId::of::<Storyteller>() {
            return Some(std::ptr::from_ref(&self.storyteller).cast());
        }
        // SAFETY: the pointer is the trace layer's own answer for this type, and the layer lives as long as the router.
        self.traces.as_ref().and_then(|traces| unsafe { traces.downcast_raw(id) })
    }
}

#[cfg(test)]
mod tests;
