"""The official OpenAI and Anthropic SDKs against a running daemon with the built-in model.

Usage: check.py BINARY. Starts the daemon in a temporary folder on free ports, runs every function whose name begins
with `check_`, and ends with the plain line "N passed, N failed".
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback

import anthropic
import openai

QUESTION = [{"role": "user", "content": "What is 23 + 14?"}]
ANSWER = "23 + 14 = 37."
# The Anthropic SDK has no parameter for it any more; the API still takes it.
GREEDY = {"temperature": 0}
CONFIG = """
[server]
listen = "127.0.0.1:0"
[metrics.prometheus]
listen = "127.0.0.1:0"
"""


def weather_of_the_goldens():
    """The tool as the model was trained on it, from the goldens, so that the wording is not kept twice."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "../goldens/engine/demo/answers.json")) as file:
        for question in json.load(file):
            for tool in question.get("tools", []):
                if tool["function"]["name"] == "get_weather" and not question["enable_thinking"]:
                    return question["messages"], tool
    raise AssertionError("no golden calls get_weather")


def check_openai_answer(client, _):
    completion = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert completion.choices[0].message.content == ANSWER, completion
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def check_openai_stream(client, _):
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWER, text
    assert chunks[-1].usage.completion_tokens > 5, chunks[-1]


def check_openai_stream_without_usage(client, _):
    chunks = list(client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True))
    assert all(chunk.usage is None for chunk in chunks)


def check_openai_reasoning(client, _):
    completion = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )
    message = completion.choices[0].message
    assert "Paris" in message.content and message.reasoning_content, message


def check_openai_tools(client, _):
    messages, tool = weather_of_the_goldens()
    completion = client.chat.completions.create(model="demo", messages=messages, tools=[tool], temperature=0)
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls", completion
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather" and "city" in json.loads(call.function.arguments)
    with client.chat.completions.stream(model="demo", messages=messages, tools=[tool], temperature=0) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments


def check_openai_limits(client, _):
    completion = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=3)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 3
    completion = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stop=[" ="])
    assert completion.choices[0].message.content == "23 + 14", completion


def check_openai_errors(client, _):
    for arguments, error in [
        ({"model": "nobody"}, openai.NotFoundError),
        ({"model": "demo", "n": 2}, openai.BadRequestError),
        ({"model": "demo", "temperature": 9}, openai.BadRequestError),
        ({"model": "demo", "messages": [{"role": "user", "content": "word " * 9000}]}, openai.BadRequestError),
    ]:
        try:
            client.chat.completions.create(**{"messages": QUESTION, **arguments})
        except error as caught:
            assert caught.request_id and caught.body["message"], caught
        else:
            raise AssertionError(f"{arguments} was accepted")


def check_openai_models(client, _):
    assert "demo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("demo").id == "demo"


def prompt_tokens(usage):
    """Anthropic counts what came from a cache beside the rest."""
    return usage.input_tokens + usage.cache_read_input_tokens


def check_anthropic_answer(_, client):
    message = client.messages.create(model="demo", max_tokens=64, messages=QUESTION, extra_body=GREEDY)
    assert message.content[0].text == ANSWER, message
    assert message.stop_reason == "end_turn" and prompt_tokens(message.usage) > 5


def check_anthropic_stream(_, client):
    with client.messages.stream(model="demo", max_tokens=64, messages=QUESTION, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == ANSWER, text
    assert message.usage.output_tokens > 5 and prompt_tokens(message.usage) > 5, message


def check_anthropic_tools(_, client):
    messages, tool = weather_of_the_goldens()
    function = tool["function"]
    tools = [{"name": function["name"], "description": function["description"], "input_schema": function["parameters"]}]
    with client.messages.stream(model="demo", max_tokens=64, messages=messages, tools=tools, extra_body=GREEDY) as stream:
        message = stream.get_final_message()
    call = message.content[-1]
    assert message.stop_reason == "tool_use" and call.name == "get_weather" and "city" in call.input, message


def check_anthropic_errors(_, client):
    try:
        client.messages.create(model="nobody", max_tokens=5, messages=QUESTION)
    except anthropic.NotFoundError as caught:
        assert caught.body["type"] == "error", caught.body
    else:
        raise AssertionError("an unknown model was accepted")
    try:
        client.messages.create(model="demo", max_tokens=0, messages=QUESTION)
    except anthropic.BadRequestError:
        pass
    else:
        raise AssertionError("max_tokens = 0 was accepted")


def start(binary, folder, config=""):
    with open(os.path.join(folder, "config.toml"), "w") as file:
        file.write(CONFIG + config)
    daemon = subprocess.Popen([os.path.abspath(binary), "serve"], cwd=folder, stderr=subprocess.PIPE, text=True)
    for line in daemon.stderr:
        found = re.search(r"mlx-manager is serving.*listen=\"?(\S+?)\"?(\s|$)", line)
        if found:
            # Whatever it says from now on must not fill the pipe.
            threading.Thread(target=lambda: daemon.stderr.read(), daemon=True).start()
            return daemon, f"http://{found[1]}"
    raise SystemExit("the daemon did not start")


def main(binary):
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        daemon, url = start(binary, folder)
        try:
            clients = (
                openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60),
                anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60),
            )
            for name, check in sorted(globals().items()):
                if not name.startswith("check_"):
                    continue
                try:
                    check(*clients)
                    passed += 1
                except Exception:
                    failed += 1
                    print(f"{name} failed:", file=sys.stderr)
                    traceback.print_exc()
        finally:
            daemon.send_signal(signal.SIGTERM)
            if daemon.wait(60) != 0:
                failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
