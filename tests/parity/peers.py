"""The peers of the comparison, over real sockets: providers of both dialects, and an OTLP endpoint that stands for
Logfire."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE = 20  # seconds
WEATHER = {"city": "Paris"}
OPENAI_USAGE = {
    "prompt_tokens": 20, "completion_tokens": 6, "total_tokens": 26,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
ANTHROPIC_USAGE = {
    "input_tokens": 12, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 3, "output_tokens": 6,
    "service_tier": "standard",
}


class Handler(BaseHTTPRequestHandler):
    """One request; the subclass says how it is answered."""

    protocol_version = "HTTP/1.1"

    def body(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(handler, **state):
    """Starts a server on a free port and returns its URL. The handler sees `state` as attributes of `self.server`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


class Upstream(Handler):
    """A provider. The model's name says how it behaves: `MODELS` of the comparison."""

    def do_POST(self):
        request = json.loads(self.body())
        behaviour = self.server.behaviours[request["model"]]
        if behaviour == "slow":
            # Held until the test has seen what it waits for.
            self.server.release.wait(PATIENCE)
        if behaviour == "cut":
            self.close_connection = True
            self.connection.close()
        elif behaviour == "refuse":
            error = {"message": "try again later", "type": "rate_limit_error", "code": None, "param": None}
            self.answer(429, json.dumps({"type": "error", "error": error}).encode())
        elif self.path.endswith("/chat/completions"):
            self.openai(request, behaviour == "tool")
        else:
            self.anthropic(request, behaviour == "tool")

    def openai(self, request, tool):
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(WEATHER)}}
        reason = "tool_calls" if tool else "stop"
        base = {"id": "chatcmpl-1", "created": 1, "model": request["model"] + "-2024-08-06"}
        if not request.get("stream"):
            message = {"role": "assistant", "content": None if tool else "Hello there", "refusal": None}
            if tool:
                message["tool_calls"] = [call]
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
            answer = {**base, "object": "chat.completion", "choices": [choice], "usage": OPENAI_USAGE}
            return self.answer(200, json.dumps(answer).encode())
        arguments = call["function"]["arguments"]
        deltas = [{"role": "assistant", "content": None if tool else ""}]
        if tool:
            deltas.append({"tool_calls": [{"index": 0, **call, "function": {"name": "weather", "arguments": ""}}]})
            deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})
        else:
            deltas += [{"content": "Hello"}, {"content": " there"}]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        chunks.append({"choices": [], "usage": OPENAI_USAGE})
        frames = [json.dumps({**base, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        self.stream([f"data: {frame}\n\n" for frame in [*frames, "[DONE]"]])

    def anthropic(self, request, tool):
        usage = ANTHROPIC_USAGE
        block = {"type": "text", "text": "Hello there"}
        if tool:
            block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": WEATHER}
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": request["model"], "content": [block],
            "stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None, "usage": usage,
        }
        if not request.get("stream"):
            return self.answer(200, json.dumps(message).encode())
        start = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        events = [{"type": "message_start", "message": start}]
        if tool:
            partial = json.dumps(WEATHER)
            events.append({"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}})
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in (partial[:5], partial[5:])]
        else:
            events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            deltas = [{"type": "text_delta", "text": text} for text in ("Hello", " there")]
        events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": 0})
        end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": usage["output_tokens"]}})
        events.append({"type": "message_stop"})
        self.stream([f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events])

    def stream(self, frames):
        self.answer(200, "".join(frames).encode(), "text/event-stream")


class LogfireHandler(Handler):
    def do_GET(self):
        self.answer(200, json.dumps({"project_name": "parity", "project_url": "http://localhost"}).encode())

    def do_POST(self):
        body = self.body()
        if self.path == "/v1/traces":
            self.server.logfire.take(dict(self.headers), ExportTraceServiceRequest.FromString(body))
        self.answer(200, b"", "application/x-protobuf")


class Span:
    """A span as it arrived, its values as Python's own."""

    def __init__(self, resource, span):
        self.resource = values(resource.attributes)
        self.name = span.name
        self.kind = span.kind
        self.failed = span.status.code == 2
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.duration = span.end_time_unix_nano - span.start_time_unix_nano
        self.attributes = values(span.attributes)
        self.events = {event.name: values(event.attributes) for event in span.events}
        self.pending = self.attributes.get("logfire.span_type") == "pending_span"


class Logfire:
    """Takes traces and decodes them."""

    def __init__(self):
        self.lock = threading.Condition()
        self.spans = []
        self.headers = {}
        self.url = serve(LogfireHandler, logfire=self)

    def take(self, headers, request):
        with self.lock:
            self.headers = {name.lower(): value for name, value in headers.items()}
            for part in request.resource_spans:
                for scope in part.scope_spans:
                    self.spans += [Span(part.resource, span) for span in scope.spans]
            self.lock.notify_all()

    def mark(self):
        with self.lock:
            return len(self.spans)

    def since(self, mark):
        with self.lock:
            return self.spans[mark:]

    def wait(self, since, wanted, count=1):
        """The first `count` spans after a mark that are wanted."""
        deadline = time.monotonic() + PATIENCE
        with self.lock:
            while True:
                found = [span for span in self.spans[since:] if wanted(span)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or not self.lock.wait(left):
                    raise AssertionError(f"only {[span.name for span in self.spans[since:]]} arrived")


def values(attributes):
    result = {}
    for attribute in attributes:
        assert attribute.key not in result, f"{attribute.key} is there twice"
        result[attribute.key] = value(attribute.value)
    return result


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    return getattr(any_value, kind)
