//! A chat completion request for the local engine: understood to the last field, or refused.
//!
//! Nothing is ignored that would change the answer. Accepted without effect are only the fields that speak of the caller
//! or of the provider's bookkeeping (`user`, `metadata`, `safety_identifier`, `prompt_cache_key`,
//! `prompt_cache_retention`, `store: false`, `service_tier: "auto" | "default"`), values that ask for what happens
//! anyway (`n: 1`, `logprobs: false`, `response_format: {"type": "text"}`, `modalities: ["text"]` …), and a tool's `strict`,
//! which is a wish: the model sees the schema, and what it makes of it the caller has to check as ever.
//!
//! Three extensions that local servers share act: `top_k`, `min_p` and `repetition_penalty`; `chat_template_kwargs` goes
//! to the model's template. So do two of transformers: `continue_final_message` lets the model go on with the last message,
//! and `add_generation_prompt` says whether the prompt begins a turn of the model's. A conversation that ends with the
//! assistant must have one of them, since a second turn of the assistant's is rarely what was meant. Ollama's `keep_alive`
//! acts on the model's place in memory. `reasoning_effort` knows two steps here, since open models' templates know no more:
//! `none` switches thinking off, every other effort on.

use std::time::Duration;

use mlx_manager_llm::{
    Chat, Content, Ending, Error, KeepAlive, Message, Reasoning, Request, Role, Tool, ToolCall, ToolChoice,
};
use serde_json::{Value, json};

use super::{
    super::{
        exact,
        field::{Fields, Node, bound_stops, check_continued, invalid, unsupported},
    },
    request::sampling,
};

/// Reads the whole body; see [`decode_chat`](crate::decode_chat).
pub(in super::super) fn decode_chat(request: &Request) -> Result<Chat, Error> {
    let fields = Fields(&request.body);
    fields.check_messages()?;
    let mut chat = Chat { sampling: sampling(fields)?, ..Chat::default() };
    for (name, _) in request.body.iter() {
        if let Some(value) = fields.tree(name)? {
            read_field(&mut chat, name, &Node::new(name, &value), request.stream)?;
        }
    }
    exact::schemas(request, &mut chat.tools);
    bound_stops("stop", &chat.sampling.stop)?;
    chat.one_tool_call = fields.flag("parallel_tool_calls")? == Some(false);
    chat.ending = ending(fields, &chat)?;
    Ok(chat)
}

fn ending(fields: Fields<'_>, chat: &Chat) -> Result<Ending, Error> {
    let (go_on, new_turn) = (fields.flag("continue_final_message")?, fields.flag("add_generation_prompt")?);
    match (go_on.unwrap_or_default(), new_turn) {
        (true, Some(true)) => Err(invalid(
            "add_generation_prompt",
            "must not be true with `continue_final_message`: the answer either goes on or begins",
        )),
        (true, _) => check_continued("continue_final_message", chat).map(|()| Ending::LastMessage),
        (false, Some(false)) => Ok(Ending::Nothing),
        (false, None) if chat.messages.last().is_some_and(|message| message.role == Role::Assistant) => Err(invalid(
            "messages",
            "must not end with the assistant: set `continue_final_message` to have that message continued, or `add_generation_prompt` for a new one after it",
        )),
        (false, _) => Ok(Ending::NewTurn),
    }
}

