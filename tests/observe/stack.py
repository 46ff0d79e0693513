"""A daemon under synthetic load, with simulated providers and collector, and a real Prometheus that scrapes it.

`Stack` starts all of it in a temporary folder on free ports and stops it again. Enter at `with Stack(...) as stack`.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
# The collector is away for this many seconds of each period, so that the spool has something to do.
AWAY, PERIOD = 5, 30
# Everything here is on this machine.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
WORDS = "The quick brown fox jumps over the lazy dog while the band plays on and nobody minds at all .".split()


class Peer(BaseHTTPRequestHandler):
    """A provider of either dialect, one that fails, and an OTLP collector, told apart by the path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    calls = 0
    lock = threading.Lock()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/otlp/"):
            return self.answer(503 if time.monotonic() % PERIOD < AWAY else 200, b"", "application/x-protobuf")
        with Peer.lock:
            Peer.calls += 1
            call = Peer.calls
        if self.path.startswith("/flaky/"):
            return self.refuse(500, "the simulated provider is broken")
        if call % 11 == 0:
            return self.refuse(429, "the simulated provider is busy", {"retry-after-ms": "20"})
        request = json.loads(body)
        dialect = self.anthropic if self.path.startswith("/anthropic/") else self.openai
        count = 4 + call % len(WORDS)
        time.sleep(0.01 + call % 7 / 100)
        dialect(request, [f"{word} " for word in WORDS[:count]], call)

    def openai(self, request, words, call):
        usage = {
            "prompt_tokens": 200 + call % 500,
            "completion_tokens": len(words) + 20,
            "total_tokens": 220 + call % 500 + len(words),
            "prompt_tokens_details": {"cached_tokens": 128},
            "completion_tokens_details": {"reasoning_tokens": 20},
        }
        limits = {
            "x-ratelimit-remaining-requests": str(1000 - call % 1000),
            "x-ratelimit-remaining-tokens": str(100000 - 7 * call % 100000),
        }
        base = {"id": f"chatcmpl-{call}", "created": int(time.time()), "model": request["model"]}

        def chunk(choices, **rest):
            return "data: " + json.dumps({**base, "object": "chat.completion.chunk", "choices": choices, **rest}) + "\n\n"

        if request.get("stream"):
            pieces = [chunk([{"index": 0, "delta": {"content": word}, "finish_reason": None}]) for word in words]
            pieces.append(chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
            pieces += [chunk([], usage=usage), "data: [DONE]\n\n"]
            return self.stream(pieces, limits)
        message = {"role": "assistant", "content": "".join(words)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer = {**base, "object": "chat.completion", "choices": choices, "usage": usage}
        self.answer(200, json.dumps(answer).encode(), "application/json", limits)

    def anthropic(self, request, words, call):
        usage = {
            "input_tokens": 100 + call % 300,
            "cache_read_input_tokens": 256,
            "cache_creation_input_tokens": 64 * (call % 2),
            "output_tokens": len(words) + 5,
        }
        limits = {
            "anthropic-ratelimit-requests-remaining": str(500 - call % 500),
            "anthropic-ratelimit-tokens-remaining": str(50000 - 5 * call % 50000),
        }
        message = {"id": f"msg_{call}", "type": "message", "role": "assistant", "model": request["model"]}
        if request.get("stream"):
            start = {**message, "content": [], "stop_reason": None, "usage": usage}
            events = [{"type": "message_start", "message": start}]
            events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            for word in words:
                delta = {"type": "text_delta", "text": word}
                events.append({"type": "content_block_delta", "index": 0, "delta": delta})
            events.append({"type": "content_block_stop", "index": 0})
            final = {"output_tokens": usage["output_tokens"]}
            events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": final})
            events.append({"type": "message_stop"})
            pieces = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
            return self.stream(pieces, limits)
        content = [{"type": "text", "text": "".join(words)}]
        answer = {**message, "content": content, "stop_reason": "end_turn", "usage": usage}
        self.answer(200, json.dumps(answer).encode(), "application/json", limits)

    def stream(self, pieces, headers):
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", "transfer-encoding": "chunked", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in pieces:
                time.sleep(0.004)
                data = piece.encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            # Its caller's caller went away.
            self.close_connection = True

    def refuse(self, status, message, headers=None):
        body = json.dumps({"type": "error", "error": {"type": "simulated", "message": message}}).encode()
        self.answer(status, body, "application/json", headers)

    def answer(self, status, body, content_type, headers=None):
        self.send_response(status)
        for name, value in {"content-type": content_type, "content-length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


CONFIG = """
[server]
listen = "127.0.0.1:0"
drain_timeout = "5 s"

[metrics.prometheus]
listen = "127.0.0.1:0"

[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "PEER/otlp"
signals = ["traces", "metrics", "logs"]
spool = { dir = "spool", size = "20 MB" }

[[providers]]
name = "openai"
kind = "openai"
base_url = "PEER/openai/v1"

[[providers]]
name = "anthropic"
kind = "anthropic"
base_url = "PEER/anthropic"

[[providers]]
name = "flaky"
kind = "openai"
base_url = "PEER/flaky/v1"
retries = 1
breaker = { failures = 5, open = "3 s" }

[[routes]]
model = "assistant"
targets = ["flaky", "openai/gpt-4o-mini"]

[[routes]]
model = "unlucky"
targets = ["flaky"]

[[routes]]
model = "gpt-*"
targets = ["openai"]

[[routes]]
model = "claude-*"
targets = ["anthropic"]
"""

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
QUESTIONS = ["What is 23 + 14?", "What is the capital of France?", "Tell me a short story."]


def local(path, stream, question):
    return path, {"model": "demo", "stream": stream, "max_tokens": 40, "messages": messages(question)}


def cloud(path, model, stream):
    return path, {"model": model, "stream": stream, "max_tokens": 100, "messages": messages(QUESTIONS[0])}


def messages(question):
    return [{"role": "user", "content": question}]


# What each worker sends, over and over. Two workers keep the local engine's queue from being empty all the time.
LOADS = {
    "local": [local(CHAT, True, QUESTIONS[0]), local(CHAT, False, QUESTIONS[1]), local(MESSAGES, True, QUESTIONS[2])],
    "local too": [local(MESSAGES, False, QUESTIONS[0]), local(CHAT, True, QUESTIONS[2])],
    "openai": [cloud(CHAT, "gpt-4o", True), cloud(CHAT, "gpt-4o", False), cloud(CHAT, "gpt-4o-mini", True)],
    "anthropic": [cloud(MESSAGES, "claude-sonnet-4-5", True), cloud(MESSAGES, "claude-haiku-4-5", False)],
    "assistant": [cloud(CHAT, "assistant", False), cloud(CHAT, "assistant", True)],
    "unlucky": [cloud(CHAT, "unlucky", True)],
    "mistakes": [
        cloud(CHAT, "no-such-model", False),
        (CHAT, {"model": "demo", "messages": "not a list"}),
        (MESSAGES, {"model": "gpt-4o", "max_tokens": 9, "messages": messages("the wrong API")}),
    ],
    "impatient": [cloud(CHAT, "gpt-4o", True)],
}
PAUSE = {"unlucky": 0.7, "mistakes": 0.4, "impatient": 0.5}


class Stack:
    """Everything at once. `sent` counts the inference requests that went out."""

    def __init__(self, binary, prometheus, scrape_interval="1s"):
        self.binary, self.prometheus, self.scrape_interval = os.path.abspath(binary), prometheus, scrape_interval
        self.stopping = threading.Event()
        self.processes, self.workers, self.sent, self.lock = [], [], 0, threading.Lock()

    def __enter__(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="mlx-manager-observe-")
        self.folder = self.temporary.name
        try:
            self.peer = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
            threading.Thread(target=self.peer.serve_forever, daemon=True).start()
            self.start_daemon()
            self.start_prometheus()
            if not self.becomes_ready(f"{self.api}/ready", self.processes[0]):
                raise SystemExit("the daemon ended")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop_load()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if hasattr(self, "peer"):
            self.peer.shutdown()
            self.peer.server_close()
        self.temporary.cleanup()

    def start_daemon(self):
        with open(f"{self.folder}/config.toml", "w") as file:
            file.write(CONFIG.replace("PEER", f"http://127.0.0.1:{self.peer.server_port}"))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("LOG", "MLX_MANAGER_"))}
        # A session of its own: ctrl-C is for this script, which then stops the others in order.
        daemon = subprocess.Popen(
            [self.binary, "serve"], cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )
        self.processes.append(daemon)
        said = []
        for line in daemon.stderr:
            said.append(line)
            found = re.search(r"is serving.* listen=(\S+) metrics=(\S+)", line)
            if found:
                break
        else:
            raise SystemExit("the daemon did not start:\n" + "".join(said))
        self.api, self.metrics_address = f"http://{found[1]}", found[2]
        self.metrics = f"http://{self.metrics_address}/metrics"
        # Whatever it says from now on must not fill the pipe.
        threading.Thread(target=daemon.stderr.read, daemon=True).start()

    def start_prometheus(self):
        with open(f"{ROOT}/dashboards/prometheus.yml") as file:
            config = file.read()
        for committed, actual in [
            ("127.0.0.1:9464", self.metrics_address),
            ("15s", self.scrape_interval),
            ("alerts.yml", f"{ROOT}/dashboards/alerts.yml"),
        ]:
            assert committed in config, f"dashboards/prometheus.yml has no {committed}"
            config = config.replace(committed, actual)
        with open(f"{self.folder}/prometheus.yml", "w") as file:
            file.write(config)
        # Prometheus can't be told to take a free port, and one that is free now may be taken when it starts.
        for _ in range(5):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            self.query_url = f"http://{address}"
            with open(f"{self.folder}/prometheus.log", "w") as log:
                process = subprocess.Popen(
                    [
                        f"{self.prometheus}/prometheus", f"--config.file={self.folder}/prometheus.yml",
                        f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address={address}",
                    ],
                    stdout=log, stderr=log, start_new_session=True,
                )
            self.processes.append(process)
            if self.becomes_ready(f"{self.query_url}/-/ready", process):
                return
            self.processes.remove(process)
        raise SystemExit(f"Prometheus did not start:\n{self.log()}")

    def becomes_ready(self, url, process, patience=120):
        """Whether it does, before it ends."""
        deadline = time.monotonic() + patience
        while process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=10):
                    return True
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{url} did not become ready: {error}\n{self.log()}")
                time.sleep(0.1)
        return False

    def log(self):
        path = f"{self.folder}/prometheus.log"
        if not os.path.exists(path):
            return ""
        with open(path) as file:
            return "".join(file.readlines()[-20:])

    def start_load(self):
        for name, requests in LOADS.items():
            worker = threading.Thread(target=self.work, args=(name, requests), daemon=True)
            worker.start()
            self.workers.append(worker)

    def stop_load(self):
        self.stopping.set()
        for worker in self.workers:
            worker.join(120)

    def work(self, name, requests):
        host = urllib.parse.urlsplit(self.api).netloc
        turn = 0
        while not self.stopping.wait(PAUSE.get(name, 0.05)):
            path, body = requests[turn % len(requests)]
            turn += 1
            connection = http.client.HTTPConnection(host, timeout=120)
            try:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
                with self.lock:
                    self.sent += 1
                response = connection.getresponse()
                # The impatient one leaves after the first bytes of a stream.
                response.read(10 if name == "impatient" else None)
            except OSError:
                if not self.stopping.is_set():
                    raise
            finally:
                connection.close()

    def query(self, expression):
        """The vector that a query gives right now: a list of (labels, value)."""
        answer = self.ask("query", query=expression)
        if answer["resultType"] == "scalar":
            return [({}, float(answer["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["result"]]

    def query_range(self, expression, start, end, step):
        """Lines over time: a list of (labels, [(time, value)])."""
        answer = self.ask("query_range", query=expression, start=start, end=end, step=step)
        return [
            (series["metric"], [(at, float(value)) for at, value in series["values"]]) for series in answer["result"]
        ]

    def ask(self, what, **parameters):
        url = f"{self.query_url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters.get('query', what)}: {json.load(error)['error']}") from None


def resolved(expression, rate="15s"):
    """A panel's query with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", rate).replace("$job", "mlx-manager").replace("$instance", ".*")


def queries():
    """Every query of every panel, as the dashboards' source has them."""
    with open(f"{ROOT}/tests/observe/queries.json") as file:
        return json.load(file)


def binary():
    """The daemon: the release, which `make observe` has just brought up to date, else what there is."""
    candidates = [f"{ROOT}/target/{profile}/mlx-manager" for profile in ("release", "debug")]
    target = os.environ.get("CARGO_TARGET_DIR")
    if target:
        candidates = [os.path.join(ROOT, target, profile, "mlx-manager") for profile in ("release", "debug")]
    built = [path for path in candidates if os.path.exists(path)]
    if not built:
        raise SystemExit("there is no binary: run `make build` first")
    return built[0]


def prometheus():
    """The folder of Prometheus' binaries."""
    found = subprocess.run([f"{ROOT}/tests/observe/prometheus.sh"], stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        raise SystemExit(found.returncode)
    return found.stdout.strip().splitlines()[-1]
