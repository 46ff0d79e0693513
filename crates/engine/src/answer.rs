//! One answer on its way back: token ids become events.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use mlx_manager_llm::{Error, ErrorKind, Event, FinishReason, ToolCallDelta, Usage};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};
use uuid::Uuid;

use super::{
    cache::PrefixLookup,
    chat::Prompt,
    detokenizer::Detokenizer,
    parse::{Parser, Piece},
    pool::Lease,
    stop::StopMatcher,
    thread::GenerationEvent,
    tokenizer::Tokenizer,
};

/// The header that says how much of a prompt was computed before, and why not more.
pub const CACHE_HEADER: &str = "x-mlx-manager-cache";

/// Turns what the MLX thread tells into what the caller is told.
///
/// Stop sequences act on the answer's text only: a blank line as a stop must not end the reasoning before the answer.
#[derive(Debug)]
pub(crate) struct Transcript {
    model: String,
    prompt_tokens: u64,
    detokenizer: Detokenizer,
    parser: Parser,
    stop: StopMatcher,
    /// Whether the model marks its reasoning, so that its tokens can be counted.
    reasons: bool,
    /// How much of the prompt was computed before; known once the answer has begun.
    lookup: Option<PrefixLookup>,
    /// Whether the answer's headers went out before that.
    is_lookup_late: bool,
    /// Whether the answer ends after its first call.
    one_tool_call: bool,
    counts: Counts,
}

/// What was counted so far.
#[derive(Debug, Default)]
struct Counts {
    output: u64,
    reasoning: u64,
    /// Calls that were begun.
    calls: usize,
    /// Calls that are complete.
    complete: usize,
}

impl Transcript {
    /// Of an answer that is yet to begin. `model` is what the caller is told of it.
    pub(crate) fn new(model: String, prompt: &Prompt, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            model,
            prompt_tokens: prompt.ids.len() as u64,
            detokenizer: Detokenizer::new(tokenizer, &prompt.parser.special, prompt.continued()),
            parser: Parser::new(&prompt.parser),
            stop: StopMatcher::new(&prompt.stop),
            reasons: prompt.parser.reasoning.is_some(),
            lookup: None,
            is_lookup_late: false,
            one_tool_call: prompt.one_tool_call,
            counts: Counts::default(),
        }
    }

    /// Takes one event. After `Finished` there is nothing more to tell.
    fn take(&mut self, event: GenerationEvent, events: &mut VecDeque<Event>) -> Result<(), Error> {
        match event {
            GenerationEvent::Accepted => {}
            GenerationEvent::Started { queued, lookup } => {
                let cached = Some(lookup.restored as u64);
                self.lookup = Some(lookup);
                let usage = Usage { input: Some(self.prompt_tokens), cache_read: cached, ..Usage::default() };
                events.push_back(Event::Started { id: None, model: Some(self.model.clone()), usage });
                events.push_back(Event::Queued(queued));
                if self.is_lookup_late {
                    events.push_back(Event::LateHeader(CACHE_HEADER, lookup.to_string()));
                }
            }
            GenerationEvent::Token(id) => self.take_token(id, events),
            GenerationEvent::Finished { reason, tokens, .. } => {
                self.counts.output = tokens;
                events.push_back(Event::Usage(self.usage()));
                self.end(reason, events);
            }
            GenerationEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn take_token(&mut self, id: u32, events: &mut VecDeque<Event>) {
        let was_reasoning = self.parser.in_reasoning();
        let text = self.detokenizer.push(id);
        let pieces = self.parser.push(&text);
        self.counts.output += 1;
        // The markers' own tokens count as reasoning.
        self.counts.reasoning += u64::from(was_reasoning || self.parser.in_reasoning());
        events.push_back(Event::Usage(self.usage()));
        self.tell(pieces, events);
    }

    /// Tells the pieces; true when a stop sequence ended the answer, or its only call.
    fn tell(&mut self, pieces: Vec<Piece>, events: &mut VecDeque<Event>) -> bool {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let passed = self.stop.push(&text);
                    push_text(passed.text, events);
                    if passed.matched.is_some() {
                        events.push_back(Event::Finished { reason: FinishReason::Stop, stop_sequence: passed.matched });
                        return true;
                    }
                }
                // A stop sequence doesn't reach over a call.
                Piece::Reasoning(text) => {
                    push_text(self.stop.finish(), events);
                    events.push_back(Event::Reasoning(text));
                }
                Piece::Call(name) => {
                    push_text(self.stop.finish(), events);
                    let id = Some(format!("call_{}", Uuid::now_v7().simple()));
                    let index = self.counts.calls;
                    self.counts.calls += 1;
                    let call = ToolCallDelta { index, id, name: Some(name), arguments: String::new() };
                    events.push_back(Event::ToolCall(call));
                }
                Piece::Arguments(arguments) => {
                    let index = self.counts.calls.saturating_sub(1);
                    match events.back_mut() {
                        // A call that is there as a whole is told as a whole.
                        Some(Event::ToolCall(call)) => call.arguments.push_str(&arguments),
                        _ => events.push_back(Event::ToolCall(ToolCallDelta {
                            index,
                            arguments,
                            ..ToolCallDelta::default()
                        })),
                    }
                }
                Piece::CallEnd => {
                    self.counts.complete += 1;
                    if self.one_tool_call {
                        events.push_back(Event::Finished { reason: FinishReason::ToolCalls, stop_sequence: None });
                        return true;
                    }
                }
                Piece::CallDropped => {
                    events.push_back(Event::ToolCallDropped(self.counts.calls.saturating_sub(1)));
                }
            }
        }
        false
    }

    fn end(&mut self, reason: FinishReason, events: &mut VecDeque<Event>) {
        let text = self.detokenizer.finish();
        let mut pieces = self.parser.push(&text);
        pieces.extend(self.parser.finish(reason == FinishReason::Length));
        if self.tell(pieces, events) {
            return;
        }
        push_text(self.stop.finish(), events);
        let reason =
            if reason == FinishReason::Stop && self.counts.complete > 0 { FinishReason::ToolCalls } else { reason };
        events.push_back(Event::Finished { reason, stop_sequence: None });
    }

    fn usage(&self) -> Usage {
        Usage {
            output: Some(self.counts.output),
            reasoning: self.reasons.then_some(self.counts.reasoning),
            ..Usage::default()
        }
    }
}

