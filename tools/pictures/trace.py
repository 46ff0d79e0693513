"""Draws docs/trace.svg: the trace of one real request, as a collector received it.

Usage: python3 tools/pictures/trace.py [BINARY]   (default: target/release/mlx-manager, else target/debug/mlx-manager)
Needs: pip install opentelemetry-proto

It starts the daemon in a temporary folder with this script as its OTLP collector, sends a few chat completions to
the built-in model, and draws the last of them. Nothing in the picture is made up: names, times and attributes are the
spans' own.
"""

import gzip
import html
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
QUESTION = "Tell me a short story."
# What of each span is worth a line below its name, by the beginning of the name.
SHOWN = {
    "POST": ["http.response.status_code", "client.address"],
    "route": ["mlx_manager.route.rule", "mlx_manager.route.targets"],
    "chat": [
        "gen_ai.provider.name",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
    ],
    "prefill": ["mlx_manager.tokens", "mlx_manager.cached_tokens"],
    "decode": ["mlx_manager.tokens", "mlx_manager.tokens_per_second"],
    "INSERT": ["db.system.name", "mlx_manager.rows"],
}
WIDTH, LEFT, ROW, TOP = 960, 330, 46, 92
# Colours that can be read on white and on black.
COLOR = {"mlx-server": "#3b82f6", "mlx-manager": "#e0852b"}
GREY = "#858d98"


class Span:
    """A span with what the picture needs of it. Times are nanoseconds since 1970."""

    def __init__(self, span, service):
        self.id, self.parent, self.trace = span.span_id, span.parent_span_id, span.trace_id
        self.links = [link.span_id for link in span.links if link.trace_id]
        self.name, self.service = span.name, service
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes = {attribute.key: value_of(attribute.value) for attribute in span.attributes}


def value_of(value):
    if value.WhichOneof("value") == "array_value":
        return [value_of(item) for item in value.array_value.values]
    found = getattr(value, value.WhichOneof("value"), None)
    return round(found, 1) if isinstance(found, float) else found


def collect(spans):
    """Starts a collector on a free port that puts what it receives into `spans`; returns it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        spans.extend(Span(span, names["service.name"]) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def run(binary):
    """Runs the daemon, asks it three times, and returns all spans and the last request's trace id."""
    spans = []
    collector = collect(spans)
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.toml"), "w") as file:
            file.write(
                '[server]\nlisten = "127.0.0.1:0"\n[metrics.prometheus]\nenabled = false\n[[otlp]]\nname = "picture"\n'
                f'kind = "otlp"\nendpoint = "http://127.0.0.1:{collector.server_port}"\nsignals = ["traces"]\n'
            )
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("LOG", "MLX_MANAGER_"))}
        daemon = subprocess.Popen(
            [os.path.abspath(binary), "serve"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            address = next(filter(None, (re.search(r"is serving.* listen=(\S+)", line) for line in daemon.stderr)))[1]
            threading.Thread(target=daemon.stderr.read, daemon=True).start()
            wait_until_ready(address)
            for _ in range(3):
                trace = ask(address)
        finally:
            daemon.terminate()
            daemon.wait(60)
    return spans, trace


def wait_until_ready(address):
    for _ in range(300):
        try:
            return urllib.request.urlopen(f"http://{address}/ready").read()
        except urllib.error.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the daemon did not become ready")


def ask(address):
    body = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        response.read()
        return bytes.fromhex(response.headers["traceparent"].split("-")[1])


def rows_of(spans, trace):
    """The trace's spans in the order of a waterfall, each with its depth; spans that link to it come last."""
    own = [span for span in spans if span.trace == trace]
    ids = {span.id for span in own}

    def below(parent, depth):
        for span in sorted((span for span in own if span.parent == parent), key=lambda span: span.start):
            yield span, depth
            yield from below(span.id, depth + 1)

    roots = sorted((span for span in own if span.parent not in ids), key=lambda span: span.start)
    for root in roots:
        yield root, 0
        yield from below(root.id, 1)
    for span in spans:
        if span.trace != trace and ids & set(span.links):
            yield span, 0


def duration(nanoseconds):
    milliseconds = nanoseconds / 1e6
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def shown(span):
    for beginning, keys in SHOWN.items():
        if span.name.startswith(beginning):
            pairs = ((key, span.attributes.get(key)) for key in keys)
            return " · ".join(
                f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}"
                for key, value in pairs
                if value is not None
            )
    return ""


def draw(rows):
    start = min(span.start for span, _ in rows)
    total = max(span.end for span, _ in rows) - start
    scale = (WIDTH - LEFT - 90) / total
    height = TOP + ROW * len(rows) + 14
    out = []

    def text(x, y, content, style="", anchor="start"):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{html.escape(content)}</text>')

    grey = f'fill="{GREY}" font-size="12"'
    text(16, 30, f"One chat completion, {duration(total)}", f'fill="{GREY}" font-size="16" font-weight="600"')
    text(16, 50, f"trace {rows[0][0].trace.hex()}", grey)
    for index, (service, color) in enumerate(COLOR.items()):
        x = WIDTH - 250 + 120 * index
        out.append(f'<rect x="{x}" y="20" width="12" height="12" rx="2" fill="{color}"/>')
        text(x + 18, 30, service, grey)
    # The roundest step that makes at least four of them.
    step = max(base * 10**power for base in (1, 2, 5) for power in range(12) if base * 10**power <= total / 4)
    for time_passed in range(0, total + 1, step):
        x = LEFT + time_passed * scale
        # Beside the bars only, so that no line runs through the text between them.
        lines = "".join(f"M{x:.1f} {TOP + ROW * index - 2}v22" for index in range(len(rows)))
        out.append(f'<path d="{lines}" stroke="{GREY}" stroke-opacity=".35"/>')
        text(x, TOP - 18, f"{time_passed / 1e6:g} ms", grey, "middle")
    for index, (span, depth) in enumerate(rows):
        y = TOP + ROW * index
        color = COLOR.get(span.service, GREY)
        left, width = LEFT + (span.start - start) * scale, max((span.end - span.start) * scale, 2)
        text(16 + 18 * depth, y + 13, span.name, f'fill="{color}" font-size="14" font-weight="600"')
        out.append(f'<rect x="{left:.1f}" y="{y + 1}" width="{width:.1f}" height="16" rx="2" fill="{color}"/>')
        text(left + width + 6, y + 13, duration(span.end - span.start), grey)
        text(16 + 18 * depth, y + 31, shown(span), f'fill="{GREY}" font-size="11"')
    label = "Waterfall of one request's spans: " + ", ".join(span.name for span, _ in rows)
    font = "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'{head} role="img" aria-label="{html.escape(label)}" {font}>\n' + "\n".join(out) + "\n</svg>\n"


def main():
    candidates = sys.argv[1:] or [f"{ROOT}/target/release/mlx-manager", f"{ROOT}/target/debug/mlx-manager"]
    binary = next(filter(os.path.exists, candidates), None)
    if binary is None:
        raise SystemExit("there is no binary: run `make build` first")
    rows = list(rows_of(*run(binary)))
    if not rows:
        raise SystemExit("no span arrived")
    with open(f"{ROOT}/docs/trace.svg", "w") as file:
        file.write(draw(rows))


if __name__ == "__main__":
    main()
