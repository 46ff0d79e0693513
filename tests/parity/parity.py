"""What Logfire's own SDK and the daemon send for the same calls, attribute by attribute.

Usage: parity.py BINARY [--write]. The official OpenAI and Anthropic clients, instrumented by the official `logfire`
package, call a simulated provider; the same clients, uninstrumented, make the same calls through the daemon. Both send
their traces to one endpoint that stands for Logfire. Fails when the daemon lacks an attribute that the SDK sends, or
has another value, unless `REASONS` says why; and when docs/logfire.md says something else than what was measured.
"""

import contextlib
import difflib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import warnings

import anthropic
import logfire
import openai

from peers import Logfire, Upstream, serve

TOKEN = "pylf_v1_us_paritytoken"
DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/logfire.md")

# A provider's behaviour by model. The names are real, so that the calls have a price.
MODELS = {
    "gpt-4o": "well", "gpt-4o-mini": "tool", "gpt-4": "refuse", "gpt-3.5-turbo": "cut", "gpt-4-turbo": "slow",
    "claude-3-5-haiku-latest": "well", "claude-sonnet-4-0": "tool", "claude-opus-4-0": "refuse",
}

QUESTION = [{"role": "user", "content": "Say hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "The weather of a city", "parameters": SCHEMA}
CONVERSATION = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
    {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
]
OPENAI_TOOLS = {"messages": CONVERSATION, "tools": [{"type": "function", "function": FUNCTION}]}
ANTHROPIC_TOOLS = {
    "system": "Be brief",
    "tools": [{"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}],
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_0", "name": "weather", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_0", "content": "sunny"}]},
    ],
}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "frequency_penalty": 0.25, "presence_penalty": 0.5}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}

# Name, dialect, arguments of the official client's `create`.
CALLS = [
    ("OpenAI, whole", "openai", {"model": "gpt-4o", "messages": QUESTION, "max_tokens": 50, "stop": ["END"], **SAMPLING}),
    ("OpenAI, streamed", "openai", {"model": "gpt-4o", "messages": QUESTION, **STREAM}),
    ("OpenAI, tool call", "openai", {"model": "gpt-4o-mini", **OPENAI_TOOLS}),
    ("OpenAI, tool call, streamed", "openai", {"model": "gpt-4o-mini", **OPENAI_TOOLS, **STREAM}),
    ("OpenAI, refused", "openai", {"model": "gpt-4", "messages": QUESTION}),
    ("OpenAI, connection lost", "openai", {"model": "gpt-3.5-turbo", "messages": QUESTION}),
    ("Anthropic, whole", "anthropic", {
        "model": "claude-3-5-haiku-latest", "messages": QUESTION, "max_tokens": 50, "stop_sequences": ["END"]}),
    ("Anthropic, streamed", "anthropic", {
        "model": "claude-3-5-haiku-latest", "messages": QUESTION, "max_tokens": 50, "stream": True}),
    ("Anthropic, tool call", "anthropic", {"model": "claude-sonnet-4-0", "max_tokens": 50, **ANTHROPIC_TOOLS}),
    ("Anthropic, tool call, streamed", "anthropic", {
        "model": "claude-sonnet-4-0", "max_tokens": 50, "stream": True, **ANTHROPIC_TOOLS}),
    ("Anthropic, refused", "anthropic", {"model": "claude-opus-4-0", "messages": QUESTION, "max_tokens": 50}),
]
SLOW = {"model": "gpt-4-turbo", "messages": QUESTION}

