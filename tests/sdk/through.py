"""What an SDK reads of a provider, it reads through the daemon: the official SDKs before both, and answers odd to the byte.

Usage: through.py BINARY [CASES [SEED]], or through.py BINARY FILE for the cases in a file, as a failure names them
and as `kept.jsonl` keeps those that failed once, which are always run. Every case is an answer of `answers.py` made
odd by `odd.py`. Where the SDK reads it from the provider, it must read the same through the daemon, and a whole
answer must leave one audit row that says `ok`; where it raises, a clean end and one row are enough. A failure is
printed with the case it shrinks to.
"""

import collections
import concurrent.futures
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import warnings

import anthropic
import openai

import check
import odd
from odd import Literal
from provider import Provider

CASES, SEED = 400, 1
KEPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kept.jsonl")
WORKERS = 4
PATIENCE = 20
# Failures that are shrunk; of more the first cases tell enough.
SHRUNK = 8
CONFIG = """
[local]
default_model = ""
[cloud]
retries = 0
breaker = {{ failures = 1000000, open = "1 s" }}
[[providers]]
name = "one"
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
[[providers]]
name = "two"
kind = "anthropic"
base_url = "http://127.0.0.1:{port}"
[[routes]]
model = "openai-*"
targets = ["one"]
[[routes]]
model = "anthropic-*"
targets = ["two"]
[database]
url = "sqlite:audit.db"
"""
MESSAGES = [{"role": "user", "content": "hi"}]


def plain(value):
    """What an SDK made of JSON, as dicts and lists, whatever it thinks of the types."""
    if hasattr(value, "model_fields_set"):
        members = {**vars(value), **(value.model_extra or {})}
        # Which request it was, the daemon says in a header of its own.
        return {key: plain(member) for key, member in members.items() if key != "_request_id"}
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def same(one, other):
    # By text, since NaN is not itself.
    return repr(one) == repr(other)


class Failure(Exception):
    """What the daemon made another answer of."""


class Site:
    """The provider, the daemon before it, and clients of both."""

    def __init__(self, binary, folder):
        self.folder, self.numbers = folder, itertools.count()
        self.provider = Provider()
        self.daemon, url = check.start(binary, folder, CONFIG.format(port=self.provider.port))
        self.clients = {}
        for place, base in [("direct", f"http://127.0.0.1:{self.provider.port}"), ("through", url)]:
            more = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE}
            self.clients["openai", place] = openai.OpenAI(base_url=f"{base}/v1", **more)
            self.clients["anthropic", place] = anthropic.Anthropic(base_url=base, **more)

    def read(self, case, answer, arm, place):
        """What the SDK reads, and why it reads no more."""
        dialect = odd.DIALECT[case["seed"]]
        model = f"{dialect}-{next(self.numbers)}"
        self.provider.answers[model] = answer
        client, read = self.clients[dialect, place], []
        arguments = {"model": model, "messages": MESSAGES}
        create = client.chat.completions.create if dialect == "openai" else client.messages.create
        if dialect == "anthropic":
            arguments["max_tokens"] = 9
        elif arm in {"stream", "folded"}:
            arguments["stream_options"] = {"include_usage": True}
        try:
            if arm == "whole":
                read.append(plain(create(**arguments)))
            elif arm == "folded":
                streams = client.messages if dialect == "anthropic" else client.chat.completions
                with streams.stream(**arguments) as stream:
                    made = stream.get_final_message() if dialect == "anthropic" else stream.get_final_completion()
                    read.append(plain(made))
            else:
                for event in create(**arguments, stream=True):
                    read.append(plain(event))
        except Exception as error:
            return model, read, error
        finally:
            self.provider.answers.pop(model, None)
        return model, read, None

    def outcome(self, model):
        """The outcomes that the audit has of a model."""
        until = time.monotonic() + PATIENCE
        while True:
            with sqlite3.connect(f"file:{self.folder}/audit.db?mode=ro", uri=True, timeout=PATIENCE) as audit:
                rows = audit.execute("SELECT outcome, error_message FROM requests WHERE requested_model = ?", [model])
                found = rows.fetchall()
            if found or time.monotonic() > until:
                return found
            # Rows are written in batches.
            time.sleep(0.05)


