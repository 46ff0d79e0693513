"""Makes an answer odd in ways that clients read: one function a way, all of them seeded, and the bytes that come of it.

`make` turns a case (which answer, which mutations, by which seeds) into what the provider sends, to the byte.
"""

import copy
import gzip
import json
import random
import re

import answers

SEEDS = {function.__name__: function for function in answers.OPENAI + answers.ANTHROPIC}
DIALECT = {**{f.__name__: "openai" for f in answers.OPENAI}, **{f.__name__: "anthropic" for f in answers.ANTHROPIC}}
# What a client's accumulators and the daemon alike take an answer by; without them it is none.
CARRIERS = {"choices", "content", "error"}


class Literal(str):
    """A value that is written as it is, such as a number that JSON doesn't know."""


class Pairs(list):
    """An object by its members, of which two may have the same key."""


def write(value, ascii_only, gap=""):
    """JSON of a value, with `gap` around its punctuation."""

    def text(value):
        try:
            made = json.dumps(value, ensure_ascii=ascii_only)
            made.encode()
            return made
        except UnicodeEncodeError:
            return json.dumps(value)

    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        between = f"{gap},{gap}"
        members = (
            f"{key if isinstance(key, Literal) else text(key)}{gap}:{gap}{write(member, ascii_only, gap)}"
            for key, member in value
        )
        return "{" + gap + between.join(members) + gap + "}"
    if isinstance(value, list):
        return "[" + f"{gap},{gap}".join(write(item, ascii_only, gap) for item in value) + "]"
    return text(value)


def odd_value(rng):
    deep = Literal("[" * 200 + "]" * 200)
    odd = [None, True, False, 0, -1, 7, 1.5, "7", "", "text", "\ud83d", [], {}, [None], {"a": [1, {"b": None}]}, 10**40]
    odd += [Literal(text) for text in ("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1E2", "9" * 400)]
    return copy.deepcopy(rng.choice([*odd, deep, "\u2028\x0b\x85", "\\u0000", "\0"]))


def objects(value):
    """All objects within a value that can be changed."""
    if isinstance(value, dict):
        yield value
        for member in list(value.values()):
            yield from objects(member)
    elif isinstance(value, list) and not isinstance(value, Pairs):
        for item in value:
            yield from objects(item)


class Draft:
    """An answer that isn't bytes yet."""

    def __init__(self, seed, whole):
        self.dialect, self.whole = DIALECT[seed], whole
        frames = copy.deepcopy(SEEDS[seed]())
        if whole:
            frames = [frame for frame in frames if frame[1] is not None]
            make_whole = answers.whole_openai if self.dialect == "openai" else answers.whole_anthropic
            frames = [(None, make_whole(frames))]
        self.frames = [{"event": event, "data": data, "before": [], "after": []} for event, data in frames]
        done = (None, "[DONE]") if self.dialect == "openai" else ("message_stop", {"type": "message_stop"})
        self.done = [] if whole else [{"event": done[0], "data": done[1], "before": [], "after": []}]
        self.end = lambda rng: "\n"
        self.space, self.gap, self.ascii_only, self.many_lines, self.flipped = " ", "", False, False, False
        self.first = self.last = b""
        self.last_blank = True
        self.framing, self.gzip, self.pieces = "chunked", False, "frames"
        self.headers = [("content-type", "application/json" if whole else "text/event-stream; charset=utf-8")]

    def some(self, rng):
        """Some of the frames that other mutations left objects in, at least one if there is any."""
        spoken = [frame for frame in self.frames if isinstance(frame["data"], dict)]
        return [frame for frame in spoken if rng.random() < 0.6] or spoken[:1]

    def objects(self, rng):
        found = [found for frame in self.some(rng) for found in objects(frame["data"])]
        return rng.sample(found, min(len(found), rng.randint(1, 4)))

    def insert(self, rng, event, data):
        self.frames.insert(rng.randint(0, len(self.frames)), {"event": event, "data": data, "before": [], "after": []})


# Of the stream's lines.


def crlf(draft, rng):
    draft.end = lambda rng: "\r\n"


def bare_returns(draft, rng):
    draft.end = lambda rng: "\r"


def mixed_ends(draft, rng):
    draft.end = lambda rng: rng.choice(["\n", "\r\n", "\r"])


def no_space(draft, rng):
    draft.space = ""


def many_lines(draft, rng):
    draft.many_lines = True


def flipped(draft, rng):
    draft.flipped = True


