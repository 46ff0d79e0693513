"""Answers as providers write them: what `through.py` begins with before it makes them odd.

A stream is a list of frames, each `(event, data)`; data is a value that becomes JSON, or text that is written as it is.
A whole answer is one value. The terminator of a stream is not in the list, as it is written or left out by `odd.py`.
"""

import copy
import json

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def chunk(delta, reason=None, **more):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1760000000, "model": "m-2026"}
    return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], **more}


def usage_chunk(usage=USAGE, **more):
    return {**chunk({}), "choices": [], "usage": usage, **more}


def stream(*chunks):
    return [(None, piece) for piece in chunks]


def call(index, **function):
    return {"index": index, "function": function}


def openai():
    nothing = {"usage": None, "system_fingerprint": "fp_1", "service_tier": "default"}
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
    return stream(
        chunk({"role": "assistant", "content": "", "refusal": None}, **nothing),
        chunk({"content": "Grüße"}, obfuscation="x7", **nothing),
        chunk({"content": " \U0001f600 \"usage\":null"}, obfuscation="", **nothing),
        chunk({}, "stop", **nothing),
        usage_chunk({**USAGE, **details}, service_tier="default"),
    )


def openai_tools():
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    second = {"index": 1, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": ""}}
    return stream(
        chunk({"role": "assistant", "content": None, "tool_calls": [first]}),
        chunk({"tool_calls": [call(0, arguments='{"city":')]}),
        chunk({"tool_calls": [call(0, arguments=' "Köln"}')]}),
        chunk({"tool_calls": [second]}),
        chunk({"tool_calls": [call(1, arguments="{}")]}),
        chunk({}, "tool_calls"),
        usage_chunk(),
    )


def openai_choices():
    def piece(index, delta, reason=None):
        return {**chunk({}), "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

    return stream(
        piece(1, {"role": "assistant", "content": "b"}),
        piece(0, {"role": "assistant", "content": "a"}),
        piece(0, {}, "stop"),
        piece(1, {}, "length"),
        usage_chunk(),
    )


def azure():
    filtered = {"hate": {"filtered": False, "severity": "safe"}}
    prompt = {"prompt_index": 0, "content_filter_results": filtered}
    first = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [prompt]}
    said = chunk({"content": "Hi"})
    said["choices"][0]["content_filter_results"] = filtered
    offsets = chunk({})
    offsets["choices"][0]["content_filter_offsets"] = {"check_offset": 44, "start_offset": 44, "end_offset": 50}
    return stream(first, chunk({"role": "assistant", "content": ""}), said, offsets, chunk({}, "stop"), usage_chunk())


def mistral():
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True}
    reference = {"type": "reference", "reference_ids": [1, 2]}
    return stream(
        chunk({"role": "assistant", "content": [thought]}, p="abcd"),
        chunk({"content": [{"type": "text", "text": "Hi"}, reference]}, p="ab"),
        chunk({"content": "!", "tool_calls": None}, "stop", usage={**USAGE, "num_cached_tokens": 3}),
    )


def deepseek():
    hits = {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 3}
    return [
        (": keep-alive", None),
        *stream(
            chunk({"role": "assistant", "content": None, "reasoning_content": ""}),
            chunk({"content": None, "reasoning_content": "Hm"}),
            chunk({"content": "Hi", "reasoning_content": None}),
            chunk({"content": "", "reasoning_content": None}, "stop", usage={**USAGE, **hits}),
        ),
    ]


def groq():
    return stream(
        chunk({"role": "assistant", "content": "", "reasoning": "Hm"}, x_groq={"id": "req_1", "seed": 7}),
        chunk({"content": "Hi"}),
        chunk({}, "stop", x_groq={"id": "req_1", "usage": {**USAGE, "queue_time": 0.01, "total_time": 1e-3}}),
        usage_chunk({**USAGE, "queue_time": 0.01}),
    )