def said_why(events):
    """Whether any event says why the model stopped."""
    for event in events:
        choices = event.get("choices") if isinstance(event, dict) else None
        places = [*(choices if isinstance(choices, list) else []), event.get("delta"), event]
        for place in places:
            for key in ("finish_reason", "stop_reason"):
                if isinstance(place, dict) and isinstance(place.get(key), str) and place[key]:
                    return True
    return False


def without_usage(events):
    """Without what the daemon asks for itself, and keeps from who didn't."""
    kept = []
    for event in events:
        if event.get("usage") is not None and not event.get("choices"):
            continue
        kept.append({key: value for key, value in event.items() if (key, value) != ("usage", None)})
    return kept


def difference(direct, through, place="event"):
    """The first place where they differ."""
    if type(direct) is type(through) and isinstance(direct, (dict, list)):
        if isinstance(direct, list):
            pairs = enumerate(itertools.zip_longest(direct, through, fillvalue=Literal("nothing")))
        else:
            keys = [*direct, *(key for key in through if key not in direct)]
            pairs = ((key, (direct.get(key, Literal("nothing")), through.get(key, Literal("nothing")))) for key in keys)
        found = (difference(one, other, f"{place}.{key}") for key, (one, other) in pairs)
        return next(filter(None, found), None)
    return None if same(direct, through) else f"{place}: {short(direct)} became {short(through)}"


def known(value):
    """Without the members that an SDK only adds where its types are strict."""
    if isinstance(value, dict):
        return {key: known(member) for key, member in value.items() if member is not None}
    return [known(item) for item in value] if isinstance(value, list) else value


def short(value):
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} … {text[-200:]}"


def compare(site, case, arm):
    answer = odd.make(case)
    proper = answer
    if case["whole"] and any(name == "content_type" for name, _ in case["mutations"]):
        # An SDK gives text of another type back as text, and the daemon says what it is.
        kept = [mutation for mutation in case["mutations"] if mutation[0] != "content_type"]
        proper = odd.make({**case, "mutations": kept})
    # Who asked for a stream and is answered whole by the provider gets a stream of it.
    replayed = arm == "replayed"
    _, direct, refused = site.read(case, proper, "whole" if replayed else arm, "direct")
    arm_through = "folded" if replayed and odd.DIALECT[case["seed"]] == "anthropic" else arm
    model, through, failed = site.read(case, answer, arm_through, "through")
    if replayed and not refused and not isinstance(failed, (openai.APIError, anthropic.APIError)):
        shaped = not failed and not {"missing", "other_types"} & {name for name, _ in case["mutations"]}
        try:
            direct, through = folded(direct), folded(through)
        except Exception:
            shaped = False
        if not shaped:
            # What isn't of its type may come in one piece, but not be folded of several.
            return model, "replayed, shapeless", "ok"
    if isinstance(failed, (openai.APITimeoutError, anthropic.APITimeoutError)):
        raise Failure("the daemon did not end")
    if isinstance(failed, (openai.APIConnectionError, anthropic.APIConnectionError)):
        raise Failure(f"the daemon hung up: {failed!r}")
    if arm == "unasked":
        direct, through = without_usage(direct), without_usage(through)
    if refused and case["whole"]:
        return model, f"{arm}, unread", None
    if refused:
        longest = min(len(direct), len(through))
        if found := difference(direct[:longest], through[:longest]):
            raise Failure(found)
        return model, f"{arm}, unread", None
    whole = case["whole"] or said_why(direct)
    if whole and failed:
        raise Failure(f"read directly and not through: {failed!r} {getattr(failed, 'body', '')}")
    if found := difference(direct, through):
        raise Failure(found)
    return model, arm if whole else f"{arm}, cut off", "ok" if whole else None


def folded(events):
    """The texts and calls of an answer by choice or block, whether it came in pieces or whole."""
    kept = {}

    def add(place, name, value):
        before = kept.get((place, name), "")
        kept[place, name] = before + value if isinstance(value, str) and isinstance(before, str) else value

    for event in events:
        for choice in event.get("choices") or []:
            said = choice.get("delta") or choice.get("message")
            for key, value in (said if isinstance(said, dict) else {}).items():
                calls = value if key == "tool_calls" and isinstance(value, list) else []
                for at, call in enumerate(calls):
                    add((choice["index"], call.get("index", at)), "call", repr(call["function"]))
                if not calls and value not in (None, ""):
                    add(choice["index"], key, known(value))
            add(choice["index"], "reason", choice.get("finish_reason"))
        for at, block in enumerate(event.get("content") or []):
            for key in {"text", "thinking", "signature", "data", "id", "name"} & set(block):
                add(at, key, block[key] or "")
            if "input" in block:
                add(at, "input", block["input"])
    return {place: value for place, value in kept.items() if value not in ("", None)}