# Why the daemon lacks an attribute or says something else. A reason that isn't needed any more is an error too.
REASONS = {
    "anthropic.message.stop_reason": "of the Anthropic client's own tracing; `gen_ai.response.finish_reasons` says it in the conventions' words",
    "anthropic.response.service_tier": "of the Anthropic client's own tracing; `gen_ai.usage.raw` holds it",
    "async": "whether the Python client is an asynchronous one",
    "code.filepath": "the line of the Python program that calls; a gateway's callers are other programs",
    "code.function": "as above",
    "code.lineno": "as above",
    "duration": "of the log record that ends a stream; here one span lasts as long as the stream",
    "logfire.json_schema": "names the attributes that hold JSON; the SDK lists the others too, with nothing to say of them",
    "gen_ai.request.stop_sequences": "an array, as the conventions want it; the SDK writes its JSON text",
    "gen_ai.response.finish_reasons": "an array, as the conventions want it; the SDK writes its JSON text",
    "gen_ai.response.model": "the model that answered; the SDK repeats the request's for a stream",
    "pending gen_ai.response.model": "no model has answered yet",
    "gen_ai.response.time_to_first_chunk": "the same measure of another moment",
    "response_data": "one shape for all; the SDK adds empty fields, and for Anthropic's streams has a chunk count",
    "event exception.type": "the error's kind, a closed set; the SDK names a Python class",
    "event exception.message": "says what the daemon knows; a provider's own words may quote the prompt",
    "event exception.stacktrace": "the error and its causes; the SDK's is that of the Python program",
    "logfire.exception.fingerprint": "of the error's kind and the provider; the SDK hashes the Python stack",
    "resource logfire.version": "the version of Logfire's Python SDK",
}
# What depends on where and when it runs is there on both sides, and its value is no matter.
ELSEWHERE = re.compile(r"^resource |^pending ")
# The conventions' words for Anthropic's.
WORDS = {"end_turn": "stop", "tool_use": "tool_calls"}


def reason(name):
    return REASONS.get(name) or REASONS.get(name.removeprefix("pending "))


def daemon_config(upstream, endpoint, capture):
    return f"""
[server]
listen = "127.0.0.1:0"
[metrics.prometheus]
listen = "127.0.0.1:0"
[traces]
capture_content = {str(capture).lower()}
[cloud]
retries = 0
breaker = {{ failures = 100, open = "1 s" }}
[[otlp]]
name = "logfire"
kind = "logfire"
endpoint = "{endpoint}"
token = "{TOKEN}"
signals = ["traces"]
[[providers]]
name = "openai"
kind = "openai"
base_url = "{upstream}/v1"
[[providers]]
name = "anthropic"
kind = "anthropic"
base_url = "{upstream}"
[[routes]]
model = "gpt-*"
targets = ["openai"]
[[routes]]
model = "claude-*"
targets = ["anthropic"]
"""


