"""The daemon beside mlx_lm.server: the same random model, the same kernels, the same streaming client, turn about.

Usage: bench.py --binary FILE --models FOLDER [--peer PYTHON] [--preload LIBRARY] [--rounds N] [--short] [--json FILE]
--models is what model.py makes. --peer is a Python that has mlx-lm; without it only ours is measured. --preload is the BLAS
that the peer gets in place of its own. --short asks for fewer tokens, to see that all of it works. Greedy; each prompt is new
unless said otherwise; figures are medians of the rounds. The exit code tells whether all answers were whole, not whether
goals were met.
"""

import argparse
import functools
import json
import pathlib
import random
import statistics
import sys
import time

import servers
from servers import ask, together

WORDS = [f"w{number}" for number in range(5, 8192)]
# Tokens that the chat template adds.
MARKS = 2


def prompt(tokens, seed):
    """Words that no other seed begins with."""
    return " ".join(random.Random(seed).choices(WORDS, k=tokens - MARKS))


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Run:
    """One server with one model, through all measurements."""

    def __init__(self, server, model, seed, short):
        self.server, self.model, self.seed, self.short = server, model, seed, short
        self.figures = {}

    def fresh(self, tokens):
        self.seed += 1
        return prompt(tokens, self.seed)

    def call(self, text, tokens, **more):
        answer = ask(self.server, self.model, text, tokens, **more)
        if answer.error or len(answer.words) != tokens:
            raise SystemExit(f"{self.server.name} gave {len(answer.words)} of {tokens} tokens: {answer.error}")
        return answer

    def crowd(self, clients, prompt_tokens, tokens):
        tokens = tokens // 4 if self.short else tokens
        calls = [functools.partial(self.call, self.fresh(prompt_tokens), tokens) for _ in range(clients)]
        cpu, own = self.server.cpu_seconds(), time.process_time()
        answers = together(calls)
        cpu, own = self.server.cpu_seconds() - cpu, time.process_time() - own
        gaps = [gap * 1000 for answer in answers for gap in answer.gaps]
        total = clients * tokens
        figures = {"tok_s": sum(answer.rate for answer in answers), "gap_p50_ms": quantile(gaps, 0.5),
                   "gap_p99_ms": quantile(gaps, 0.99), "ttft_p50_s": statistics.median(a.ttft for a in answers),
                   "cpu_ms_per_token": cpu * 1000 / total, "client_cpu_ms_per_token": own * 1000 / total}
        self.figures |= {f"{clients}.{name}": value for name, value in figures.items()}

    def late(self):
        """Four streams decode; once each has a few tokens, a prompt of 2,000 arrives."""
        tokens, length = (24, 300) if self.short else (96, 2000)
        pieces, late, begin = [0] * 4, [], []

        def begun(index):
            pieces[index] += 1
            # Whoever is the last to reach 8 pieces starts the late prompt, on a thread of its own.
            if min(pieces) >= 8 and not begin:
                begin.append(time.perf_counter())
                late.append(servers.Background(lambda: self.call(self.fresh(length), 4)))

        calls = [functools.partial(self.call, self.fresh(128), tokens, begun=functools.partial(begun, index))
                 for index in range(4)]
        answers = together(calls)
        late = late[0].result()
        usual = [gap for a in answers for gap, at in zip(a.gaps, a.times[1:]) if at < begin[0] and gap > 0]
        after = [gap for a in answers for gap, at in zip(a.gaps, a.times[1:]) if at >= begin[0]]
        self.figures |= {"late.ttft_s": late.ttft, "late.longest_gap_s": max(after), "late.usual_gap_s": quantile(usual, 0.5)}

    def shared_prefix(self):
        tokens, length = (4, 200) if self.short else (8, 1000)
        prefix = self.fresh(length)
        self.call(f"{prefix} {self.fresh(24)}", tokens)
        answers = together([functools.partial(self.call, f"{prefix} {self.fresh(24)}", tokens) for _ in range(16)])
        self.figures["prefix.ttft_p50_s"] = statistics.median(answer.ttft for answer in answers)

    def measure(self, packed):
        self.call(self.fresh(32), 4)
        length, crowd = (32, (64, 32, 16)) if packed else (128, (64, 64, 32))
        for clients, tokens in zip((1, 4, 16), crowd):
            self.crowd(clients, length, tokens)
        if not packed:
            self.late()
            self.shared_prefix()
        self.figures["rss_mb"] = self.server.rss_bytes() / 1e6
        return self.figures


