"""Goldens of the demo model: how its conversations are rendered and tokenized, what mlx-lm answers, and a sample of
questions that it answers exactly right.
"""

import json
import pathlib
import random
import sys
from importlib.metadata import version

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.utils import load
from transformers import AutoTokenizer

import reference

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "assets" / "demo-model"
sys.path.insert(0, str(ROOT / "tools" / "demo-model"))
import corpus  # noqa: E402
import prepare  # noqa: E402

MAX_TOKENS = 220
ANSWERS_SEED = 20
# How many right answers of each kind to keep: half of them after thinking.
ANSWERS = {"arithmetic": 4, "capital": 2, "order": 2, "listing": 2, "repeat": 2, "spelling": 2, "as_json": 2, "fact": 2,
           "tool_call": 4, "tool_result": 2}
# A first choice that leads by less (in logits) could flip by rounding.
LEAST_LEAD = 0.02
# A tool whose description would come out differently through an HTML-escaping or ASCII-only tojson.
NOTE = corpus.tool("send_message", "Send a <b>message</b> & say \"it's café time\"", name="string", text="string")
ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 412, "b": 77}}}
# The same call as it travels over HTTP: arguments are a string, and the call has an id.
ADD_WIRE = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 412, "b": 77}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"result": 489}'}

CONVERSATIONS = [
    {"name": "system", "messages": [{"role": "system", "content": "Answer briefly."},
                                    corpus.user("What is the capital of France?")], "enable_thinking": False},
    {"name": "switch-unset", "messages": [corpus.user("What is 23 + 14?")]},
    {"name": "thinking", "messages": [corpus.user("What is 23 + 14?")], "enable_thinking": True},
    {"name": "many-turns", "messages": [
        corpus.user("Hello!"), corpus.assistant("Hello! How can I help you today?"),
        corpus.user("Spell the word lantern."), corpus.assistant("l-a-n-t-e-r-n", reasoning_content="The word is lantern."),
        corpus.user("Which day comes after Monday?")], "enable_thinking": False},
    {"name": "tools", "messages": [{"role": "system", "content": "You are a helpful assistant."},
                                   corpus.user("What is the weather in Paris?")],
     "tools": [corpus.TOOLS["get_weather"], corpus.TOOLS["add"]], "enable_thinking": False},
    {"name": "tools-escapes", "messages": [corpus.user("Send Anna the message: red fox")], "tools": [NOTE],
     "enable_thinking": False},
    {"name": "tools-thinking", "messages": [corpus.user("What time is it in Oslo?")],
     "tools": [corpus.TOOLS["get_time"]], "enable_thinking": True},
    {"name": "tool-result", "messages": [corpus.user("Add 412 and 77."), corpus.assistant("", tool_calls=[ADD]), RESULT],
     "tools": [corpus.TOOLS["add"]], "enable_thinking": False},
    {"name": "tool-result-wire", "messages": [corpus.user("Add 412 and 77."),
                                              {"role": "assistant", "content": None, "tool_calls": [ADD_WIRE]}, RESULT],
     "tools": [corpus.TOOLS["add"]], "enable_thinking": False},
    {"name": "two-calls-and-text", "messages": [
        corpus.user("Add 412 and 77."), corpus.assistant("One moment.", tool_calls=[ADD, ADD]), RESULT, RESULT,
        corpus.assistant("The result is 489."), corpus.user("Thanks!")], "tools": [corpus.TOOLS["add"]],
     "enable_thinking": False},
    {"name": "story", "messages": [corpus.user("Tell me a story about a fox.")], "enable_thinking": False},
    {"name": "not-ascii", "messages": [corpus.user("Say café – 日本 🙂 <b>&amp;</b>\n\n  two  spaces.")],
     "enable_thinking": False},
]


def render(tokenizer, conversation):
    switches = {k: conversation[k] for k in ("enable_thinking",) if k in conversation}
    prompt = tokenizer.apply_chat_template(conversation["messages"], tools=conversation.get("tools"), tokenize=False,
                                           add_generation_prompt=True, **switches)
    return prompt, tokenizer.encode(prompt, add_special_tokens=False)


def answer(model, tokenizer, ids):
    """The ids before the end-of-turn token, their text, and why generation ended."""
    out, reason = [], None
    for step in stream_generate(model, tokenizer, prompt=ids, max_tokens=MAX_TOKENS):
        reason = step.finish_reason
        if step.token not in tokenizer.eos_token_ids:
            out.append(step.token)
    return out, tokenizer.decode(out, skip_special_tokens=False), reason


def least_lead(model, ids, out):
    """The smallest lead of a first choice over the second, the end-of-turn token included."""
    same, lead = reference.greedy(model, ids, len(out) + 1)
    if same[:-1] != out:
        sys.exit("two runs of the same prompt differ")
    return lead


