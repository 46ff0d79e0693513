//! A messages request for the local engine: understood to the last field, or refused.
//!
//! Nothing is ignored that would change the answer. Accepted without effect are only `metadata`, `service_tier` and the
//! `cache_control` marks (the local cache needs none). `thinking` switches thinking on or off; its `budget_tokens` is a
//! target by Anthropic's own words, not a limit, and `max_tokens` is what bounds the answer here.
//!
//! A failed tool result (`is_error`) reaches the model as text that begins with `Error: `, since chat templates have no
//! other place for it. A conversation that ends with the assistant's turn (a prefilled answer) is gone on with, as the API
//! defines it. A tool's `strict` is a wish, as in OpenAI's dialect.

use mlx_manager_llm::{Chat, Content, Ending, Error, Message, Reasoning, Request, Role, Tool, ToolCall, ToolChoice};
use serde_json::json;

use super::{
    super::{
        exact,
        field::{Fields, Node, bound_stops, check_continued, unsupported},
    },
    request::sampling,
};

/// Reads the whole body; see [`decode_chat`](crate::decode_chat).
pub(in super::super) fn decode_chat(request: &Request) -> Result<Chat, Error> {
    let fields = Fields(&request.body);
    fields.check_messages()?;
    let mut chat = Chat { sampling: sampling(fields)?, ..Chat::default() };
    let mut system = Vec::new();
    for (name, _) in request.body.iter() {
        let Some(value) = fields.tree(name)? else { continue };
        let field = Node::new(name, &value);
        match name {
            // `sampling` has read these.
            "model" | "stream" | "temperature" | "top_p" | "top_k" | "max_tokens" | "stop_sequences" => {}
            "metadata" | "cache_control" => {}
            "service_tier" => {
                if !matches!(field.text()?, "auto" | "standard_only") {
                    return Err(field.unsupported());
                }
            }
            "system" => system = text_content(&field)?,
            "messages" => {
                for message in field.list()? {
                    read_message(&message, &mut chat.messages)?;
                }
            }
            "tools" => chat.tools = field.list()?.iter().map(tool).collect::<Result<_, _>>()?,
            "tool_choice" => (chat.tool_choice, chat.one_tool_call) = tool_choice(&field)?,
            "thinking" => chat.reasoning = thinking(&field)?,
            "mcp_servers" if field.value() == &json!([]) => {}
            _ => return Err(field.unsupported()),
        }
    }
    bound_stops("stop_sequences", &chat.sampling.stop)?;
    exact::schemas(request, &mut chat.tools);
    exact::inputs(request, &mut chat.messages);
    if chat.messages.last().is_some_and(|message| message.role == Role::Assistant) {
        check_continued("messages", &chat)?;
        chat.ending = Ending::LastMessage;
    }
    if !system.is_empty() {
        chat.messages.insert(0, Message { content: system, ..empty(Role::System) });
    }
    Ok(chat)
}

fn empty(role: Role) -> Message {
    Message { role, content: Vec::new(), reasoning: None, tool_calls: Vec::new(), tool_call_id: None, name: None }
}

fn thinking(field: &Node<'_>) -> Result<Reasoning, Error> {
    field.only(&["type", "budget_tokens", "display"])?;
    if let Some(budget) = field.get("budget_tokens")?
        && budget.value().as_u64().is_none_or(|budget| budget == 0)
    {
        return Err(budget.wrong("must be a whole number of at least 1"));
    }
    if let Some(display) = field.get("display")?
        && display.text()? != "summarized"
    {
        return Err(display.unsupported());
    }
    let kind = field.need("type")?;
    match kind.text()? {
        "enabled" => Ok(Reasoning::On),
        "disabled" => Ok(Reasoning::Off),
        "adaptive" => Ok(Reasoning::Default),
        _ => Err(kind.wrong("must be one of enabled, disabled, adaptive")),
    }
}

/// The choice, and whether calls must come one at a time.
fn tool_choice(field: &Node<'_>) -> Result<(ToolChoice, bool), Error> {
    let kind = field.need("type")?;
    let choice = match kind.text()? {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        _ => return Err(kind.wrong("must be \"auto\" or \"none\": other choices can't be enforced by local models")),
    };
    field.only(&["type", "disable_parallel_tool_use"])?;
    let serial = field.get("disable_parallel_tool_use")?.map_or(Ok(false), |flag| flag.flag())?;
    Ok((choice, serial))
}

fn tool(tool: &Node<'_>) -> Result<Tool, Error> {
    if let Some(kind) = tool.get("type")?
        && kind.text()? != "custom"
    {
        return Err(kind.wrong("must be \"custom\": local models can't use Anthropic's own tools"));
    }
    tool.only(&["type", "name", "description", "input_schema", "strict", "cache_control"])?;
    tool.get("strict")?.map_or(Ok(false), |strict| strict.flag())?;
    let name = tool.need("name")?;
    if name.text()?.is_empty() {
        return Err(name.wrong("must not be empty"));
    }
    let schema = tool.need("input_schema")?;
    if !schema.value().is_object() {
        return Err(schema.wrong("must be an object"));
    }
    let description = tool.get("description")?.map(|text| text.text().map(str::to_owned)).transpose()?;
    Ok(Tool { name: name.text()?.to_owned(), description, parameters: schema.value().to_string() })
}