@contextlib.contextmanager
def daemon(binary, upstream, endpoint, capture):
    """A running daemon's URL."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.toml"), "w") as file:
            file.write(daemon_config(upstream, endpoint, capture))
        process = subprocess.Popen([os.path.abspath(binary), "serve"], cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stderr:
                if found := re.search(r"mlx-manager is serving.*listen=\"?([\d.:]+)", line):
                    break
            else:
                raise SystemExit("the daemon did not start")
            # Whatever it says from now on must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield f"http://{found[1]}"
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise SystemExit("the daemon did not end well")


def clients(url):
    options = {"api_key": "none", "max_retries": 0, "timeout": 60}
    return {
        "openai": openai.OpenAI(base_url=f"{url}/v1", **options),
        "anthropic": anthropic.Anthropic(base_url=url, **options),
    }


def call(client, dialect, arguments):
    create = client.chat.completions.create if dialect == "openai" else client.messages.create
    try:
        answer = create(**arguments)
        if arguments.get("stream"):
            for _ in answer:
                pass
    except (openai.APIError, anthropic.APIError):
        pass


def whole(endpoint, mark, chat):
    """A call's spans: the one that stands for it, its attempts, and the request's own."""
    spans = [span for span in endpoint.since(mark) if span.trace == chat.trace and not span.pending]
    attempts = [span for span in spans if span.parent == chat.id]
    server = endpoint.wait(mark, lambda span: span.id == chat.parent)
    return [chat, *attempts, *server]


def facts(spans):
    """All that spans say, as one flat table. The first one to say a thing is believed."""
    table = {}
    for span in spans:
        said = {"span kind": span.kind, "span status": "error" if span.failed else "unset", **span.attributes}
        for name, attributes in span.events.items():
            said |= {f"event {key}": value for key, value in attributes.items()}
        # Not every machine has an id, and this table is the same on all.
        said |= {f"resource {key}": value for key, value in span.resource.items() if key != "host.id"}
        table = {**said, **table}
    return table


def measure(clients, endpoint, spans_of):
    """For each call the facts of its spans: `spans_of(mark, streamed)` waits for them."""
    table = {}
    for name, dialect, arguments in CALLS:
        mark = endpoint.mark()
        call(clients[dialect], dialect, arguments)
        table[name] = facts(spans_of(mark, arguments.get("stream")))
    return table


def measure_pending(client, endpoint, release, wanted):
    """The facts of the pending span of a call that takes its time, and of the span itself."""
    release.clear()
    mark = endpoint.mark()
    thread = threading.Thread(target=call, args=(client, "openai", SLOW))
    thread.start()
    (pending,) = endpoint.wait(mark, lambda span: span.pending and wanted(span))
    release.set()
    thread.join()
    (real,) = endpoint.wait(mark, lambda span: not span.pending and wanted(span))
    assert pending.parent == real.id and pending.id != real.id, "a pending span is the child of its span"
    assert pending.attributes["logfire.pending_parent_id"] == (real.parent or "0" * 16)
    assert pending.duration == 0
    return {f"pending {key}": value for key, value in facts([pending]).items() if not ELSEWHERE.match(key)}


def measure_sdk(upstream, endpoint, release):
    """What Logfire's own instrumentation sends. All versions of its attributes at once, to miss none."""
    logfire.configure(
        token=TOKEN, advanced=logfire.AdvancedOptions(base_url=endpoint.url), service_name="parity",
        service_version="1", environment="development", console=False, inspect_arguments=False,
    )
    instrumented = clients(upstream)
    logfire.instrument_openai(instrumented["openai"], version=[1, 2])
    logfire.instrument_anthropic(instrumented["anthropic"], version=[1, 2])

    def spans_of(mark, streamed):
        # A stream has a span that ends with the headers and a log record that ends with the stream; the Anthropic
        # client may add a span of its own.
        logfire.force_flush()
        spans = endpoint.wait(mark, lambda span: not span.pending, 2 if streamed else 1)
        order = {"span": 0, "log": 1}
        return sorted(spans, key=lambda span: order.get(span.attributes.get("logfire.span_type"), 2))

    table = measure(instrumented, endpoint, spans_of)
    headers = endpoint.headers
    table["slow"] = measure_pending(instrumented["openai"], endpoint, release, lambda _: True)
    logfire.shutdown()
    return table, headers


def measure_daemon(binary, upstream, endpoint, release, capture):
    """What the daemon sends of the span that stands for the call at the provider."""
    chat = lambda span: span.name.startswith("chat ")
    with daemon(binary, upstream, endpoint.url, capture) as url:
        plain = clients(url)

        def spans_of(mark, _):
            (span,) = endpoint.wait(mark, lambda span: chat(span) and not span.pending)
            return whole(endpoint, mark, span)

        table = measure(plain, endpoint, spans_of)
        headers = endpoint.headers
        table["slow"] = measure_pending(plain["openai"], endpoint, release, chat)
    return table, headers


def kind_of(value):
    kinds = {bool: "boolean", int: "integer", float: "double", list: "array", bytes: "bytes"}
    if isinstance(value, str):
        return "JSON" if parsed(value) is not value else "string"
    return kinds[type(value)]


def parsed(value):
    """JSON texts as what they say."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return in_words(json.loads(value))
    return value


def in_words(value):
    if isinstance(value, list):
        return [in_words(item) for item in value]
    if isinstance(value, dict):
        return {name: in_words(item) for name, item in value.items()}
    return WORDS.get(value, value) if isinstance(value, str) else value


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-9 * abs(one)
    return parsed(one) == parsed(other)


def column(table, name):
    """How many calls say it, and as what."""
    said = [facts[name] for facts in table.values() if name in facts]
    return f"{'/'.join(sorted({kind_of(value) for value in said}))}, {len(said)}" if said else "-"


def compare(sdk, ours):
    """Per attribute: the calls in which ours lacks it, and those in which it says something else."""
    lacking, differing = {}, {}
    for scenario, facts in sdk.items():
        for name, value in facts.items():
            if name not in ours[scenario]:
                lacking.setdefault(name, []).append(scenario)
            elif not ELSEWHERE.match(name) and not same(value, ours[scenario][name]):
                differing.setdefault(name, []).append((scenario, value, ours[scenario][name]))
            elif not ELSEWHERE.match(name) and kind_of(value) != kind_of(ours[scenario][name]):
                differing.setdefault(name, []).append((scenario, value, ours[scenario][name]))
    return lacking, differing


def page(sdk, ours, bare):
    names = sorted({name for facts in sdk.values() for name in facts}, key=lambda name: (bool(ELSEWHERE.match(name)), name))
    more = sorted({name for facts in ours.values() for name in facts} - set(names))
    lacking, differing = compare(sdk, ours)
    rows = []
    for name in names:
        if name in lacking:
            verdict = f"not sent: {reason(name) or 'MISSING'}"
        elif name in differing:
            verdict = f"differs: {reason(name) or 'DIFFERS'}"
        else:
            verdict = "there" if ELSEWHERE.match(name) else "same"
        rows.append(f"| `{name}` | {column(sdk, name)} | {column(ours, name)} | {column(bare, name)} | {verdict} |")
    own = [f"| `{name}` | {column(ours, name)} | {column(bare, name)} |" for name in more]
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("logfire", "openai", "anthropic"))
    calls = "\n".join(f"- {name}" for name, _, _ in CALLS)
    return f"""# What Logfire gets