def comments(draft, rng):
    for frame in draft.frames:
        frame[rng.choice(["before", "after"])].append(rng.choice([":", ": note", ":data: {}", ": \u00e4 \u2028 x"]))
    draft.insert(rng, ": a comment of its own", None)


def blanks(draft, rng):
    for _ in range(rng.randint(1, 4)):
        draft.insert(rng, "", None)


def empty_data(draft, rng):
    draft.insert(rng, rng.choice([None, "ping", "x"]), rng.choice(["", " "]))


def line_fields(draft, rng):
    for frame in draft.frames:
        frame["before"].append(rng.choice(["id: 7", "id", "retry: 100", "retry: x", "foo: bar", "foo", "datax: 1"]))


def byte_order_mark(draft, rng):
    draft.first = b"\xef\xbb\xbf" + draft.first


def leading_blanks(draft, rng):
    draft.first += rng.choice([b"\n\n\n", b"\r\n\r\n", b" \n", b"\n" * 3000])


def no_last_blank(draft, rng):
    draft.last_blank = False


# Of the stream's end.


def no_done(draft, rng):
    draft.done = []


def done_twice(draft, rng):
    draft.done = draft.done * 2


def other_done(draft, rng):
    openai = draft.dialect == "openai"
    event, data = ("message_stop", {"type": "message_stop"}) if openai else (rng.choice([None, "done"]), "[DONE]")
    made = {"event": event, "data": data, "before": [], "after": []}
    draft.done = rng.choice([[made], [made, *draft.done], [*draft.done, made]])


def padded_done(draft, rng):
    for frame in draft.done:
        if frame["data"] == "[DONE]":
            frame["data"] = rng.choice(["[DONE] ", " [DONE]", "[DONE]x", "[DONE] {}"])


def after_done(draft, rng):
    late = copy.deepcopy(rng.choice(draft.frames))
    draft.done = [*draft.done, late]


def unfinished_tail(draft, rng):
    draft.last = rng.choice([b": bye", b"data: ", b"event: x", b"dat", b"\n", b"\r", b": \xc3"])


# Of what it says.


def extra_fields(draft, rng):
    for found in draft.objects(rng):
        found[rng.choice(["x", "citations", "usage_metadata", "type_", "ä", "stop", "event", "words"])] = odd_value(rng)


def other_types(draft, rng):
    for found in draft.objects(rng):
        keys = [key for key in found if key not in CARRIERS]
        if keys:
            found[rng.choice(keys)] = odd_value(rng)


def missing(draft, rng):
    names = ["id", "model", "created", "object", "index", "role", "logprobs", "usage", "type", "stop_sequence"]
    gone = set(rng.sample(names, 3))
    for found in [found for frame in draft.some(rng) for found in objects(frame["data"])]:
        for key in gone & set(found):
            del found[key]


def twice(draft, rng):
    """The last of two is what Python reads, so the first is the odd one."""

    def doubled(value):
        if isinstance(value, list):
            return [doubled(item) for item in value]
        if not isinstance(value, dict):
            return value
        members = [(key, doubled(member)) for key, member in value.items()]
        if members and rng.random() < 0.5:
            members.insert(0, (rng.choice(members)[0], odd_value(rng)))
        return Pairs(members)

    for frame in draft.some(rng):
        frame["data"] = doubled(frame["data"])


def escaped_keys(draft, rng):
    def escaped(value):
        if isinstance(value, list):
            return [escaped(item) for item in value]
        if not isinstance(value, dict):
            return value
        written = lambda key: Literal('"' + "".join(f"\\u{ord(char):04X}" for char in key) + '"')  # noqa: E731
        return Pairs((written(key) if rng.random() < 0.5 else key, escaped(member)) for key, member in value.items())

    for frame in draft.some(rng):
        frame["data"] = escaped(frame["data"])


def texts(draft, rng):
    odd = ["\ud83d", "\udc00x", "a\u2028b\x0b\x0c\x85c\x1c", "\0", "data: x\n\ndata: y", '"usage":null', "[DONE]", "\r\n"]
    for frame in draft.some(rng):
        for found in objects(frame["data"]):
            for key in {"content", "text", "thinking", "arguments", "partial_json", "reasoning_content"} & set(found):
                if isinstance(found[key], str):
                    found[key] += rng.choice(odd)


def numbers(draft, rng):
    for found in draft.objects(rng):
        for key, value in list(found.items()):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[key] = rng.choice([*map(Literal, ["NaN", "Infinity", "1e999", "9" * 3000]), str(value), float(value)])


