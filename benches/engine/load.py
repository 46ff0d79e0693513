"""Random load on the daemon: many requests of all kinds, or an hour of them. Nothing is compared with a peer.

Usage: load.py --binary FILE --models FOLDER (--requests N | --minutes N) [--connections N] [--seed N]
--requests: that many over so many connections with random lengths, priorities, seeds and cancels; prints throughput, the
longest wait, and memory at each quarter. --minutes: a soak, with the demo model beside, seeds that must give the same tokens
again, and prompts that begin alike. Both end with the books: every request the client saw is a row of the audit and a count of
the metrics, nothing is still open, the parts of memory sum to what MLX holds, the daemon's memory without its models is what it
was before, and nobody was passed in the queue once old enough. Exit code 1 when any of it is wrong.
"""

import argparse
import bisect
import contextlib
import datetime
import itertools
import pathlib
import random
import sqlite3
import sys
import threading
import time

import servers
from bench import WORDS, quantile

PRIORITIES = ["interactive", "normal", "batch"]
# After so many seconds for each class that it is below the best, a request is passed by none that came later. What lies between
# the two times that are compared and the queue is less than the slack.
AGING_SECONDS, SLACK_SECONDS = 10, 2
# At 0.8 random weights hold 1,400 tokens for about as likely, of which a draw then tells the neighbours apart by the last bits
# of their sums, and these differ by who else is computed. At 0.2 they are four, as they are for a model that knows something,
# and of a few thousand answers drawn again one goes another way (one of 2,900 was seen). So many may, beside one in any case.
SHARP, APART = 0.2, 1 / 1000
# How much more memory than before the load there may be after it, without models, in bytes.
PLAY = 32e6
SETTLE_SECONDS = 30
# After 10 seconds without work the engine gives back what it had freed.
REST_SECONDS = 13


