//! The neutral vocabulary: what a caller asks for, what a model answers, and what is kept of it.
//!
//! Pure data without IO, wire formats or an async runtime. Dialects translate wire formats to and from these types,
//! backends (the local engine and the cloud) turn a [`Call`] into a stream of [`Event`]s, and the meter folds that
//! stream into one [`Record`].

mod backend;
mod body;
mod capture;
mod context;
mod error;
mod event;
mod model_state;
mod priority;
mod record;
mod request;
mod retry_after;

pub use backend::{Answer, Backend, BoxFuture, Call, EventStream};
pub use body::{Body, BodyError};
pub use capture::{Capture, CapturedMessage, Conversation, Part, ToolResult};
pub use context::{Context, TraceIds};
pub use error::{Error, ErrorKind, Fault, UpstreamAnswer};
pub use event::{Event, FinishReason, ServiceTier, ToolCallDelta, Usage};
pub use model_state::{ModelState, ModelStates};
pub use priority::Priority;
pub use record::{Inference, Outcome, Record, UsageSource};
pub use request::{
    Api, Chat, Content, Dialect, Ending, KeepAlive, Message, Operation, Reasoning, Request, Role, Sampling, Tool,
    ToolCall, ToolChoice,
};
pub use retry_after::retry_after;
