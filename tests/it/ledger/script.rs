//! What a provider writes, frame by frame or whole, and what it counts for it.

use serde_json::{Value, json};

use super::plan::{Dice, Oddity, Plan, Tokens};

/// A piece of an event stream.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    pub text: String,
    /// How many words of the answer it holds.
    pub words: usize,
    /// What it tells of the usage.
    pub tells: Tokens,
    /// Whether nobody can read it.
    pub unreadable: bool,
}

/// The frames of an answer; with `usage` the provider was asked for it.
pub fn stream(plan: &Plan, usage: bool) -> Vec<Frame> {
    let mut frames = if plan.anthropic { anthropic(plan) } else { openai(plan, usage) };
    if plan.oddity == Oddity::NoTerminator {
        frames.pop();
    }
    let mut frames = spiced(plan, frames);
    if plan.oddity == Oddity::CarriageReturns {
        frames.iter_mut().for_each(|frame| frame.text = frame.text.replace('\n', "\r\n"));
    }
    if plan.oddity == Oddity::NoLastBlankLine {
        let last = &mut frames.last_mut().unwrap().text;
        last.truncate(last.trim_end().len() + plan.way % 2);
    }
    frames
}

/// A whole answer.
pub fn whole(plan: &Plan) -> (String, Tokens) {
    let text: String = (1..=plan.words).map(|index| word(plan, index)).collect();
    let told = plan.oddity != Oddity::NoUsage;
    let (mut body, tells) = if plan.anthropic {
        let (usage, mut tells) = anthropic_usage(plan, plan.counts.output, true);
        let mut body = message(plan);
        body["content"] = if plan.oddity == Oddity::ToolCalls {
            json!([{ "type": "tool_use", "id": "toolu_1", "name": "note", "input": { "text": text } }])
        } else {
            json!([{ "type": "text", "text": text }])
        };
        body["stop_reason"] = json!("end_turn");
        if told {
            body["usage"] = usage;
        } else {
            tells = Tokens::default();
        }
        (body, tells)
    } else {
        let (usage, mut tells) = openai_usage(plan, plan.counts.output);
        let mut body = json!({
            "id": format!("chatcmpl-{}", plan.number), "object": "chat.completion", "created": 1_763_000_000,
            "model": plan.answering(),
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }]
        });
        if plan.oddity == Oddity::ToolCalls {
            let call = json!({ "id": "call_1", "type": "function", "function": { "name": "note", "arguments": text } });
            body["choices"][0]["message"] = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
        }
        if told {
            body["usage"] = usage;
        } else {
            tells = Tokens::default();
        }
        if let Some(tier) = plan.tier {
            body["service_tier"] = json!(tier);
            tells.tier = plan.tier;
        }
        (body, tells)
    };
    if plan.oddity == Oddity::TwoChoices {
        let mut other = body["choices"][0].clone();
        other["index"] = json!(1);
        body["choices"].as_array_mut().unwrap().insert(0, other);
    }
    (written(plan, &body), tells)
}

/// A word as it stands in a value; its odd half of a character is put in when that is written.
fn word(plan: &Plan, index: usize) -> String {
    let half = if plan.oddity == Oddity::HalfSurrogate { "@@" } else { "" };
    format!("{half}{}", plan.word(index))
}

/// A value's JSON, with the oddities that a JSON library doesn't write.
fn written(plan: &Plan, value: &Value) -> String {
    let text = value.to_string().replace("@@", "\\ud83d");
    if plan.oddity != Oddity::TwiceKeys {
        return text;
    }
    let wrong = r#"{"prompt_tokens":999999,"completion_tokens":999999,"input_tokens":999999,"output_tokens":999999}"#;
    text.replace("\"usage\":{", &format!("\"usage\":{wrong},\"usage\":{{"))
        .replace("\"model\":", "\"model\":\"o1-pro\",\"model\":")
}

/// A count in the oddity's way of writing.
fn number(plan: &Plan, count: u64) -> Value {
    match plan.oddity {
        Oddity::CountsAsFloats => json!(count as f64),
        Oddity::CountsAsStrings => json!(count.to_string()),
        _ => json!(count),
    }
}

fn openai_usage(plan: &Plan, output: u64) -> (Value, Tokens) {
    let counts = plan.counts;
    let input = counts.fresh + counts.cache_read;
    let reasoning = counts.reasoning.min(output);
    let number = |count| number(plan, count);
    let mut usage = json!({
        "prompt_tokens": number(input), "completion_tokens": number(output), "total_tokens": number(input + output)
    });
    let mut tells = Tokens { input: Some(input), output: Some(output), ..Tokens::default() };
    match plan.oddity {
        Oddity::CacheHitTokens => {
            usage["prompt_cache_hit_tokens"] = number(counts.cache_read);
            usage["prompt_cache_miss_tokens"] = number(counts.fresh);
            tells.cache_read = Some(counts.cache_read);
        }
        Oddity::UsageOnEachChunk => {
            usage["num_search_queries"] = number(counts.searches);
            usage["search_context_size"] = json!("low");
            tells.searches = Some(counts.searches);
        }
        _ => {
            if plan.oddity == Oddity::ReasoningOutside {
                usage["completion_tokens"] = number(output - reasoning);
            }
            usage["prompt_tokens_details"] = json!({ "cached_tokens": number(counts.cache_read) });
            usage["completion_tokens_details"] = json!({ "reasoning_tokens": number(reasoning) });
            (tells.cache_read, tells.reasoning) = (Some(counts.cache_read), Some(reasoning));
        }
    }
    (usage, tells)
}