def deep(draft, rng):
    depth = rng.choice([50, 128, 129, 200])
    for found in draft.objects(rng):
        found["deep"] = Literal(rng.choice(['{"a":' * depth + "1" + "}" * depth, "[" * depth + "]" * depth]))


def no_errors(draft, rng):
    for found in [frame["data"] for frame in draft.some(rng)]:
        found["error"] = rng.choice([None, "", [], {}, False, 0, Literal("0.0"), Literal("{ }")])


def unknown_events(draft, rng):
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(["vendor_note", "heartbeat", "content_block_rewind", "message"])
        data = rng.choice([{"type": name}, {"type": name, "x": odd_value(rng)}, {"type": name, "index": 0, "delta": None}])
        if draft.dialect == "openai":
            data = {**data, "object": "chat.completion.note", "choices": rng.choice([[], None])}
        draft.insert(rng, rng.choice([name, None]), data)


def unknown_blocks(draft, rng):
    kind = rng.choice(["hologram", "text_v2", "mcp_tool_use", ""])
    for frame in draft.some(rng):
        for found in objects(frame["data"]):
            if "delta" in found and isinstance(found["delta"], dict):
                found["delta"][kind or "x"] = {"type": kind, "bytes": "AA=="}
    if draft.dialect == "anthropic" and not draft.whole:
        for event in answers.block(9, {"type": kind, "x": 1}, {"type": f"{kind}_delta", "x": [1]}):
            draft.frames.insert(-1, {"event": event["type"], "data": event, "before": [], "after": []})


def empty_reasons(draft, rng):
    for frame in draft.frames[:-1]:
        for found in objects(frame["data"]):
            for key in {"finish_reason", "stop_reason"} & set(found):
                if found[key] is None:
                    found[key] = ""


def odd_reasons(draft, rng):
    for frame in draft.frames:
        for found in objects(frame["data"]):
            for key in {"finish_reason", "stop_reason"} & set(found):
                if found[key]:
                    found[key] = rng.choice(["eos", "abort", "length", "insufficient_system_resource", "x y", "STOP"])


def more_after_finish(draft, rng):
    spoken = [frame for frame in draft.frames if isinstance(frame["data"], dict)]
    draft.frames.append(copy.deepcopy(rng.choice(spoken)))


def spaces(draft, rng):
    draft.gap = rng.choice([" ", "\t", "  "])


def ascii_only(draft, rng):
    draft.ascii_only = True


def long_frame(draft, rng):
    for found in objects(draft.some(rng)[0]["data"]):
        found["long"] = rng.choice(["a", "ä\U0001f600", '"\\']) * 400_000
        return


def many_frames(draft, rng):
    draft.frames[1:1] = [copy.deepcopy(rng.choice(draft.frames)) for _ in range(rng.choice([300, 300, 5000]))]


# Of how it is sent.


def one_byte(draft, rng):
    draft.pieces = "bytes"


def odd_pieces(draft, rng):
    draft.pieces = "odd"


def one_piece(draft, rng):
    draft.pieces = "one"


def slow(draft, rng):
    draft.pieces = "slow"


def content_length(draft, rng):
    draft.framing = "length"


def close_delimited(draft, rng):
    draft.framing = "close"


def http10(draft, rng):
    draft.framing = "http10"


def zipped(draft, rng):
    draft.gzip = True


def content_type(draft, rng):
    odd = [None, "TEXT/EVENT-STREAM", "text/plain", "application/json", "text/html", "application/x-ndjson", "x"]
    odd += ["Application/JSON;charset=UTF-8", "text/event-stream;charset=latin-1"]
    value = rng.choice(odd)
    draft.headers = [("content-type", value)] if value else []


def headers(draft, rng):
    odd = [("X-Odd", ""), ("x-odd", "a,b"), ("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no")]
    draft.headers += rng.sample([*odd, ("set-cookie", "a=b"), ("X-Request-Id", "req-ä"), ("Vary", "*")], 3)


LINES = [crlf, bare_returns, mixed_ends, no_space, many_lines, flipped, comments, blanks, empty_data, line_fields]
LINES += [byte_order_mark, leading_blanks, no_last_blank, no_done, done_twice, other_done, padded_done, after_done]
LINES += [unfinished_tail, unknown_events, more_after_finish, many_frames]
SAYS = [extra_fields, other_types, missing, twice, escaped_keys, texts, numbers, deep, no_errors, unknown_blocks]
SAYS += [empty_reasons, odd_reasons, spaces, ascii_only, long_frame]
SENT = [one_byte, odd_pieces, one_piece, slow, content_length, close_delimited, http10, zipped, content_type, headers]
WHOLE = [*SAYS, *SENT, leading_blanks]
MUTATIONS = {function.__name__: function for function in LINES + SAYS + SENT}


