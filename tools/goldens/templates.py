"""Asks Jinja2, set up as `transformers` does for chat templates, what it makes of tests/goldens/engine/templates.json.

The file is a list of [template, text]; the templates stay, and a new one is written with an empty text. What the texts are
rendered with is template-variables.json beside it.
"""

import datetime
import json
import pathlib

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "goldens" / "engine"
NOW = datetime.datetime(2026, 11, 20, 9, 5)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def write():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["strftime_now"] = NOW.strftime
    environment.globals["dict"] = dict
    given = json.loads((OUT / "template-variables.json").read_text())
    always = {"bos_token": "<s>", "messages": [], "tools": None, "documents": None, "add_generation_prompt": True}
    path = OUT / "templates.json"
    cases = [[source, environment.from_string(source).render(**always, **given)] for source, _ in json.loads(path.read_text())]
    path.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