def moonshot():
    last = chunk({}, "stop")
    last["choices"][0]["usage"] = {**USAGE, "cached_tokens": 4}
    return stream(chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi"}), last)


def openrouter():
    detail = {"type": "reasoning.text", "text": "Hm", "format": "anthropic-claude-v1", "index": 0, "signature": None}
    cost = {"cost": 0.00012, "is_byok": False, "cost_details": {"upstream_inference_cost": None}}
    extra = {"provider": "Together", "native_finish_reason": None}

    def piece(delta, reason=None, native=None):
        made = chunk({"role": "assistant", **delta}, reason, provider="Together")
        made["choices"][0]["native_finish_reason"] = native
        return made

    return [
        (": OPENROUTER PROCESSING", None),
        (": OPENROUTER PROCESSING", None),
        *stream(
            piece({"content": "", "reasoning": "Hm", "reasoning_details": [detail]}),
            piece({"content": "Hi", "annotations": [{"type": "url_citation", "url_citation": {"url": "http://a"}}]}),
            piece({"content": ""}, "stop", "end_turn"),
        ),
        (None, usage_chunk({**USAGE, **cost}, **extra)),
    ]


def perplexity():
    more = {"citations": ["https://a.example"], "search_results": [{"title": "A", "url": "https://a.example"}]}

    def piece(delta, reason=None, usage=USAGE):
        made = chunk(delta, reason, usage=usage, **more)
        made["choices"][0]["message"] = {"role": "assistant", "content": "Hi there"}
        return made

    cost = {"search_context_size": "low", "num_search_queries": 1, "cost": {"total_cost": 0.005}}
    return stream(
        piece({"role": "assistant", "content": "Hi"}),
        piece({"role": "assistant", "content": " there"}),
        piece({"role": "assistant", "content": ""}, "stop", {**USAGE, **cost}),
    )


def gemini():
    one = {"id": "", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    made = {**one, "extra_content": {"google": {"thought_signature": "c2ln"}}}
    total = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 40}
    first = chunk({"role": "assistant", "tool_calls": [made]}, usage=total)
    last = chunk({"role": "assistant", "content": ""}, "stop", usage=total)
    for piece in (first, last):
        del piece["choices"][0]["logprobs"]
    return stream(first, last)


def vllm():
    continuous = [{"prompt_tokens": 11, "completion_tokens": n, "total_tokens": 11 + n} for n in range(4)]
    last = chunk({"content": ""}, "stop", usage=continuous[3])
    last["choices"][0].update(stop_reason=None, token_ids=None, matched_stop=128009)
    return stream(
        chunk({"role": "assistant", "content": "", "reasoning_content": None}, prompt_token_ids=None),
        chunk({"reasoning_content": "Hm", "reasoning": "Hm"}, usage=continuous[1]),
        chunk({"content": "Hi"}, usage=continuous[2]),
        last,
        usage_chunk(continuous[3]),
    )


def llama_cpp():
    timings = {"prompt_n": 11, "prompt_ms": 6.9, "predicted_per_second": 76.5, "cache_n": 0}
    progress = {"total": 11, "cache": 0, "processed": 8, "time_ms": 4}
    return stream(
        chunk({"role": "assistant", "content": None}, prompt_progress=progress),
        chunk({"content": "Hi"}),
        chunk({}, "stop"),
        usage_chunk(timings=timings),
    )


def ollama():
    return stream(
        chunk({"role": "assistant", "content": "", "reasoning": "Hm"}, system_fingerprint="fp_ollama"),
        chunk({"role": "assistant", "content": "Hi"}, system_fingerprint="fp_ollama"),
        chunk({"role": "assistant", "content": ""}, "stop", system_fingerprint="fp_ollama"),
        usage_chunk(system_fingerprint="fp_ollama"),
    )


OPENAI = [
    openai, openai_tools, openai_choices, azure, mistral, deepseek, groq, moonshot, openrouter, perplexity, gemini, vllm,
    llama_cpp, ollama,
]  # fmt: skip


def start(usage=None, **more):
    used = {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 1}
    lifetimes = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0}
    used = {**used, "cache_creation": lifetimes, "service_tier": "standard", **(usage or {})}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-2026", "content": []}
    message = {**message, "stop_reason": None, "stop_sequence": None, "usage": used, **more}
    return {"type": "message_start", "message": message}


def block(index, beginning, *deltas):
    yield {"type": "content_block_start", "index": index, "content_block": beginning}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def stop(reason="end_turn", usage=None, **more):
    delta = {"stop_reason": reason, "stop_sequence": None, **more}
    return {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9, **(usage or {})}}