fn openai(plan: &Plan, usage: bool) -> Vec<Frame> {
    let oddity = plan.oddity;
    let unasked = [Oddity::UsageOnLastChoice, Oddity::UsageInChoice, Oddity::UsageInXGroq, Oddity::UsageOnEachChunk];
    let alone = usage && oddity != Oddity::NoUsage && !unasked.contains(&oddity);
    let chunk = |delta: Value, finish: Value| {
        let mut chunk = json!({
            "id": format!("chatcmpl-{}", plan.number), "object": "chat.completion.chunk", "created": 1_763_000_000,
            "model": plan.answering(), "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }]
        });
        if oddity == Oddity::UsageChunkAndNulls {
            chunk["usage"] = Value::Null;
        }
        if let Some(tier) = plan.tier {
            chunk["service_tier"] = json!(tier);
        }
        chunk
    };
    let frame = |chunk: &Value, words: usize, tells: Tokens| Frame {
        text: format!("data: {}\n\n", written(plan, chunk)),
        words,
        tells: Tokens { tier: plan.tier, ..tells },
        unreadable: false,
    };
    let mut frames = Vec::new();
    if oddity == Oddity::EmptyFirstChunk {
        let first =
            json!({ "id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [] });
        frames.push(frame(&first, 0, Tokens::default()));
    }
    frames.push(frame(&chunk(json!({ "role": "assistant", "content": "" }), Value::Null), 0, Tokens::default()));
    for index in 1..=plan.words {
        let mut content = chunk(json!({ "content": word(plan, index) }), Value::Null);
        if oddity == Oddity::ToolCalls {
            let call =
                json!({ "index": 0, "id": "call_1", "function": { "name": "note", "arguments": word(plan, index) } });
            content["choices"][0]["delta"] = json!({ "tool_calls": [call] });
        }
        let mut tells = Tokens::default();
        if oddity == Oddity::UsageOnEachChunk {
            let sofar = plan.counts.output * index as u64 / plan.words as u64;
            (content["usage"], tells) = openai_usage(plan, sofar);
        }
        frames.push(frame(&content, 1, tells));
        if oddity == Oddity::TwoChoices {
            content["choices"][0]["index"] = json!(1);
            frames.push(frame(&content, 0, tells));
        }
    }
    let mut last = chunk(json!({}), json!("stop"));
    let (report, tells) = openai_usage(plan, plan.counts.output);
    match oddity {
        Oddity::UsageOnLastChoice | Oddity::UsageOnEachChunk => last["usage"] = report.clone(),
        Oddity::UsageInChoice => last["choices"][0]["usage"] = report.clone(),
        Oddity::UsageInXGroq => last["x_groq"] = json!({ "id": "req_1", "usage": report }),
        _ => {}
    }
    frames.push(frame(&last, 0, if unasked.contains(&oddity) { tells } else { Tokens::default() }));
    if alone {
        let mut only = chunk(Value::Null, Value::Null);
        only["choices"] = json!([]);
        only["usage"] = report;
        frames.push(frame(&only, 0, tells));
    }
    frames.push(Frame { text: "data: [DONE]\n\n".to_owned(), ..Frame::default() });
    frames
}

/// Anthropic's usage, whose input is in three parts; the last of a stream, or of a body, has all that is counted at the end.
fn anthropic_usage(plan: &Plan, output: u64, last: bool) -> (Value, Tokens) {
    let counts = plan.counts;
    let number = |count| number(plan, count);
    let mut usage = json!({
        "input_tokens": number(counts.fresh), "cache_creation_input_tokens": number(counts.cache_write),
        "cache_read_input_tokens": number(counts.cache_read), "output_tokens": number(output)
    });
    let mut tells = Tokens {
        input: Some(counts.fresh + counts.cache_read + counts.cache_write),
        output: Some(output),
        cache_read: Some(counts.cache_read),
        cache_write: Some(counts.cache_write),
        tier: plan.tier,
        ..Tokens::default()
    };
    if let Some(tier) = plan.tier {
        usage["service_tier"] = json!(tier);
    }
    match plan.oddity {
        Oddity::CacheLifetimes => {
            usage["cache_creation"] = json!({
                "ephemeral_5m_input_tokens": counts.cache_write - counts.cache_write_1h,
                "ephemeral_1h_input_tokens": counts.cache_write_1h
            });
            tells.cache_write_1h = Some(counts.cache_write_1h);
        }
        Oddity::WebSearch if last => {
            usage["server_tool_use"] = json!({ "web_search_requests": counts.searches, "web_fetch_requests": 0 });
            tells.searches = Some(counts.searches);
        }
        Oddity::ThinkingTokens if last => {
            usage["output_tokens_details"] = json!({ "thinking_tokens": counts.reasoning });
            tells.reasoning = Some(counts.reasoning);
        }
        _ => {}
    }
    (usage, tells)
}

fn message(plan: &Plan) -> Value {
    json!({
        "id": format!("msg_{}", plan.number), "type": "message", "role": "assistant", "model": plan.answering(),
        "content": [], "stop_reason": null, "stop_sequence": null
    })
}

fn anthropic(plan: &Plan) -> Vec<Frame> {
    let told = plan.oddity != Oddity::NoUsage;
    let frame = |event: &Value, words: usize, tells: Tokens| Frame {
        text: format!("event: {}\ndata: {}\n\n", event["type"].as_str().unwrap(), written(plan, event)),
        words,
        tells: if told { tells } else { Tokens::default() },
        unreadable: false,
    };
    let nothing = Tokens::default();
    let mut start = message(plan);
    let (usage, mut tells) = anthropic_usage(plan, 1, false);
    if told {
        start["usage"] = usage;
    }
    let counts = plan.counts;
    let smaller = plan.oddity == Oddity::SmallerRepeat;
    // One part grows in the end, while the other shrinks.
    let (growing, shrinking) = match plan.way % 2 {
        0 => (("input_tokens", counts.fresh), "cache_read_input_tokens"),
        _ => (("cache_read_input_tokens", counts.cache_read), "input_tokens"),
    };
    if smaller {
        let (name, count) = growing;
        start["usage"][name] = json!(count / 2);
        tells.input = tells.input.map(|input| input - count + count / 2);
        if name != "input_tokens" {
            tells.cache_read = Some(count / 2);
        }
    }
    let calls = plan.oddity == Oddity::ToolCalls;
    let block = if calls {
        json!({ "type": "tool_use", "id": "toolu_1", "name": "note", "input": {} })
    } else {
        json!({ "type": "text", "text": "" })
    };
    let block = json!({ "type": "content_block_start", "index": 0, "content_block": block });
    let mut frames = vec![
        frame(&json!({ "type": "message_start", "message": start }), 0, tells),
        frame(&block, 0, nothing),
        frame(&json!({ "type": "ping" }), 0, nothing),
    ];
    for index in 1..=plan.words {
        let delta = if calls {
            json!({ "type": "input_json_delta", "partial_json": word(plan, index) })
        } else {
            json!({ "type": "text_delta", "text": word(plan, index) })
        };
        frames.push(frame(&json!({ "type": "content_block_delta", "index": 0, "delta": delta }), 1, nothing));
    }
    frames.push(frame(&json!({ "type": "content_block_stop", "index": 0 }), 0, nothing));
    let (usage, tells) = anthropic_usage(plan, plan.counts.output, true);
    let mut delta = json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null } });
    if told {
        delta["usage"] = usage;
    }
    let last = json!({
        "input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": null,
        "output_tokens": plan.counts.output / 2
    });
    if smaller {
        delta["usage"][shrinking] = json!(0);
    }
    frames.push(frame(&delta, 0, tells));
    if smaller {
        delta["usage"] = last;
        frames.push(frame(&delta, 0, nothing));
    }
    frames.push(frame(&json!({ "type": "message_stop" }), 0, nothing));
    frames
}

