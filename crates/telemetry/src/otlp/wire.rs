//! Spans and log records as the bytes that they are in a request. Written where they are made, while what they say is in the
//! processor's caches: what waits in a queue is one piece of memory, and the export thread has but to put pieces together.
//!
//! Requests for both signals are built alike, with the same numbers for the fields around their items: `resource` is 1, of
//! what it has; `scope` is 1 and an item 2, of what a scope has. Fields come in the order of their numbers, and one that
//! has its default is left out, as generated code does it.

use std::{
    borrow::Cow,
    cell::Cell,
    num::TryFromIntError,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    Array, InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{SpanContext, SpanKind, Status},
};
use opentelemetry_sdk::{Resource, trace::SpanData};
use prost::encoding::{WireType, encode_varint, encoded_len_varint};
use tracing::Level;

use super::resource::{Resources, Service};

/// The most bytes of room that a thread keeps for its next item.
const KEPT_BYTES: usize = 64 * 1024;
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`
const HAS_IS_REMOTE: u32 = 0x100;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`
const IS_REMOTE: u32 = 0x200;

/// A span or a log record, encoded. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Who speaks.
    pub service: Service,
    /// The target of a log record, after which its scope is named; a span's is named after us.
    target: Option<Arc<str>>,
    message: Arc<[u8]>,
}

impl Item {
    /// About how many bytes of memory it takes while it waits.
    pub(super) fn weight(&self) -> u64 {
        (size_of::<Self>() + self.target.as_ref().map_or(0, |target| target.len()) + self.message.len()) as u64
    }
}

/// A value of an attribute.
#[derive(Debug, Clone)]
pub(crate) enum Any<'a> {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Array(&'a Array),
}

impl<'a> From<&'a Value> for Any<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::I64(value) => Self::Int(*value),
            Value::F64(value) => Self::Float(*value),
            Value::String(value) => Self::Text(value.as_str().into()),
            Value::Array(array) => Self::Array(array),
            // The crate keeps the right to have more.
            _ => Self::Text(value.to_string().into()),
        }
    }
}

/// A log record.
#[derive(Debug)]
pub(crate) struct LogItem<'a> {
    pub timestamp: SystemTime,
    pub level: Level,
    pub target: &'a str,
    pub body: &'a str,
    /// The span that it was written in.
    pub trace: Option<(TraceId, SpanId)>,
}

/// Encodes a span.
pub(crate) fn span(span: &SpanData) -> Item {
    let service = Service::of_span(span);
    let message = written(|to| {
        let SpanContextFields { trace_id, span_id, trace_state } = SpanContextFields::of(&span.span_context);
        bytes(1, &trace_id, to);
        bytes(2, &span_id, to);
        bytes(3, trace_state.as_bytes(), to);
        if span.parent_span_id != SpanId::INVALID {
            bytes(4, &span.parent_span_id.to_bytes(), to);
        }
        bytes(5, span.name.as_bytes(), to);
        number(6, kind(&span.span_kind), to);
        fixed64(7, nanoseconds(span.start_time), to);
        fixed64(8, nanoseconds(span.end_time), to);
        attributes(9, &span.attributes, to);
        number(10, span.dropped_attributes_count.into(), to);
        for event in span.events.iter() {
            nested(11, to, |to| {
                fixed64(1, nanoseconds(event.timestamp), to);
                bytes(2, event.name.as_bytes(), to);
                attributes(3, &event.attributes, to);
                number(4, event.dropped_attributes_count.into(), to);
            });
        }
        number(12, span.events.dropped_count.into(), to);
        for link in span.links.iter() {
            nested(13, to, |to| {
                let SpanContextFields { trace_id, span_id, trace_state } = SpanContextFields::of(&link.span_context);
                bytes(1, &trace_id, to);
                bytes(2, &span_id, to);
                bytes(3, trace_state.as_bytes(), to);
                attributes(4, &link.attributes, to);
                number(5, link.dropped_attributes_count.into(), to);
                fixed32(6, flags(&link.span_context, link.span_context.is_remote()), to);
            });
        }
        number(14, span.links.dropped_count.into(), to);
        nested(15, to, |to| {
            let (description, code) = match &span.status {
                Status::Unset => ("", 0),
                Status::Ok => ("", 1),
                Status::Error { description } => (description.as_ref(), 2),
            };
            bytes(2, description.as_bytes(), to);
            number(3, code, to);
        });
        fixed32(16, flags(&span.span_context, span.parent_span_is_remote), to);
    });
    Item { service, target: None, message }
}