fn push_text(text: String, events: &mut VecDeque<Event>) {
    if !text.is_empty() {
        events.push_back(Event::Text(text));
    }
}

/// The stream of one answer. Dropping it ends the work within a step; so does a stop sequence.
pub(crate) struct AnswerStream {
    transcript: Transcript,
    pending: VecDeque<Event>,
    /// `None` when nothing more is to come.
    tokens: Option<UnboundedReceiver<GenerationEvent>>,
    /// Keeps the model from being unloaded.
    _lease: Lease,
}

impl AnswerStream {
    /// Waits until the sequence was taken in, so that a refusal is still an error status, and then for its turn, when it is
    /// known how much of its prompt was computed before; but no longer than `queue_patience`. What follows may take minutes,
    /// in the queue and at a long prompt, in which a stream must not be silent.
    pub(crate) async fn begin(
        mut transcript: Transcript,
        mut tokens: UnboundedReceiver<GenerationEvent>,
        lease: Lease,
        queue_patience: Option<Duration>,
    ) -> Result<Self, Error> {
        let mut pending = VecDeque::new();
        let first = tokens.recv().await.ok_or_else(broken_off)?;
        transcript.take(first, &mut pending)?;
        let started = match queue_patience {
            Some(patience) => timeout(patience, tokens.recv()).await.ok(),
            None => Some(tokens.recv().await),
        };
        transcript.is_lookup_late = started.is_none();
        if let Some(started) = started {
            transcript.take(started.ok_or_else(broken_off)?, &mut pending)?;
        }
        Ok(Self { transcript, pending, tokens: Some(tokens), _lease: lease })
    }

    /// How much of the prompt was computed before, if its turn has come.
    pub(crate) fn lookup(&self) -> Option<PrefixLookup> {
        self.transcript.lookup
    }
}