# What the table shows: kind of weights, figure, its name, and the goal as a limit to ours over the peer's; above 1 it is a
# lower limit.
ROWS = [("f32", "1.tok_s", "decode tok/s, 1 client", 1.2), ("f32", "4.tok_s", "decode tok/s, 4 clients", 1.3),
        ("f32", "16.tok_s", "decode tok/s, 16 clients", 1.3), ("f32", "1.gap_p99_ms", "gap p99 at 1, ms", None),
        ("f32", "4.gap_p99_ms", "gap p99 at 4, ms", None), ("f32", "16.gap_p50_ms", "gap p50 at 16, ms", None),
        ("f32", "16.gap_p99_ms", "gap p99 at 16, ms", 0.5), ("f32", "1.ttft_p50_s", "TTFT at 1, s", None),
        ("f32", "4.ttft_p50_s", "TTFT p50 at 4, s", None), ("f32", "16.ttft_p50_s", "TTFT p50 at 16, s", 0.5),
        ("f32", "16.cpu_ms_per_token", "CPU-ms per token at 16", "20 ms"),
        ("f32", "late.longest_gap_s", "late prompt: longest gap of the others, s", "3 gaps"),
        ("f32", "late.usual_gap_s", "late prompt: usual gap of the others, s", None),
        ("f32", "late.ttft_s", "late prompt: its TTFT, s", "at most 1.3"),
        ("f32", "prefix.ttft_p50_s", "TTFT p50 at 16 on a shared prefix of 1,000, s", 0.5),
        ("f32", "rss_mb", "RSS at the end, MB", None),
        ("q4", "1.tok_s", "4 bit: decode tok/s, 1 client", 1.8), ("q4", "4.tok_s", "4 bit: decode tok/s, 4 clients", 4),
        ("q4", "16.tok_s", "4 bit: decode tok/s, 16 clients", 8), ("q4", "rss_mb", "4 bit: RSS at the end, MB", None)]


def verdict(goal, key, ours, peer, figures):
    """The goal in words, and whether it is met; None where it can't be told."""
    if goal is None:
        return "", None
    if goal == "20 ms":
        return "≤ 20", ours <= 20
    if goal == "3 gaps":
        return "≤ 3 × their usual gap", ours <= 3 * figures["late.usual_gap_s"]
    if goal == "at most 1.3":
        return "≤ 1.3 ×", None if peer is None else ours <= 1.3 * peer
    told = f"≥ {goal} ×" if goal > 1 else f"≤ {goal} ×"
    return told, None if peer is None else (ours >= goal * peer if goal > 1 else ours <= goal * peer)


def table(medians):
    lines = ["| measure | mlx_lm.server | mlx-manager | ratio | goal | met |", "|---|---|---|---|---|---|"]
    for kind, key, name, goal in ROWS:
        ours, peer = (medians.get(f"{arm}.{kind}", {}) for arm in ("ours", "peer"))
        if key not in ours:
            continue
        value, other = ours[key], peer.get(key)
        told, met = verdict(goal, key, value, other, ours)
        shown = "–" if other is None else f"{other:.4g}"
        ratio = "–" if not other else f"{value / other:.2f}"
        lines.append(f"| {name} | {shown} | {value:.4g} | {ratio} | {told} | {'' if met is None else 'yes' if met else 'no'} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--peer")
    parser.add_argument("--preload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rounds = {}
    for number in range(arguments.rounds):
        for kind in ("f32", "q4"):
            models = {"bench": arguments.models.resolve() / kind}
            arms = [("ours", lambda: servers.Ours(models, arguments.binary))]
            if arguments.peer:
                arms.append(("peer", lambda: servers.Peer(models, arguments.peer, arguments.preload)))
            for arm, make in arms if number % 2 else reversed(arms):
                with make() as server:
                    figures = Run(server, "bench", 1000 * number + 17, arguments.short).measure(kind == "q4")
                rounds.setdefault(f"{arm}.{kind}", []).append(figures)
                told = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                print(f"round {number + 1}, {arm}, {kind}: {told}", file=sys.stderr, flush=True)
    medians = {arm: {key: statistics.median(figures[key] for figures in all_rounds) for key in all_rounds[0]}
               for arm, all_rounds in rounds.items()}
    print(table(medians))
    if arguments.json:
        arguments.json.write_text(json.dumps({"medians": medians, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