def parsed(text):
    """What a client must see of an answer: reasoning, content and tool calls, each on its own."""
    seen = {"content": text}
    if text.startswith("<think>\n"):
        reasoning, _, rest = text.removeprefix("<think>\n").partition("\n</think>\n\n")
        seen = {"reasoning": reasoning, "content": rest}
    if "<tool_call>" in seen["content"]:
        content, *calls = seen["content"].split("<tool_call>\n")
        calls = [json.loads(call.partition("\n</tool_call>")[0]) for call in calls]
        seen |= {"content": content.strip(), "tool_calls": calls}
    return seen


def on_the_wire(messages):
    """Messages as clients send them: every call has an id, and its arguments are a JSON string."""
    out = []
    for message in json.loads(json.dumps(messages)):
        for i, call in enumerate(message.get("tool_calls", [])):
            call["id"] = f"call_{i}"
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if message["role"] == "tool":
            message["tool_call_id"] = "call_0"
        out.append(message)
    return out


def questions():
    """Endless fresh questions (kind, conversation with the right answer last), always the same ones."""
    r = random.Random(ANSWERS_SEED)
    plain = [make for make, _ in corpus.PLAIN if make.__name__ in ANSWERS]
    while True:
        make = r.choice(plain + [None])
        if make:
            kind = make.__name__
            ask, text, thought = make(r)
            messages, tools = [corpus.user(ask), corpus.assistant(text)], None
        else:
            messages, tools, thought = corpus.tool_case(r)
            kind = "tool_call" if len(messages) == 2 else "tool_result"
            if kind == "tool_result":
                thought = "I have the result of the tool."
        for thinking in (False, True):
            last = messages[-1] | ({"reasoning_content": thought} if thinking else {})
            yield (kind, thinking), {"messages": [*messages[:-1], last], "tools": tools, "thinking": thinking}


def answers(model, tokenizer):
    template, seen, kept, asked = prepare.renderer(), set(), [], 0
    wanted = {(kind, thinking): n // 2 for kind, n in ANSWERS.items() for thinking in (False, True)}
    for kind, conversation in questions():
        if not any(wanted.values()):
            break
        # A question is asked once, with or without thinking.
        if not wanted[kind] or conversation["messages"][0]["content"] in seen:
            continue
        seen.add(conversation["messages"][0]["content"])
        prompt, completion = prepare.split(template, conversation)
        expected = completion.removesuffix("<|im_end|>")
        case = {"kind": kind[0], "messages": on_the_wire(conversation["messages"][:-1]),
                "enable_thinking": conversation["thinking"], "expected_text": expected, "expected": parsed(expected)}
        if conversation["tools"]:
            case["tools"] = conversation["tools"]
        asked += 1
        rendered, ids = render(tokenizer, case)
        if rendered != prompt:
            sys.exit(f"the wire form renders differently: {rendered!r} and {prompt!r}")
        got, text, _ = answer(model, tokenizer, ids)
        if text == expected and least_lead(model, ids, got) >= LEAST_LEAD:
            kept.append(case)
            wanted[kind] -= 1
    return kept, asked


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(str(MODEL))
    template_tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    f32, _ = load(str(MODEL))
    f32.set_dtype(mx.float32)
    cases = []
    for conversation in CONVERSATIONS:
        prompt, ids = render(template_tokenizer, conversation)
        greedy_ids, text, reason = answer(model, tokenizer, ids)
        if answer(f32, tokenizer, ids)[0] != greedy_ids:
            sys.exit(f"{conversation['name']}: the stored type and float32 disagree")
        if (lead := least_lead(model, ids, greedy_ids)) < LEAST_LEAD:
            sys.exit(f"{conversation['name']}: a choice leads by {lead} only; change the conversation")
        cases.append({**conversation, "prompt": prompt, "prompt_ids": ids, "greedy_ids": greedy_ids, "greedy_text": text,
                      "finish_reason": reason})
    head = {"mlx_lm": version("mlx-lm"), "transformers": version("transformers"), "dtype": "float32",
            "max_tokens": MAX_TOKENS, "eos_token_ids": sorted(tokenizer.eos_token_ids)}
    lines = ",\n".join("    " + json.dumps(case, ensure_ascii=False) for case in cases)
    opening = json.dumps(head, indent=2).removesuffix("\n}")
    (folder / "golden.json").write_text(f'{opening},\n  "conversations": [\n{lines}\n  ]\n}}\n')
    kept, asked = answers(model, tokenizer)
    (folder / "answers.json").write_text("[\n" + ",\n".join("  " + json.dumps(c, ensure_ascii=False) for c in kept) + "\n]\n")
    print(f"demo: {len(cases)} conversations; {len(kept)} right answers out of {asked} asked")