/// Encodes a log record with its attributes.
pub(crate) fn log_record<'a>(record: &LogItem<'_>, attributes: impl Iterator<Item = (&'static str, Any<'a>)>) -> Item {
    let (severity, name) = match record.level {
        Level::TRACE => (1, "TRACE"),
        Level::DEBUG => (5, "DEBUG"),
        Level::INFO => (9, "INFO"),
        Level::WARN => (13, "WARN"),
        Level::ERROR => (17, "ERROR"),
    };
    let message = written(|to| {
        fixed64(1, nanoseconds(record.timestamp), to);
        number(2, severity, to);
        bytes(3, name.as_bytes(), to);
        let body = Any::Text(record.body.into());
        length_delimited(5, value_length(&body), to);
        write_value(&body, to);
        attributes.for_each(|(key, value)| attribute(6, key, &value, to));
        if let Some((trace, span)) = record.trace {
            fixed32(8, TraceFlags::SAMPLED.to_u8().into(), to);
            bytes(9, &trace.to_bytes(), to);
            bytes(10, &span.to_bytes(), to);
        }
        fixed64(11, nanoseconds(SystemTime::now()), to);
    });
    Item { service: Service::of(record.target), target: Some(record.target.into()), message }
}

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What is written, in as much memory as it needs.
fn written(write: impl FnOnce(&mut Vec<u8>)) -> Arc<[u8]> {
    // Without room of its own, which a thread has no more when it ends, it takes some.
    let mut room = ROOM.try_with(Cell::take).unwrap_or_default();
    write(&mut room);
    let message = Arc::from(&*room);
    room.clear();
    room.shrink_to(KEPT_BYTES);
    ROOM.try_with(|place| place.set(room)).unwrap_or_default();
    message
}

/// What stands before the items of each service in every request.
#[derive(Debug)]
pub(super) struct Heads {
    server: Head,
    manager: Head,
}

impl Heads {
    pub(super) fn of(resources: &Resources) -> Self {
        let head = |service| Head::of(resources.get(service));
        Self { server: head(Service::Server), manager: head(Service::Manager) }
    }
}

/// A resource, encoded.
#[derive(Debug)]
struct Head {
    resource: Vec<u8>,
    schema_url: String,
}

impl Head {
    fn of(resource: &Resource) -> Self {
        let mut head = Vec::new();
        nested(1, &mut head, |to| {
            resource.iter().for_each(|(key, value)| attribute(1, key.as_str(), &value.into(), to));
        });
        Self { resource: head, schema_url: resource.schema_url().unwrap_or_default().to_owned() }
    }
}

/// A request with these items, of one signal, in the order that they have within a scope.
pub(super) fn request(items: &[Item], heads: &Heads) -> Vec<u8> {
    let total: usize = items.iter().map(|item| item.message.len() + 8).sum();
    let mut request = Vec::with_capacity(total + 4096);
    for (service, head) in [(Service::Server, &heads.server), (Service::Manager, &heads.manager)] {
        let mut scopes: Vec<(Option<&str>, Vec<&[u8]>)> = Vec::new();
        for item in items.iter().filter(|item| item.service == service) {
            let target = item.target.as_deref();
            match scopes.iter_mut().find(|(known, _)| *known == target) {
                Some((_, messages)) => messages.push(&item.message),
                None => scopes.push((target, vec![&item.message])),
            }
        }
        if scopes.is_empty() {
            continue;
        }
        let scopes: Vec<_> = scopes.into_iter().map(|(target, messages)| Scope::new(target, messages)).collect();
        let length = scopes.iter().map(|scope| field_length(scope.length)).sum::<usize>();
        let schema_url = if head.schema_url.is_empty() { 0 } else { field_length(head.schema_url.len()) };
        length_delimited(1, head.resource.len() + length + schema_url, &mut request);
        request.extend_from_slice(&head.resource);
        scopes.iter().for_each(|scope| scope.write(&mut request));
        bytes(3, head.schema_url.as_bytes(), &mut request);
    }
    request
}

/// The items of one scope.
struct Scope<'a> {
    head: Vec<u8>,
    messages: Vec<&'a [u8]>,
    length: usize,
}

impl<'a> Scope<'a> {
    fn new(target: Option<&str>, messages: Vec<&'a [u8]>) -> Self {
        let scope: InstrumentationScope = super::scope();
        let mut head = Vec::new();
        nested(1, &mut head, |to| {
            bytes(1, target.unwrap_or(scope.name()).as_bytes(), to);
            bytes(2, scope.version().unwrap_or_default().as_bytes(), to);
        });
        let length = head.len() + messages.iter().map(|message| field_length(message.len())).sum::<usize>();
        Self { head, messages, length }
    }

    fn write(&self, to: &mut Vec<u8>) {
        length_delimited(2, self.length, to);
        to.extend_from_slice(&self.head);
        for message in &self.messages {
            length_delimited(2, message.len(), to);
            to.extend_from_slice(message);
        }
    }
}

struct SpanContextFields {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    trace_state: String,
}

impl SpanContextFields {
    fn of(context: &SpanContext) -> Self {
        Self {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            trace_state: context.trace_state().header(),
        }
    }
}

fn flags(context: &SpanContext, is_remote: bool) -> u32 {
    let remote = if is_remote { IS_REMOTE } else { 0 };
    u32::from(context.trace_flags().to_u8()) | HAS_IS_REMOTE | remote
}

