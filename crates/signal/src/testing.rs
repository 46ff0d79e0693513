//! For tests of this and other crates: what is said, without the log around it.

use std::{collections::BTreeMap, fmt::Debug, mem, sync::Arc};

use parking_lot::Mutex;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// One log line.
#[derive(Debug)]
pub struct Line {
    /// Its target.
    pub target: String,
    /// Its level.
    pub level: Level,
    /// Its fields, the message among them, as they print.
    pub fields: BTreeMap<&'static str, String>,
    /// The fields of the spans around it.
    pub context: BTreeMap<&'static str, String>,
}

/// A layer that keeps what is said.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<Line>>>);

impl Lines {
    pub(crate) fn take(&self) -> Vec<Line> {
        mem::take(&mut self.0.lock())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut around = BTreeMap::new();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(Fields(fields)) = span.extensions().get() {
                around.extend(fields.clone());
            }
        }
        let metadata = event.metadata();
        let line =
            Line { target: metadata.target().to_owned(), level: *metadata.level(), fields: fields.0, context: around };
        self.0.lock().push(line);
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let cause = value.source().map(ToString::to_string).unwrap_or_default();
        self.0.insert(field.name(), format!("{value} <- {cause}"));
    }
}

/// What `emit` logs.
pub fn lines_of(emit: impl FnOnce()) -> Vec<Line> {
    let lines = Lines::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lines.clone()), emit);
    lines.take()
}
