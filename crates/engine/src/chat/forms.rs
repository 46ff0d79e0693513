//! A conversation as a template expects it.
//!
//! Clients can say the same in several forms, and templates know them to different degrees: some tell a turn of calls by
//! its content being `none`, others fail on it; some write a call's arguments with `tojson`, others add them to a text. So
//! each template is tried once, when it is loaded, and gets what it can write.

use jiff::Zoned;
use minijinja::Value;
use mlx_manager_llm::{Content, Message, Role, Tool, ToolCall};

use crate::{
    json,
    template::{ChatTemplate, TemplateError, Variables},
};

/// Nothing that a template says by itself.
const CONTENT: &str = "zq-content";
const NAME: &str = "zq_name";
const KEY: &str = "zq_key";

/// What a template wants where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forms {
    /// Content is a list of parts with types, not a text.
    typed: bool,
    /// A call's arguments are JSON text, not an object.
    text_arguments: bool,
    /// A turn of calls alone has `none` for content, not an empty text.
    none_content: bool,
}

impl Forms {
    /// What most templates want: texts, and arguments as an object.
    const USUAL: Self = Self { typed: false, text_arguments: false, none_content: false };

    /// Tries which forms a template writes whole.
    pub(super) fn of_template(template: &ChatTemplate, special_tokens: &[(String, Value)]) -> Self {
        let mut forms = Self::USUAL;
        let render = |forms: Self, messages: &[Message]| {
            let variables = Variables {
                messages: messages.iter().map(|message| forms.message(message)).collect(),
                tools: Some(vec![tool(&Tool {
                    name: NAME.to_owned(),
                    description: Some("A function.".to_owned()),
                    parameters: r#"{"type": "object", "properties": {}}"#.to_owned(),
                })]),
                add_generation_prompt: true,
                others: special_tokens.to_vec(),
            };
            match template.render(variables, Zoned::default()) {
                Ok(prompt) => Some(prompt),
                // It may quote what it would have written.
                Err(TemplateError::Refused(reason)) => Some(reason),
                Err(_) => None,
            }
        };
        let said = [turn(Role::User, Some(CONTENT), false)];
        let says = |forms| render(forms, &said).is_some_and(|prompt| prompt.contains(CONTENT));
        forms.typed = !says(forms) && says(Self { typed: true, ..forms });

        // Twice, since templates treat the turns before the last question unlike those after it.
        let calls = |text| {
            let call = || turn(Role::Assistant, text, true);
            let asked = || turn(Role::User, Some("Question"), false);
            let answered = || turn(Role::Tool, Some("Result"), false);
            [asked(), call(), answered(), turn(Role::Assistant, Some("Answer"), false), asked(), call(), answered()]
        };
        let beside = calls(Some(CONTENT));
        let writes = |forms| render(forms, &beside).filter(|prompt| prompt.contains(KEY));
        let as_text = Self { text_arguments: true, ..forms };
        // Python writes a dict with single quotes where a template adds it to a text.
        let is_whole = |prompt: &String| !prompt.contains(&format!("'{KEY}'"));
        forms.text_arguments = writes(forms).filter(is_whole).is_none()
            && writes(as_text).is_some_and(|prompt| !prompt.contains(&format!("\\\"{KEY}")));

        let alone = calls(None);
        let count = |prompt: &String, what: &str| prompt.matches(what).count();
        let empty = render(forms, &alone);
        let none = render(Self { none_content: true, ..forms }, &alone);
        forms.none_content = none.is_some_and(|none| {
            let seen = |what| empty.as_ref().map_or(0, |empty| count(empty, what));
            count(&none, NAME) >= seen(NAME).max(1) && count(&none, "None") <= seen("None")
        });
        forms
    }

    /// A message as the template expects it.
    pub(super) fn message(self, message: &Message) -> Value {
        let mut fields = vec![("role", message.role.as_str().into()), ("content", self.content(message))];
        if let Some(reasoning) = &message.reasoning {
            // Templates know it by either name.
            fields.push(("thinking", reasoning.as_str().into()));
            fields.push(("reasoning_content", reasoning.as_str().into()));
        }
        if !message.tool_calls.is_empty() {
            fields.push(("tool_calls", message.tool_calls.iter().map(|call| self.tool_call(call)).collect()));
        }
        if let Some(id) = &message.tool_call_id {
            fields.push(("tool_call_id", id.as_str().into()));
        }
        if let Some(name) = &message.name {
            fields.push(("name", name.as_str().into()));
        }
        Value::from_pairs(fields)
    }

    fn content(self, message: &Message) -> Value {
        if message.content.is_empty() && !message.tool_calls.is_empty() && self.none_content {
            return Value::from(());
        }
        let text: String = message.content.iter().map(|Content::Text(text)| text.as_str()).collect();
        if self.typed {
            return Value::from(vec![Value::from_pairs([("type", "text"), ("text", text.as_str())])]);
        }
        text.into()
    }

    fn tool_call(self, call: &ToolCall) -> Value {
        let text = match call.arguments.trim() {
            "" => "{}",
            text => text,
        };
        let arguments =
            if self.text_arguments { text.into() } else { json::read(text).unwrap_or_else(|_| text.into()) };
        let function = Value::from_pairs([("name", call.name.as_str().into()), ("arguments", arguments)]);
        Value::from_pairs([("type", "function".into()), ("id", call.id.as_str().into()), ("function", function)])
    }
}

/// What a template writes behind an answer that a question follows: first of all, what ends the turn.
pub(super) fn behind_answer(
    template: &ChatTemplate,
    forms: Forms,
    special_tokens: &[(String, Value)],
) -> Option<String> {
    let turns = [
        turn(Role::User, Some("Question"), false),
        turn(Role::Assistant, Some(CONTENT), false),
        turn(Role::User, Some("Question"), false),
    ];
    let variables = Variables {
        messages: turns.iter().map(|message| forms.message(message)).collect(),
        tools: None,
        add_generation_prompt: true,
        others: special_tokens.to_vec(),
    };
    let prompt = template.render(variables, Zoned::default()).ok()?;
    prompt.split_once(CONTENT).map(|(_, rest)| rest.to_owned())
}

/// A function as templates expect it.
pub(super) fn tool(tool: &Tool) -> Value {
    let mut function = vec![("name", tool.name.as_str().into())];
    if let Some(description) = &tool.description {
        function.push(("description", description.as_str().into()));
    }
    let parameters = json::read(&tool.parameters).unwrap_or_else(|_| tool.parameters.as_str().into());
    function.push(("parameters", parameters));
    Value::from_pairs([("type", "function".into()), ("function", Value::from_pairs(function))])
}

/// A turn to try a template with.
fn turn(role: Role, text: Option<&str>, calls: bool) -> Message {
    // As long as the one family that checks it wants it.
    let id = "zqcallid1".to_owned();
    let call = ToolCall { id: id.clone(), name: NAME.to_owned(), arguments: format!(r#"{{"{KEY}": "value"}}"#) };
    Message {
        role,
        content: text.map(|text| Content::Text(text.to_owned())).into_iter().collect(),
        reasoning: None,
        tool_calls: if calls { vec![call] } else { Vec::new() },
        tool_call_id: (role == Role::Tool).then_some(id),
        name: (role == Role::Tool).then(|| NAME.to_owned()),
    }
}