def audit(site, model, expected):
    rows = site.outcome(model)
    if len(rows) != 1 or expected and rows[0][0] != expected:
        raise Failure(f"audit rows: {rows}")


def arms(case):
    if case["whole"]:
        return ["whole", "replayed"]
    if ["many_frames"] in ([name] for name, _ in case["mutations"]):
        # As slow to read as it is long, and no different in other ways of reading it.
        return ["stream"]
    return ["stream", "folded"] + ["unasked"] * (odd.DIALECT[case["seed"]] == "openai")


def run(site, case):
    """The arms that fail, and of the others which row each left and how its answer ended."""
    failures, rows = {}, {}
    for arm in arms(case):
        try:
            rows[arm] = compare(site, case, arm)
        except Failure as failure:
            failures[arm] = str(failure)
    return failures, rows


def fails(site, case, arm):
    try:
        model, _, expected = compare(site, case, arm)
        audit(site, model, expected)
    except Failure as failure:
        return str(failure)
    except Exception:
        # A case without its last frame may be none.
        pass
    return None


def shrink(site, case, arm):
    """The case with as few mutations and frames as still fail."""
    for key in ("mutations", "gone"):
        if key == "mutations":
            smaller = ({**case, key: [m for m in case[key] if m is not gone]} for gone in list(case[key]))
        else:
            smaller = ({**case, key: [*case[key], at]} for at in range(12))
        for candidate in smaller:
            mutations = [m for m in candidate["mutations"] if m in case["mutations"]]
            candidate = {**candidate, "mutations": mutations, "gone": sorted({*case["gone"], *candidate["gone"]})}
            if fails(site, candidate, arm):
                case = candidate
    return case


def report(site, number, case, failures, shrinks):
    for arm, what in failures.items():
        print(f"case {number}, {arm}: {json.dumps(case)}\n    {what}", file=sys.stderr)
        if shrinks:
            small = shrink(site, case, arm)
            sent = odd.make(small)["body"]
            print(f"    shrinks to {json.dumps(small)}\n    {fails(site, small, arm)}", file=sys.stderr)
            print(f"    sent: {sent[:1500]!r}{' …' if len(sent) > 1500 else ''}", file=sys.stderr)


def main(binary, cases):
    warnings.simplefilter("ignore")
    failed, ends = 0, collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(binary, folder)
        try:
            with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
                results = list(pool.map(lambda case: run(site, case), cases))
            for number, (case, (failures, rows)) in enumerate(zip(cases, results, strict=True)):
                for arm, (model, end, expected) in rows.items():
                    try:
                        audit(site, model, expected)
                        ends[end] += 1
                    except Failure as failure:
                        failures[arm] = str(failure)
                failed += bool(failures)
                report(site, number, case, failures, failed <= SHRUNK)
        finally:
            site.daemon.send_signal(signal.SIGTERM)
            if site.daemon.wait(60) != 0:
                failed += 1
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(f"{len(cases) - failed} answers read the same, {failed} failed ({told})")
    return 1 if failed else 0


def chosen(arguments):
    if arguments and os.path.exists(arguments[0]):
        with open(arguments[0]) as file:
            return [json.loads(line) for line in file]
    count, seed = [*map(int, arguments), *[CASES, SEED][len(arguments) :]]
    rng = random.Random(seed)
    # Every answer as it is, and every way to make it odd at least once.
    bare = [{"seed": seed, "whole": whole, "mutations": [], "gone": []} for seed in odd.SEEDS for whole in (False, True)]
    single = [
        {**odd.choose(rng), "whole": function in odd.SAYS and rng.random() < 0.3, "mutations": [[name, rng.randrange(99)]]}
        for name, function in odd.MUTATIONS.items()
    ]
    with open(KEPT) as file:
        bare += [json.loads(line) for line in file]
    return [*bare, *single, *(odd.choose(rng) for _ in range(count - len(bare) - len(single)))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], chosen(sys.argv[2:])))