fn read_field(chat: &mut Chat, name: &str, field: &Node<'_>, stream: bool) -> Result<(), Error> {
    match name {
        // `sampling` has read these, or `decode_chat` does.
        "model"
        | "stream"
        | "temperature"
        | "top_p"
        | "top_k"
        | "min_p"
        | "repetition_penalty"
        | "presence_penalty"
        | "frequency_penalty"
        | "seed"
        | "max_tokens"
        | "max_completion_tokens"
        | "stop"
        | "parallel_tool_calls"
        | "continue_final_message"
        | "add_generation_prompt" => {}
        "user" | "metadata" | "safety_identifier" | "prompt_cache_key" | "prompt_cache_retention" => {}
        "messages" => chat.messages = messages(field)?,
        "tools" => chat.tools = field.list()?.iter().map(tool).collect::<Result<_, _>>()?,
        "tool_choice" => chat.tool_choice = tool_choice(field)?,
        "reasoning_effort" => chat.reasoning = reasoning(field)?,
        "keep_alive" => chat.keep_alive = Some(keep_alive(field)?),
        "chat_template_kwargs" => {
            let arguments = field.value().as_object().ok_or_else(|| field.wrong("must be an object"))?;
            chat.template_arguments = arguments.clone();
        }
        "stream_options" if stream => {
            field.only(&["include_usage", "include_obfuscation"])?;
            accept(field.get("include_obfuscation")?.as_ref(), &[json!(false)])?;
        }
        "stream_options" => return Err(field.wrong("is only allowed with `stream`: true")),
        "response_format" => {
            field.only(&["type"]).map_err(|_| field.unsupported())?;
            accept(Some(&field.need("type")?), &[json!("text")])?;
        }
        "n" => accept(Some(field), &[json!(1)])?,
        "logprobs" | "store" => accept(Some(field), &[json!(false)])?,
        "top_logprobs" => accept(Some(field), &[json!(0)])?,
        "logit_bias" => accept(Some(field), &[json!({})])?,
        "modalities" => accept(Some(field), &[json!(["text"])])?,
        "service_tier" => accept(Some(field), &[json!("auto"), json!("default")])?,
        "verbosity" => accept(Some(field), &[json!("medium")])?,
        _ => return Err(field.unsupported()),
    }
    Ok(())
}

/// Accepts a field only with a value that asks for what happens anyway.
fn accept(field: Option<&Node<'_>>, values: &[Value]) -> Result<(), Error> {
    match field {
        Some(field) if !values.contains(field.value()) => Err(field.unsupported()),
        _ => Ok(()),
    }
}

/// As Ollama has it: seconds, or a duration such as "5m"; below zero means for ever.
fn keep_alive(field: &Node<'_>) -> Result<KeepAlive, Error> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);
    let wrong = || field.wrong("must be seconds, or a duration such as \"5m\"; a negative one means for ever");
    let text = match field.value() {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        _ => return Err(wrong()),
    };
    if text.starts_with('-') {
        return Ok(KeepAlive::Forever);
    }
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(&text).ok(),
    };
    duration.filter(|duration| *duration <= LONGEST).map(KeepAlive::For).ok_or_else(wrong)
}

fn reasoning(field: &Node<'_>) -> Result<Reasoning, Error> {
    match field.text()? {
        "none" => Ok(Reasoning::Off),
        "minimal" | "low" | "medium" | "high" | "xhigh" => Ok(Reasoning::On),
        _ => Err(field.wrong("must be one of none, minimal, low, medium, high, xhigh")),
    }
}

fn tool_choice(field: &Node<'_>) -> Result<ToolChoice, Error> {
    match field.value().as_str() {
        Some("auto") => Ok(ToolChoice::Auto),
        Some("none") => Ok(ToolChoice::None),
        _ => Err(field.wrong("must be \"auto\" or \"none\": other choices can't be enforced by local models")),
    }
}

fn tool(tool: &Node<'_>) -> Result<Tool, Error> {
    let kind = tool.need("type")?;
    if kind.text()? != "function" {
        return Err(kind.wrong("must be \"function\": local models know no other tools"));
    }
    tool.only(&["type", "function"])?;
    let function = tool.need("function")?;
    function.only(&["name", "description", "parameters", "strict"])?;
    function.get("strict")?.map_or(Ok(false), |strict| strict.flag())?;
    let name = function.need("name")?;
    if name.text()?.is_empty() {
        return Err(name.wrong("must not be empty"));
    }
    let parameters = match function.get("parameters")? {
        Some(parameters) if !parameters.value().is_object() => return Err(parameters.wrong("must be an object")),
        Some(parameters) => parameters.value().to_string(),
        None => json!({"type": "object", "properties": {}}).to_string(),
    };
    let description = function.get("description")?.map(|text| text.text().map(str::to_owned)).transpose()?;
    Ok(Tool { name: name.text()?.to_owned(), description, parameters })
}

fn messages(field: &Node<'_>) -> Result<Vec<Message>, Error> {
    field.list()?.iter().map(message).collect()
}