def named(*events):
    return [(event["type"], event) for event in events]


def anthropic_text():
    text = [{"type": "text_delta", "text": text} for text in ("Grüße", " \U0001f600", "!")]
    ping = {"type": "ping"}
    return named(start(), ping, *block(0, {"type": "text", "text": ""}, *text), ping, stop())


def anthropic_thinking():
    thought = [{"type": "thinking_delta", "thinking": "Hm"}, {"type": "signature_delta", "signature": "c2ln"}]
    text = {"type": "text_delta", "text": "Hi"}
    return named(
        start(),
        *block(0, {"type": "thinking", "thinking": "", "signature": ""}, *thought),
        *block(1, {"type": "redacted_thinking", "data": "ZGF0YQ=="}),
        *block(2, {"type": "text", "text": ""}, text),
        stop(usage={"output_tokens_details": {"thinking_tokens": 4}}),
    )


def anthropic_tools():
    pieces = [{"type": "input_json_delta", "partial_json": text} for text in ("", '{"city": "K', 'öln"}')]
    return named(
        start(),
        *block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Let me see."}),
        *block(1, {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}, *pieces),
        *block(2, {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {}}),
        stop("tool_use"),
    )


def anthropic_search():
    query = {"type": "input_json_delta", "partial_json": '{"query":"weather"}'}
    found = {"type": "web_search_result", "url": "https://a.example", "title": "A", "encrypted_content": "ZQ=="}
    citation = {"type": "web_search_result_location", "url": "https://a.example", "cited_text": "20 °C", "title": "A"}
    return named(
        start(),
        *block(0, {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}, query),
        *block(1, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]}),
        *block(
            2,
            {"type": "text", "text": "", "citations": []},
            {"type": "text_delta", "text": "20 °C"},
            {"type": "citations_delta", "citation": {**citation, "encrypted_index": "aQ=="}},
        ),
        stop(usage={"server_tool_use": {"web_search_requests": 1}, "input_tokens": 2679}),
    )


def anthropic_deltas():
    used = {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 2}
    return named(
        start(container={"id": "c", "expires_at": "2026-01-01T00:00:00Z"}),
        *block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"}),
        stop(None, {"output_tokens": 4}),
        stop("stop_sequence", {**used, "output_tokens": 9}, stop_sequence="END"),
        {**stop(None, {"output_tokens": 9}), "context_management": {"applied_edits": []}},
    )


ANTHROPIC = [anthropic_text, anthropic_thinking, anthropic_tools, anthropic_search, anthropic_deltas]


def whole_openai(frames):
    """What a stream's provider says to who didn't ask for one."""
    chunks = [copy.deepcopy(data) for _, data in frames if data]
    answer = {**chunks[-1], "object": "chat.completion", "choices": []}
    messages = {}
    for piece in chunks:
        for choice in piece["choices"]:
            kept = messages.setdefault(choice["index"], {"index": choice["index"], "message": {"role": "assistant"}})
            kept["finish_reason"] = choice["finish_reason"] or kept.get("finish_reason")
            for key, value in choice["delta"].items():
                before = kept["message"].get(key)
                together = type(before) is type(value) and isinstance(value, (str, list)) and key != "role"
                kept["message"][key] = before + value if together else value if value is not None else before
    for kept in messages.values():
        calls = []
        for piece in kept["message"].get("tool_calls") or []:
            if "id" in piece:
                piece.pop("index", None)
                calls.append(piece)
            else:
                calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
        if calls:
            kept["message"]["tool_calls"] = calls
        kept["message"].setdefault("content", None)
    return {**answer, "choices": list(messages.values())}


def whole_anthropic(frames):
    message, inputs = {}, {}
    for _, event in frames:
        event = copy.deepcopy(event)
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            kept, delta = message["content"][event["index"]], event["delta"]
            if "partial_json" in delta:
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
            elif "citation" in delta:
                kept["citations"].append(delta["citation"])
            else:
                for key in {"text", "thinking", "signature"} & set(delta):
                    kept[key] += delta[key]
        elif event["type"] == "message_delta":
            message.update({key: value for key, value in event["delta"].items() if value is not None})
            message["usage"].update(event["usage"])
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text or "{}")
    return message