def choose(rng):
    """A case: which answer, whether whole, and what is done to it."""
    seed = rng.choice(list(SEEDS))
    whole = rng.random() < 0.25
    groups = [WHOLE] if whole else [LINES, SAYS, SENT]
    count = rng.choice([1, 1, 2, 2, 3, 3, 4])
    names = {rng.choice(rng.choice(groups)).__name__ for _ in range(count)}
    # What makes members of an object pairs comes last, as no other mutation looks into pairs, and a long frame is one.
    order = sorted(names, key=lambda name: (name in {"twice", "escaped_keys"}, name == "long_frame", name))
    return {"seed": seed, "whole": whole, "mutations": [[name, rng.randrange(10**6)] for name in order], "gone": []}


def block_of(draft, frame, rng):
    """The lines of a frame."""
    event, data = frame["event"], frame["data"]
    lines = [] if event is None else [event if event == "" or event.startswith(":") else f"event:{draft.space}{event}"]
    if event == "":
        lines = []
    told = []
    if data is not None:
        text = data if isinstance(data, str) else write(data, draft.ascii_only, draft.gap)
        if draft.many_lines and not isinstance(data, str):
            # Between tokens JSON has room for line ends; where a text could be cut there is none.
            text = re.sub(r'^\{"', '{\n"', text)
        told = [f"data:{draft.space}{line}" for line in text.split("\n")]
    lines = told + lines if draft.flipped else lines + told
    return [*frame["before"], *lines, *frame["after"]]


def body(draft, rng):
    """The bytes of the answer, frame by frame."""
    if draft.whole:
        text = write(draft.frames[0]["data"], draft.ascii_only, draft.gap).encode()
        return [draft.first + text + draft.last]
    made = []
    frames = [*draft.frames, *draft.done]
    for frame in frames:
        lines = block_of(draft, frame, rng)
        text = "".join(line + draft.end(rng) for line in lines)
        blank = "" if frame is frames[-1] and not draft.last_blank else draft.end(rng)
        # A return and a line feed after it would be one line end.
        if text.endswith("\r") and blank == "\n":
            blank = "\r"
        made.append((text + blank).encode("utf-8", "surrogatepass"))
    made[0] = draft.first + made[0]
    return [*made, draft.last] if draft.last else made


def cut(draft, frames, rng):
    if draft.gzip:
        frames = [gzip.compress(b"".join(frames))]
    whole = b"".join(frames)
    if draft.pieces == "frames" and len(frames) < 1000:
        return frames
    if draft.pieces == "one" or len(whole) > 200_000:
        return [whole]
    if draft.pieces == "bytes" and len(whole) < 6000:
        return [whole[at : at + 1] for at in range(len(whole))]
    pieces, at = [], 0
    while at < len(whole):
        size = rng.choice([1, 2, 3, 5, 17, 64, 255, 4096])
        pieces.append(whole[at : at + size])
        at += size
    return pieces


def make(case):
    """What is sent: pieces with the seconds to wait after each, and whether the connection ends with them."""
    draft = Draft(case["seed"], case["whole"])
    for name, seed in case["mutations"]:
        MUTATIONS[name](draft, random.Random(seed))
    draft.frames = [frame for at, frame in enumerate(draft.frames) if at not in set(case["gone"])]
    rng = random.Random(sum(seed for _, seed in case["mutations"]))
    frames = body(draft, rng)
    pieces = [piece for piece in cut(draft, frames, rng) if piece]
    length = sum(map(len, pieces))
    head = [f"HTTP/1.{0 if draft.framing == 'http10' else 1} 200 OK"]
    head += [f"{name}: {value}" for name, value in draft.headers]
    if draft.gzip:
        head.append("content-encoding: gzip")
    if draft.framing == "length":
        head.append(f"content-length: {length}")
    elif draft.framing == "chunked":
        head.append("transfer-encoding: chunked")
        pieces = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces] + [b"0\r\n\r\n"]
    elif draft.framing == "close":
        head.append("connection: close")
    head = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
    wait = 0.01 if draft.pieces == "slow" and len(pieces) < 50 else 0
    return {
        "head": head,
        "pieces": pieces,
        "wait": wait,
        "close": draft.framing in {"close", "http10"},
        "body": b"".join(frames),
    }
