//! What the generated text means: reasoning, answer, tool calls.
//!
//! One format per file. Text comes in pieces cut anywhere; the pieces that come out, neighbours of a kind joined, are the
//! same for any cut. Nothing that the model wrote is lost: markers that turn out to introduce nothing stay text.

mod hermes;
mod marker;
mod reasoning;

use hermes::HermesParser;
pub(crate) use reasoning::ReasoningFormat;
use reasoning::ReasoningParser;

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// For the reader.
    Text(String),
    /// Thoughts before the answer.
    Reasoning(String),
    /// A whole call; it is only known to be one when it is complete.
    ToolCall(ParsedCall),
}

/// A tool call as the model wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParsedCall {
    /// The function's name; whether there is such a function is the caller's business.
    pub(crate) name: String,
    /// A JSON object as text.
    pub(crate) arguments: String,
}

/// How a model writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen2.5, Qwen3.
    Hermes,
}

impl ToolFormat {
    /// The format a chat template asks for, if it is one that we read.
    ///
    /// Templates of other families use the same marker around XML, so what tells those is looked for first.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        if template.contains("<function=") || template.contains("<arg_key>") {
            return None;
        }
        (template.contains("<tool_call>") && template.contains("tools")).then_some(Self::Hermes)
    }
}

/// How to read one answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParserOptions {
    /// How the model marks its reasoning, if it reasons.
    pub(crate) reasoning: Option<ReasoningFormat>,
    /// Whether the prompt already opened the reasoning.
    pub(crate) begins_in_reasoning: bool,
    /// The tool-call format; `None` when the request has no tools, and then the markers are text like any other.
    pub(crate) tools: Option<ToolFormat>,
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) struct Parser {
    reasoning: Option<ReasoningParser>,
    tools: Option<HermesParser>,
}

impl Parser {
    pub(crate) fn new(options: &ParserOptions) -> Self {
        Self {
            reasoning: options.reasoning.map(|format| ReasoningParser::new(format, options.begins_in_reasoning)),
            tools: options.tools.map(|ToolFormat::Hermes| HermesParser::default()),
        }
    }

    /// Whether the text so far ends within the reasoning.
    pub(crate) fn in_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningParser::is_open)
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match &mut self.reasoning {
            Some(reasoning) => reasoning.push(text, &mut pieces),
            None => add_text(&mut pieces, text),
        }
        self.read_tools(pieces)
    }

    /// Gives out what was held back.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.finish(&mut pieces);
        }
        let mut pieces = self.read_tools(pieces);
        if let Some(tools) = &mut self.tools {
            tools.finish(&mut pieces);
        }
        pieces
    }

    fn read_tools(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let Some(tools) = &mut self.tools else { return pieces };
        let mut read = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => tools.push(&text, &mut read),
                other => read.push(other),
            }
        }
        read
    }
}

fn add_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

fn add_reasoning(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Reasoning(last)) => last.push_str(text),
        _ => pieces.push(Piece::Reasoning(text.to_owned())),
    }
}

#[cfg(test)]
mod tests;