/// Puts what an oddity has between the frames there.
fn spiced(plan: &Plan, frames: Vec<Frame>) -> Vec<Frame> {
    let unreadable = plan.oddity == Oddity::UnreadableFrames;
    let between: &[&str] = match plan.oddity {
        Oddity::EmptyData => &["data:\n\n", "data: \n\n", "data:\ndata:\n\n"],
        Oddity::CommentsAndPings if plan.anthropic => &[": ping\n\n", "event: ping\ndata: {\"type\": \"ping\"}\n\n"],
        Oddity::CommentsAndPings => &[": OPENROUTER PROCESSING\n\n", ":\n\n", "event: ping\n\n", "retry: 10\n\n"],
        Oddity::UnreadableFrames => &["data: {\"oops\": \n\n", "data: some words\n\n", "data: 17\n\n", "data: }{\n\n"],
        Oddity::UnknownEvents if plan.anthropic => &[
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":7,\"content_block\":{\"type\":\"hologram\",\"data\":\"x\"}}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":7,\"delta\":{\"type\":\"hologram_delta\",\"data\":\"x\"}}\n\n",
            "event: weather\ndata: {\"type\":\"weather\",\"sun\":true}\n\n",
        ],
        Oddity::UnknownEvents => &[
            "event: weather\ndata: {\"sun\":true}\n\n",
            "data: {\"id\":\"n\",\"object\":\"chat.note\",\"choices\":[],\"note\":{\"message\":\"hm\"}}\n\n",
        ],
        _ => return frames,
    };
    let mut dice: Dice = plan.dice();
    let mut spiced = Vec::new();
    for frame in frames {
        // One at least before the first, so that no oddity passes without a trace.
        if spiced.is_empty() || dice.chance(50) {
            spiced.push(Frame { text: dice.pick(between).to_owned(), unreadable, ..Frame::default() });
        }
        spiced.push(frame);
    }
    spiced
}