This page is measured and written by `tests/parity/run.sh --write`; without `--write`, and in `make test`, the same run
fails when it finds something else than what stands here.

Logfire's own Python SDK instruments the official clients ({versions}),
which call simulated providers. The same clients make the same calls through mlx-manager, which calls the same
providers. Both send their traces to one endpoint that stands for Logfire. Compared are all spans and log records that the SDK sends for a call with those of mlx-manager for
it: the call itself (`chat …`), which has all but the `http.*` and `url.*` attributes, its attempt, and the request.

{calls}
- a slow call, for its pending span

A cell holds an attribute's type and in how many of the {len(CALLS) + 1} calls it is sent. *same*: the value is the same in each of them,
JSON compared as what it says, and Anthropic's reasons to stop with the conventions' words for them. *there*: it is sent,
and its value is each side's own.

| attribute | Logfire's SDK | mlx-manager, `capture_content = true` | `capture_content = false` | |
|---|---|---|---|---|
{chr(10).join(rows)}

Only mlx-manager sends these, and the spans of the route, the audit row and the local engine's phases:

| attribute | `capture_content = true` | `capture_content = false` |
|---|---|---|
{chr(10).join(own)}
"""


def check(sdk, ours, bare, headers):
    """Everything that is wrong, in words."""
    lacking, differing = compare(sdk, ours)
    wrong = [f"the daemon lacks {name} in {calls}" for name, calls in lacking.items() if not reason(name)]
    for name, cases in differing.items():
        if not reason(name):
            wrong += [f"{name} in {scenario!r}: the SDK says {theirs!r}, the daemon {own!r}" for scenario, theirs, own in cases]
    wrong += [f"the reason for {name} isn't needed any more" for name in REASONS if name not in lacking and name not in differing]
    for secret in ("Say hello", "Hello there", "sunny", "Paris"):
        wrong += [f"{secret!r} is in {name!r} without capture_content" for name, facts in bare.items() if secret in str(facts)]
    theirs, own = headers
    for name in ("authorization", "content-type", "content-encoding"):
        if theirs[name] != own[name]:
            wrong.append(f"the header {name}: {theirs[name]!r} and {own[name]!r}")
    return wrong


def main(binary, write):
    # Old models have a price and a date on which they end.
    warnings.simplefilter("ignore")
    release = threading.Event()
    upstream = serve(Upstream, behaviours=MODELS, release=release)
    endpoint = Logfire()
    sdk, sdk_headers = measure_sdk(upstream, endpoint, release)
    ours, own_headers = measure_daemon(binary, upstream, endpoint, release, True)
    bare, _ = measure_daemon(binary, upstream, endpoint, release, False)
    text = page(sdk, ours, bare)
    wrong = check(sdk, ours, bare, (sdk_headers, own_headers))
    if write:
        with open(DOCS, "w") as file:
            file.write(text)
    else:
        with open(DOCS) as file:
            committed = file.read()
        wrong += difflib.unified_diff(committed.splitlines(), text.splitlines(), "docs/logfire.md", "measured", lineterm="")
    print("\n".join(wrong) or f"{len(CALLS) + 1} calls compared, nothing is missing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--write" in sys.argv[2:]))