impl Stream for AnswerStream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.pending.pop_front() {
                if matches!(event, Event::Finished { .. }) {
                    this.tokens = None;
                }
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(tokens) = &mut this.tokens else { return Poll::Ready(None) };
            let failed = match tokens.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(event)) => this.transcript.take(event, &mut this.pending).err(),
                Poll::Ready(None) => Some(broken_off()),
            };
            if let Some(error) = failed {
                this.tokens = None;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

fn broken_off() -> Error {
    Error::new(ErrorKind::Engine, "the local engine broke the answer off")
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::parse::{Beginning, ParserOptions, ReasoningFormat, ToolFormat};

    const F: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    const G: &str = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

    /// What becomes of an answer of this text, up to its end, joined where the kind doesn't change.
    fn events(text: &str, stop: &str, reason: FinishReason) -> Vec<Event> {
        events_of(text, stop, reason, false)
    }

    fn events_of(text: &str, stop: &str, reason: FinishReason, one_tool_call: bool) -> Vec<Event> {
        let tokenizer = Arc::new(Tokenizer::load(Path::new("../../assets/demo-model")).unwrap());
        let reasoning = ReasoningFormat::of_template("<think>");
        let options = ParserOptions {
            reasoning,
            begins: Beginning::Start,
            tools: Some(ToolFormat::Hermes),
            functions: vec!["f".into(), "g".into()],
            special: Vec::new(),
        };
        let mut transcript = Transcript {
            model: "demo".into(),
            prompt_tokens: 5,
            detokenizer: Detokenizer::new(Arc::clone(&tokenizer), &[], &[]),
            parser: Parser::new(&options),
            stop: StopMatcher::new(&[stop.to_owned()]),
            reasons: true,
            lookup: None,
            is_lookup_late: false,
            one_tool_call,
            counts: Counts::default(),
        };
        let ids = tokenizer.encode(text).unwrap();
        let tokens = ids.len() as u64;
        let mut told = VecDeque::new();
        transcript
            .take(GenerationEvent::Started { queued: Duration::ZERO, lookup: PrefixLookup::off(5) }, &mut told)
            .unwrap();
        for id in ids {
            transcript.take(GenerationEvent::Token(id), &mut told).unwrap();
        }
        transcript.take(GenerationEvent::Finished { reason, tokens, stop_id: None }, &mut told).unwrap();
        let mut joined: Vec<Event> = Vec::new();
        for event in told {
            match (event, joined.last_mut()) {
                (Event::Text(text), Some(Event::Text(last))) => last.push_str(&text),
                (Event::Reasoning(text), Some(Event::Reasoning(last))) => last.push_str(&text),
                (Event::ToolCall(more), Some(Event::ToolCall(last))) if more.index == last.index => {
                    last.arguments.push_str(&more.arguments);
                }
                (Event::Started { .. } | Event::Queued(_) | Event::Usage(_), _) => {}
                (event, _) => joined.push(event),
            }
        }
        joined
    }

    #[test]
    fn calls_are_numbered_and_have_ids_of_their_own() {
        let events = events(&format!("{F}\n{G}\n{F}"), "", FinishReason::Stop);
        let [Event::ToolCall(first), Event::ToolCall(second), Event::ToolCall(third), Event::Finished { reason, .. }] =
            events.as_slice()
        else {
            panic!("{events:?}")
        };
        assert_eq!([first.index, second.index, third.index], [0, 1, 2]);
        assert_eq!([&first.name, &second.name, &third.name].map(|name| name.as_deref().unwrap()), ["f", "g", "f"]);
        assert_eq!([&first.arguments, &second.arguments], ["{\"a\": 1}", "{}"]);
        let ids: std::collections::BTreeSet<_> = [first, second, third].map(|call| call.id.clone().unwrap()).into();
        assert!(ids.len() == 3 && ids.iter().all(|id| id.starts_with("call_") && id.len() > 20), "{ids:?}");
        assert_eq!(*reason, FinishReason::ToolCalls);
    }

    #[test]
    fn an_answer_of_one_call_ends_with_it() {
        for text in [format!("{F}\n{G}"), F.replace("\n</tool_call>", "{\"name\": \"g\"}</tool_call>")] {
            let events = events_of(&text, "", FinishReason::Stop, true);
            let [Event::ToolCall(call), Event::Finished { reason: FinishReason::ToolCalls, .. }] = &events[..2] else {
                panic!("{events:?}")
            };
            assert_eq!((call.name.as_deref(), call.arguments.as_str()), (Some("f"), "{\"a\": 1}"));
        }
    }

    #[test]
    fn a_call_that_was_none_counts_for_none() {
        let text = format!("{}{G}", F.replace('1', "@"));
        let events = events(&text, "", FinishReason::Stop);
        let [Event::ToolCall(none), Event::ToolCallDropped(0), Event::Text(text), Event::ToolCall(g), _] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!((none.index, text.as_str(), g.index), (0, F.replace('1', "@").as_str(), 1));
        let events = self::events(&F.replace('1', "@"), "", FinishReason::Stop);
        assert!(matches!(events.last(), Some(Event::Finished { reason: FinishReason::Stop, .. })), "{events:?}");
    }

    #[test]
    fn an_answer_that_is_cut_off_says_so_even_after_a_call() {
        let events = events(F, "", FinishReason::Length);
        assert!(matches!(events.last(), Some(Event::Finished { reason: FinishReason::Length, .. })), "{events:?}");
    }

    #[test]
    fn stop_sequences_act_on_the_text_of_the_answer_alone() {
        let thought = events("<think>\na END b\n</think>\n\nyes END no", "END", FinishReason::Stop);
        let [Event::Reasoning(reasoning), Event::Text(text), Event::Finished { stop_sequence, .. }] = &thought[..3]
        else {
            panic!("{thought:?}")
        };
        assert_eq!((reasoning.as_str(), text.as_str(), stop_sequence.as_deref()), ("a END b", "yes ", Some("END")));
        // What could have become a stop sequence comes before the call that shows that it didn't.
        let held = events(&format!("yes EN{G}D"), "END", FinishReason::Stop);
        let [Event::Text(before), Event::ToolCall(_), Event::Text(after), Event::Finished { .. }] = held.as_slice()
        else {
            panic!("{held:?}")
        };
        assert_eq!((before.as_str(), after.as_str()), ("yes EN", "D"));
    }
}
