//! A record while it is put together. Each thread keeps one, so that a record costs no allocation.
//!
//! Enter at [`with`].

use std::cell::Cell;

use jiff::Timestamp;
use tracing::Metadata;

use super::{
    format::Rendered,
    record::{Collector, Fields, LogRecord, TraceIds, Value, clear_text},
};

/// The field that names the request.
const REQUEST_ID: &str = "request_id";

/// The parts of a record.
#[derive(Debug)]
pub struct Draft {
    /// What the event says.
    pub event: Collector,
    /// What its spans say.
    pub context: Fields,
    /// The request it belongs to; empty if none.
    pub request_id: String,
    /// Names of the enclosing spans.
    pub spans: Vec<&'static str>,
    /// Their targets, where these have a say in who takes the record.
    pub span_targets: Vec<&'static str>,
}

thread_local! {
    static KEPT: Cell<Option<Box<(Draft, Rendered)>>> = const { Cell::new(None) };
}

/// Runs something with this thread's draft, which is empty, and room for its text.
pub fn with(run: impl FnOnce(&mut Draft, &mut Rendered)) {
    // Taken out for as long: a value's own formatting may log, and then that event has a draft of its own. So has one that
    // is logged while the thread ends.
    let kept = KEPT.try_with(Cell::take).unwrap_or_default();
    let mut kept = kept.unwrap_or_default();
    let (draft, rendered) = &mut *kept;
    run(draft, rendered);
    draft.clear();
    clear_text(&mut rendered.text);
    KEPT.try_with(|place| place.set(Some(kept))).unwrap_or_default();
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            event: Collector::event(),
            context: Fields::default(),
            request_id: String::new(),
            spans: Vec::new(),
            span_targets: Vec::new(),
        }
    }
}

impl Draft {
    /// Adds the fields of an enclosing span, from the innermost out: what the event or an inner span says counts.
    pub fn inherit(&mut self, outer: &Fields) {
        for (key, value) in outer.iter() {
            if key == REQUEST_ID {
                if let Value::Text(text) = value
                    && self.request_id.is_empty()
                {
                    self.request_id.push_str(text);
                }
            } else if self.event.fields.get(key).is_none() && self.context.get(key).is_none() {
                self.context.set(key, value);
            }
        }
    }

    /// Settles which request the record belongs to: its span says so, or the event itself outside of one. A different one
    /// stays as a field of the event.
    pub fn settle_request(&mut self) {
        if let Some(Value::Text(own)) = self.event.fields.get(REQUEST_ID) {
            if self.request_id.is_empty() {
                self.request_id.push_str(own);
            }
            if self.request_id == own {
                self.event.fields.remove(REQUEST_ID);
            }
        }
    }

    /// What became of it.
    pub fn record(&self, metadata: &Metadata<'static>, timestamp: Timestamp, trace: Option<TraceIds>) -> LogRecord<'_> {
        LogRecord {
            timestamp,
            level: *metadata.level(),
            target: metadata.target(),
            line: metadata.line(),
            message: &self.event.message,
            fields: &self.event.fields,
            context: &self.context,
            request_id: Some(self.request_id.as_str()).filter(|id| !id.is_empty()),
            trace,
            spans: &self.spans,
        }
    }

    fn clear(&mut self) {
        self.event.clear();
        self.context.clear();
        clear_text(&mut self.request_id);
        self.spans.clear();
        self.span_targets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_value_hides_outer_one() {
        let [mut inner, mut outer] = [Fields::default(), Fields::default()];
        inner.set("model", Value::Signed(1));
        outer.set("model", Value::Signed(2));
        outer.set("own", Value::Signed(2));
        outer.set("tokens", Value::Text("3"));
        let mut draft = Draft::default();
        draft.event.fields.set("own", Value::Signed(0));
        draft.inherit(&inner);
        draft.inherit(&outer);
        let expected = [("model", Value::Signed(1)), ("tokens", Value::Text("3"))];
        assert_eq!(draft.context.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_use_finds_it_empty_even_inside_of_another() {
        let check_and_fill = |draft: &mut Draft, rendered: &mut Rendered| {
            assert!(draft.event.message.is_empty() && draft.context.iter().next().is_none());
            assert!(draft.event.fields.iter().next().is_none() && rendered.text.is_empty());
            assert!(draft.request_id.is_empty() && draft.spans.is_empty() && draft.span_targets.is_empty());
            draft.event.message.push('m');
            draft.event.fields.set("own", Value::Text("a"));
            draft.context.set("model", Value::Text("b"));
            draft.request_id.push('r');
            draft.spans.push("span");
            draft.span_targets.push("target");
            rendered.text.push('t');
        };
        for _ in 0..2 {
            with(|draft, rendered| {
                check_and_fill(draft, rendered);
                with(check_and_fill);
                assert_eq!(draft.request_id, "r");
            });
        }
    }
}
