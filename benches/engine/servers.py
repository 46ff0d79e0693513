"""The two servers as processes, our daemon and mlx_lm.server, and a streaming client that treats them alike."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 120


class Server(contextlib.AbstractContextManager):
    """A server on a free port of this machine, with a folder of its own that goes when it ends."""

    def __init__(self, models):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-engine-"))
        self.environment = {key: value for key, value in os.environ.items()
                            if not key.startswith(("HF_", "OPENAI_", "ANTHROPIC_", "LOGFIRE_", "MLX_MANAGER_"))}
        self.environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf")}
        self.models = models

    def __enter__(self):
        with open(self.folder / "output.txt", "wb") as output:
            self.process = subprocess.Popen(self.command(), cwd=self.folder, env=self.environment, stdout=output,
                                            stderr=subprocess.STDOUT)
        until = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                said = self.output()[-2000:]
                self.__exit__()
                raise SystemExit(f"{self.name} does not start: {said}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def output(self):
        return (self.folder / "output.txt").read_text(errors="replace")

    def get(self, path, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def cpu_seconds(self):
        """Of all its threads, kernel included."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


class Ours(Server):
    """The daemon. `models` are names and folders; the first is loaded at the start."""

    name = "mlx-manager"

    def __init__(self, models, binary, local=""):
        super().__init__(models)
        self.binary, self.port = pathlib.Path(binary).resolve(), None
        named = "".join(f'[[local.models]]\nname = "{name}"\npath = "{path}"\n' for name, path in models.items())
        (self.folder / "config.toml").write_text(f"""
[server]
listen = "127.0.0.1:0"
[log]
dir = "{self.folder}/logs"
[metrics.prometheus]
listen = "127.0.0.1:0"
[local]
models_dir = "{self.folder}/models"
default_model = "{next(iter(models))}"
{local}
{named}
[database]
url = "sqlite:{self.folder}/audit.db"
""")

    def command(self):
        return [self.binary, "serve", "--config", self.folder / "config.toml"]

    def is_ready(self):
        found = re.findall(r"is serving listen=\S*?:(\d+) metrics=\S*?:(\d+)", self.output())
        if not found:
            return False
        self.port, self.metrics_port = map(int, found[-1])
        return self.get("/ready")[0] == 200

    def metrics(self):
        """Every sample of the Prometheus page by its name with labels."""
        lines = self.get("/metrics", self.metrics_port)[1].splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


class Peer(Server):
    """mlx_lm.server with one model. The library that gives the daemon its BLAS is preloaded, so both have the same kernels."""

    name = "mlx_lm.server"

    def __init__(self, models, python, preload):
        super().__init__(models)
        self.python = python
        if preload:
            self.environment["LD_PRELOAD"] = str(preload)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]

    def command(self):
        folder = next(iter(self.models.values()))
        return [self.python, "-m", "mlx_lm", "server", "--model", folder, "--port", str(self.port), "--log-level", "WARNING"]

    def is_ready(self):
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False


class Answer:
    """A streamed answer: when it was asked for, when each piece of it came, and its words, each of which is a token."""

    def __init__(self):
        self.status, self.error, self.finish = None, None, None
        self.times, self.text = [], ""

    @property
    def words(self):
        return self.text.split()

    @property
    def ttft(self):
        return self.times[0] - self.begin

    @property
    def gaps(self):
        return [after - before for before, after in zip(self.times, self.times[1:])]

    @property
    def rate(self):
        return (len(self.words) - 1) / (self.times[-1] - self.times[0])


def open_stream(server, body, headers, timeout):
    """Sends a request and waits for the answer's head. Python's server, the peer's, has room for five new connections at
    once and resets others; those try again."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"} | headers)
            return connection, connection.getresponse()
        except ConnectionResetError:
            connection.close()
            if server.process.poll() is not None:
                raise
            time.sleep(0.01)


def ask(server, model, prompt, tokens, *, begun=None, cut_after=None, timeout=600, headers=None, **parameters):
    """Streams an answer. `begun` is called at each piece; `cut_after` closes the connection after so many pieces."""
    answer = Answer()
    body = {"model": model if server.name == "mlx-manager" else "default_model", "stream": True, "max_tokens": tokens,
            "messages": [{"role": "user", "content": prompt}], "temperature": 0} | parameters
    answer.begin = time.perf_counter()
    connection, response = open_stream(server, body, headers or {}, timeout)
    with contextlib.closing(connection):
        answer.status = response.status
        if response.status != 200:
            answer.error = response.read().decode(errors="replace")
            return answer
        if cut_after == 0:
            return answer
        for line in response:
            if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[5:])
            if "error" in event:
                answer.error = json.dumps(event)
                break
            for choice in event.get("choices", []):
                answer.finish = choice.get("finish_reason") or answer.finish
                piece = (choice.get("delta") or {}).get("content")
                if piece:
                    answer.times.append(time.perf_counter())
                    answer.text += piece
                    if begun:
                        begun()
                    if cut_after is not None and len(answer.times) >= cut_after:
                        return answer
    return answer


class Background:
    """A function on a thread of its own."""

    def __init__(self, call):
        self.value = self.error = None
        self.thread = threading.Thread(target=self.run, args=(call,))
        self.thread.start()

    def run(self, call):
        try:
            self.value = call()
        except BaseException as error:  # raised again by whoever asks for the result
            self.error = error

    def result(self):
        self.thread.join()
        if self.error:
            raise self.error
        return self.value


def together(calls):
    """Runs functions at once; gives what they return, or raises what one raised."""
    return [background.result() for background in [Background(call) for call in calls]]