fn kind(kind: &SpanKind) -> u64 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn attributes(tag: u32, attributes: &[KeyValue], to: &mut Vec<u8>) {
    attributes.iter().for_each(|KeyValue { key, value, .. }| attribute(tag, key.as_str(), &value.into(), to));
}

fn attribute(tag: u32, key: &str, value: &Any<'_>, to: &mut Vec<u8>) {
    let length = value_length(value);
    let key_length = if key.is_empty() { 0 } else { field_length(key.len()) };
    length_delimited(tag, key_length + field_length(length), to);
    bytes(1, key.as_bytes(), to);
    length_delimited(2, length, to);
    write_value(value, to);
}

/// A value, which says of which kind it is even if it is a default.
fn write_value(value: &Any<'_>, to: &mut Vec<u8>) {
    match value {
        Any::Text(text) => {
            length_delimited(1, text.len(), to);
            to.extend_from_slice(text.as_bytes());
        }
        Any::Bool(value) => varint(2, u64::from(*value), to),
        Any::Int(value) => varint(3, value.cast_unsigned(), to),
        Any::Float(value) => {
            key(4, WireType::SixtyFourBit, to);
            to.extend_from_slice(&value.to_le_bytes());
        }
        Any::Array(array) => {
            let elements = elements(array);
            length_delimited(5, elements.iter().map(|element| field_length(value_length(element))).sum(), to);
            for element in &elements {
                length_delimited(1, value_length(element), to);
                write_value(element, to);
            }
        }
    }
}

fn value_length(value: &Any<'_>) -> usize {
    match value {
        Any::Text(text) => field_length(text.len()),
        Any::Bool(_) => 2,
        Any::Int(value) => 1 + encoded_len_varint(value.cast_unsigned()),
        Any::Float(_) => 9,
        Any::Array(array) => {
            field_length(elements(array).iter().map(|element| field_length(value_length(element))).sum())
        }
    }
}

fn elements(array: &Array) -> Vec<Any<'_>> {
    match array {
        Array::Bool(values) => values.iter().map(|value| Any::Bool(*value)).collect(),
        Array::I64(values) => values.iter().map(|value| Any::Int(*value)).collect(),
        Array::F64(values) => values.iter().map(|value| Any::Float(*value)).collect(),
        Array::String(values) => values.iter().map(|value| Any::Text(value.as_str().into())).collect(),
        // The crate keeps the right to have more.
        _ => Vec::new(),
    }
}

/// The bytes of a length-delimited field whose number is below 16.
fn field_length(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

/// What stands before the content of a length-delimited field. Nearly always that is two bytes, and they go at once.
#[inline]
fn length_delimited(tag: u32, length: usize, to: &mut Vec<u8>) {
    match (key_of(tag, WireType::LengthDelimited), u8::try_from(length)) {
        (Ok(key @ ..0x80), Ok(length @ ..0x80)) => to.extend_from_slice(&[key, length]),
        _ => {
            key(tag, WireType::LengthDelimited, to);
            put(length as u64, to);
        }
    }
}

#[inline]
fn key(tag: u32, wire_type: WireType, to: &mut Vec<u8>) {
    match key_of(tag, wire_type) {
        Ok(key @ ..0x80) => to.push(key),
        _ => encode_varint(u64::from(tag) << 3 | wire_type as u64, to),
    }
}

fn key_of(tag: u32, wire_type: WireType) -> Result<u8, TryFromIntError> {
    u8::try_from(tag << 3 | wire_type as u32)
}

/// A variable-length integer. Nearly all are short, and the general way is ten times as long.
#[inline]
fn put(value: u64, to: &mut Vec<u8>) {
    match u8::try_from(value) {
        Ok(byte @ ..0x80) => to.push(byte),
        _ => encode_varint(value, to),
    }
}

/// A message within one, which is short or seldom: it is written beside first.
fn nested(tag: u32, to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut content = Vec::new();
    write(&mut content);
    length_delimited(tag, content.len(), to);
    to.extend_from_slice(&content);
}

fn bytes(tag: u32, content: &[u8], to: &mut Vec<u8>) {
    if !content.is_empty() {
        length_delimited(tag, content.len(), to);
        to.extend_from_slice(content);
    }
}

fn varint(tag: u32, value: u64, to: &mut Vec<u8>) {
    key(tag, WireType::Varint, to);
    put(value, to);
}

fn number(tag: u32, value: u64, to: &mut Vec<u8>) {
    if value != 0 {
        varint(tag, value, to);
    }
}

fn fixed64(tag: u32, value: u64, to: &mut Vec<u8>) {
    if value != 0 {
        key(tag, WireType::SixtyFourBit, to);
        to.extend_from_slice(&value.to_le_bytes());
    }
}

fn fixed32(tag: u32, value: u32, to: &mut Vec<u8>) {
    if value != 0 {
        key(tag, WireType::ThirtyTwoBit, to);
        to.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