fn read_message(message: &Node<'_>, messages: &mut Vec<Message>) -> Result<(), Error> {
    message.only(&["role", "content"])?;
    let role = message.need("role")?;
    let content = message.need("content")?;
    match role.text()? {
        "user" => read_user(&content, messages),
        "assistant" => {
            messages.push(read_assistant(&content)?);
            Ok(())
        }
        _ => Err(role.wrong("must be user or assistant; instructions go into `system`")),
    }
}

/// Tool results become messages of their own, as templates want them; the order of all parts stays.
fn read_user(content: &Node<'_>, messages: &mut Vec<Message>) -> Result<(), Error> {
    let mut said = Vec::new();
    for block in blocks(content)? {
        match block {
            Block::Text(text) => said.push(Content::Text(text)),
            Block::Other(block, "tool_result") => {
                if !said.is_empty() {
                    messages.push(Message { content: std::mem::take(&mut said), ..empty(Role::User) });
                }
                messages.push(tool_result(&block)?);
            }
            Block::Other(block, kind) => return Err(refuse_block(&block, kind)),
        }
    }
    if !said.is_empty() {
        messages.push(Message { content: said, ..empty(Role::User) });
    }
    Ok(())
}

fn tool_result(block: &Node<'_>) -> Result<Message, Error> {
    block.only(&["type", "tool_use_id", "content", "is_error", "cache_control"])?;
    let mut content = block.get("content")?.map_or_else(|| Ok(Vec::new()), |content| text_content(&content))?;
    if block.get("is_error")?.map_or(Ok(false), |flag| flag.flag())? {
        match content.first_mut() {
            Some(Content::Text(text)) => text.insert_str(0, "Error: "),
            None => content.push(Content::Text("Error: the tool failed".to_owned())),
        }
    }
    let id = block.need("tool_use_id")?.text()?.to_owned();
    Ok(Message { content, tool_call_id: Some(id), ..empty(Role::Tool) })
}

fn read_assistant(content: &Node<'_>) -> Result<Message, Error> {
    let mut message = empty(Role::Assistant);
    for block in blocks(content)? {
        match block {
            Block::Text(text) => message.content.push(Content::Text(text)),
            Block::Other(block, "thinking") => {
                block.only(&["type", "thinking", "signature"])?;
                message.reasoning.get_or_insert_default().push_str(block.need("thinking")?.text()?);
            }
            Block::Other(block, "tool_use") => {
                block.only(&["type", "id", "name", "input", "cache_control"])?;
                let input = block.need("input")?;
                if !input.value().is_object() {
                    return Err(input.wrong("must be an object"));
                }
                message.tool_calls.push(ToolCall {
                    id: block.need("id")?.text()?.to_owned(),
                    name: block.need("name")?.text()?.to_owned(),
                    arguments: input.value().to_string(),
                });
            }
            Block::Other(block, kind) => return Err(refuse_block(&block, kind)),
        }
    }
    Ok(message)
}

enum Block<'a> {
    Text(String),
    Other(Node<'a>, &'a str),
}

fn blocks<'a>(content: &Node<'a>) -> Result<Vec<Block<'a>>, Error> {
    if let Some(text) = content.value().as_str() {
        return Ok(vec![Block::Text(text.to_owned())]);
    }
    if !content.value().is_array() {
        return Err(content.wrong("must be a string or an array of blocks"));
    }
    let read = |block: Node<'a>| match block.need("type")?.text()? {
        "text" => {
            // Citations belong to an earlier answer of a provider; they annotate its text and are no part of it.
            block.only(&["type", "text", "cache_control", "citations"])?;
            Ok(Block::Text(block.need("text")?.text()?.to_owned()))
        }
        kind => Ok(Block::Other(block, kind)),
    };
    content.list()?.into_iter().map(read).collect()
}

/// A string, or blocks of text only: the system prompt, a tool's result.
fn text_content(content: &Node<'_>) -> Result<Vec<Content>, Error> {
    let read = |block| match block {
        Block::Text(text) => Ok(Content::Text(text)),
        Block::Other(block, kind) => Err(refuse_block(&block, kind)),
    };
    blocks(content)?.into_iter().map(read).collect()
}

fn refuse_block(block: &Node<'_>, kind: &str) -> Error {
    let medium = match kind {
        "image" => "an image",
        "document" => "a document",
        "redacted_thinking" => "encrypted thinking",
        _ => return unsupported(&format!("{}.type", block.path())),
    };
    block.wrong(format_args!(
        "holds {medium}, which local models can't read; send text or route the model to a provider"
    ))
}