fn message(message: &Node<'_>) -> Result<Message, Error> {
    let role = role(&message.need("role")?)?;
    let mut read =
        Message { role, content: Vec::new(), reasoning: None, tool_calls: Vec::new(), tool_call_id: None, name: None };
    let mut refusal = None;
    for (name, field) in message.fields()? {
        match (name, role) {
            ("role", _) => {}
            ("content", _) => read.content = content(&field)?,
            ("name", _) => read.name = Some(field.text()?.to_owned()),
            ("tool_call_id", Role::Tool) => read.tool_call_id = Some(field.text()?.to_owned()),
            ("tool_calls", Role::Assistant) => {
                read.tool_calls = field.list()?.iter().map(tool_call).collect::<Result<_, _>>()?;
            }
            ("reasoning_content" | "reasoning", Role::Assistant) => read.reasoning = Some(field.text()?.to_owned()),
            ("refusal", Role::Assistant) => refusal = Some(field.text()?.to_owned()),
            // Clients send an earlier answer back as they got it, empty lists included.
            ("annotations", Role::Assistant) if field.value().as_array().is_some_and(Vec::is_empty) => {}
            _ => return Err(field.unsupported()),
        }
    }
    if message.get("content")?.is_none() {
        match refusal {
            Some(text) => read.content = vec![Content::Text(text)],
            None if !read.tool_calls.is_empty() => {}
            None => return Err(invalid(&format!("{}.content", message.path()), "is required")),
        }
    }
    if role == Role::Tool {
        message.need("tool_call_id")?;
    }
    Ok(read)
}

fn role(field: &Node<'_>) -> Result<Role, Error> {
    match field.text()? {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => Err(field.wrong("must not be \"function\", which is deprecated; use \"tool\"")),
        _ => Err(field.wrong("must be one of system, developer, user, assistant, tool")),
    }
}

fn content(field: &Node<'_>) -> Result<Vec<Content>, Error> {
    if let Some(text) = field.value().as_str() {
        return Ok(vec![Content::Text(text.to_owned())]);
    }
    if !field.value().is_array() {
        return Err(field.wrong("must be a string or an array of parts"));
    }
    field.list()?.iter().map(part).collect()
}

fn part(part: &Node<'_>) -> Result<Content, Error> {
    let kind = part.need("type")?;
    let name = match kind.text()? {
        "text" => "text",
        "refusal" => "refusal",
        "image_url" => return Err(refuse_medium(part, "images")),
        "input_audio" => return Err(refuse_medium(part, "audio")),
        "video_url" => return Err(refuse_medium(part, "videos")),
        "file" => return Err(refuse_medium(part, "files")),
        _ => return Err(unsupported(kind.path())),
    };
    // `cache_control` comes along from gateways; the local cache works without being asked.
    part.only(&["type", name, "cache_control"])?;
    Ok(Content::Text(part.need(name)?.text()?.to_owned()))
}

fn refuse_medium(part: &Node<'_>, medium: &str) -> Error {
    part.wrong(format_args!(
        "holds {medium}, which local models can't read; send text or route the model to a provider"
    ))
}

fn tool_call(call: &Node<'_>) -> Result<ToolCall, Error> {
    // `index` stays behind where a client puts streamed pieces together.
    call.only(&["id", "type", "function", "index"])?;
    if let Some(kind) = call.get("type")?
        && kind.text()? != "function"
    {
        return Err(kind.wrong("must be \"function\": local models know no other tools"));
    }
    let function = call.need("function")?;
    function.only(&["name", "arguments"])?;
    Ok(ToolCall {
        id: call.need("id")?.text()?.to_owned(),
        name: function.need("name")?.text()?.to_owned(),
        arguments: function.need("arguments")?.text()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_be_kept_as_ollamas_clients_ask() {
        let read = |value: Value| keep_alive(&Node::new("keep_alive", &value)).map_err(|error| error.message);
        let seconds = |seconds| Ok(KeepAlive::For(Duration::from_secs(seconds)));
        assert_eq!(read(json!(30)), seconds(30));
        assert_eq!(read(json!("300")), seconds(300));
        assert_eq!(read(json!("1h30m")), seconds(5400));
        assert_eq!(read(json!(0)), seconds(0));
        assert_eq!(read(json!(-1)), Ok(KeepAlive::Forever));
        assert_eq!(read(json!("-1m")), Ok(KeepAlive::Forever));
        for wrong in [json!("soon"), json!(1e300), json!("nan"), json!(true), json!({}), json!("")] {
            let error = read(wrong.clone()).unwrap_err();
            assert!(error.contains("keep_alive"), "{wrong}: {error}");
        }
    }
}