class Load:
    """The clients and what they saw. `tasks` are taken from until they end."""

    def __init__(self, server, seed, soak):
        self.server, self.soak, self.lock = server, soak, threading.Lock()
        self.random, self.seen, self.problems = random.Random(seed), [], []
        self.prefixes = [self.words(600) for _ in range(4)]
        # (prompt, seed) → the words that it gave first.
        self.answers, self.repeats, self.apart, self.drawn = {}, 0, 0, 0

    def words(self, count):
        return " ".join(self.random.choices(WORDS, k=count))

    def draw(self):
        """A request at random."""
        with self.lock:
            pick = self.random
            model = "demo" if self.soak and pick.random() < 0.15 else "bench"
            length = int(4 * 64 ** pick.random()) + 4
            # The demo model has smaller tokens than words, and a smaller context.
            text = self.words(length // 4 + 1 if model == "demo" else length)
            if model == "bench" and pick.random() < 0.25:
                text = f"{pick.choice(self.prefixes)} {text}"
            more = {"temperature": 0} if pick.random() < 0.4 else {"temperature": SHARP, "top_p": 0.9}
            more["seed"] = pick.randrange(1 << 30)
            tokens = int(2 * 32 ** pick.random())
            if self.answers and pick.random() < 0.1:
                model, text, tokens, more = pick.choice(list(self.answers))
                more = dict(more)
            cut = pick.randrange(4) if pick.random() < 0.15 else None
            priority, self.drawn = pick.choice(PRIORITIES), self.drawn + 1
            headers = {"x-mlx-manager-priority": priority, "x-request-id": f"{priority}-{self.drawn}"}
            return model, text, tokens, more, cut, headers

    def one(self):
        model, text, tokens, more, cut, headers = self.draw()
        begin = time.monotonic()
        try:
            answer = servers.ask(self.server, model, text, tokens, cut_after=cut, headers=headers, **more)
        except Exception as error:  # every kind of it is a finding
            return self.note(f"a request failed: {error!r}")
        if answer.status in (429, 503):
            self.seen.append((time.monotonic(), "refused", 0, 0.0))
            return time.sleep(0.05)
        if answer.status != 200 or answer.error:
            self.seen.append((time.monotonic(), "failed", 0, 0.0))
            return self.note(f"status {answer.status}: {answer.error}")
        if cut is not None:
            return self.seen.append((time.monotonic(), "cut", len(answer.words), 0.0))
        if answer.finish is None:
            return self.note(f"an answer has no end: {model}, {tokens} tokens")
        waited = answer.ttft if answer.times else time.monotonic() - begin
        self.seen.append((time.monotonic(), "whole", len(answer.words), waited))
        key = (model, text, tokens, tuple(sorted(more.items())))
        with self.lock:
            first = self.answers.get(key)
            self.repeats += first is not None
            if len(self.answers) < 200:
                self.answers.setdefault(key, answer.text)
        if first not in (None, answer.text):
            with self.lock:
                self.apart += 1
                may_be_chance = more["temperature"] > 0 and self.apart <= 1 + APART * self.repeats
            told = f"{tokens} tokens of {model} were others when asked for again with {more}"
            print(told, file=sys.stderr, flush=True) if may_be_chance else self.note(told)

    def note(self, problem):
        with self.lock:
            self.problems.append(problem)
            print(problem, file=sys.stderr, flush=True)

    def run(self, connections, go_on):
        def client():
            while go_on():
                self.one()

        servers.together([client] * connections)


def still_open(metrics):
    """Gauges that are zero when nothing is going on."""
    names = ("mlx_manager_queue_depth", "http_server_active_requests", 'mlx_manager_engine_memory_bytes{kind="kv_live"}')
    return {name: value for name, value in metrics.items() if name.startswith(names) and value}


def explained(metrics):
    """Bytes that the engine says it holds."""
    return total(metrics, "mlx_manager_engine_memory_bytes") or (
        total(metrics, "mlx_manager_model_memory_bytes") + total(metrics, "mlx_manager_kv_cache_bytes"))


def emptied(server, models):
    """The least RSS within the time that freed memory takes to go back to the system, once all models are unloaded."""
    for model in models:
        servers.ask(server, model, "w7 w8", 4, headers={"x-request-id": "normal-0"}, keep_alive=0)
    until, least = time.monotonic() + REST_SECONDS, float("inf")
    while time.monotonic() < until:
        least = min(least, server.rss_bytes())
        time.sleep(0.2)
    if held := explained(server.metrics()):
        raise SystemExit(f"unloaded models hold {held} bytes")
    return least


def misattributed(metrics, rss):
    """What is wrong with the memory's parts, which together are all that MLX holds."""
    parts = {name: value for name, value in metrics.items() if name.startswith("mlx_manager_engine_memory_bytes{")}
    negative = [name for name, value in parts.items() if value < 0]
    other = sum(value for name, value in parts.items() if 'kind="other"' in name)
    if negative or other > 0.1 * sum(parts.values()) or sum(parts.values()) > 1.2 * rss:
        return f"memory is attributed wrongly: {parts}, RSS {rss}"


def passed_over(queued):
    """Those that a later one passed though they were old enough, of (class, when it came, when it left the queue). One of the
    worst class passes by the queue alone; a better one may have taken the place of one that ran, which costs nobody his turn."""
    queued = sorted(queued, key=lambda one: one[1])
    passers = [one for one in queued if one[0] == PRIORITIES[-1]]
    came = [one[1] for one in passers]
    # The earliest time at which any of them left that came as late as this one or later.
    earliest = list(itertools.accumulate((one[2] for one in reversed(passers)), min))[::-1] + [float("inf")]
    bound = [AGING_SECONDS * PRIORITIES.index(one[0]) + SLACK_SECONDS for one in queued]
    return [one for one, age in zip(queued, bound)
            if earliest[bisect.bisect(came, one[1] + age)] < one[2] - SLACK_SECONDS]


def total(metrics, name):
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


def books(load, server):
    """Compares what clients saw with what the daemon wrote down, once it is at rest."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        metrics = server.metrics()
        with contextlib.closing(sqlite3.connect(f"file:{server.folder}/audit.db?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT count(*) FROM requests").fetchone()[0]
            left = database.execute("SELECT request_id, started_at, queue_ms FROM requests WHERE queue_ms IS NOT NULL").fetchall()
        counted = int(total(metrics, "mlx_manager_requests_total"))
        still = still_open(metrics)
        if (counted == rows and not still) or time.monotonic() > until:
            break
        time.sleep(0.2)
    if still:
        load.note(f"still open: {still}")
    if wrong := misattributed(metrics, server.rss_bytes()):
        load.note(wrong)
    times = [(name.partition("-")[0], datetime.datetime.fromisoformat(came).timestamp(), waited / 1000) for name, came, waited in left]
    if passed := passed_over([(kind, came, came + waited) for kind, came, waited in times]):
        load.note(f"passed by later ones though old enough: {passed[:5]} and {max(len(passed) - 5, 0)} more")
    load.longest_queue = max((waited for _, _, waited in times), default=0)
    if counted != rows or rows < len(load.seen):
        load.note(f"the client saw {len(load.seen)} requests, metrics count {counted}, the audit has {rows} rows")
    return metrics, rows


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    models = {"bench": arguments.models.resolve() / "f32"}
    if arguments.minutes:
        models["demo"] = "builtin:demo"
    with servers.Ours(models, arguments.binary) as server:
        load = Load(server, arguments.seed, soak=bool(arguments.minutes))
        before = emptied(server, models)
        begin, started, memory = time.monotonic(), [0], []
        share = (lambda: (time.monotonic() - begin) / 60 / arguments.minutes) if arguments.minutes else \
            (lambda: started[0] / arguments.requests)

        def go_on():
            with load.lock:
                done = share()
                if len(memory) < min(int(done * 4), 4):
                    memory.append((server.rss_bytes(), explained(server.metrics())))
                started[0] += 1
            return done < 1

        load.run(arguments.connections, go_on)
        seconds = time.monotonic() - begin
        metrics, rows = books(load, server)
        after = emptied(server, models)
    kinds = {kind: sum(seen[1] == kind for seen in load.seen) for kind in ("whole", "cut", "refused", "failed")}
    waits = sorted(seen[3] for seen in load.seen if seen[1] == "whole")
    words = sum(seen[2] for seen in load.seen)
    print(f"{len(load.seen)} requests in {seconds:.0f} s: {kinds}, {words / seconds:.1f} tok/s, {load.repeats} repeated, "
          f"{load.apart} of them otherwise")
    if waits:
        print(f"wait for the first token: p50 {quantile(waits, 0.5):.2f} s, p99 {quantile(waits, 0.99):.2f} s, longest {waits[-1]:.2f} s; "
              f"longest in the queue {load.longest_queue:.2f} s")
    print("RSS at each quarter, MB (of it explained): " + ", ".join(f"{rss / 1e6:.0f} ({held / 1e6:.0f})" for rss, held in memory) +
          f"; without models {before / 1e6:.0f} before, {after / 1e6:.0f} after")
    print(f"audit rows {rows}, counted {total(metrics, 'mlx_manager_requests_total'):.0f}")
    if after > before + PLAY:
        load.note(f"memory without models grew from {before:.0f} to {after:.0f} bytes")
    return 1 if load.problems else 0


if __name__ == "__main__":
    sys.exit(main())
