"""Goldens of the sampler: what mlx-lm's penalties and filters leave of given logits.

Every result comes from mlx-lm's own chain (make_logits_processors, make_sampler); only the final draw is replaced by a
function that keeps what would have been drawn from.
"""

import json
from importlib.metadata import version

import mlx.core as mx
import numpy as np
from mlx_lm import sample_utils

VOCABULARY = 40

FILTERS = [
    {"temp": 1.0}, {"temp": 0.5}, {"temp": 2.0},
    {"temp": 1.0, "top_p": 0.9}, {"temp": 0.7, "top_p": 0.5}, {"temp": 1.0, "top_p": 0.01}, {"temp": 1.0, "top_p": 0.999},
    {"temp": 1.0, "top_p": 1.0}, {"temp": 1.0, "top_p": 0.0},
    {"temp": 1.0, "top_k": 1}, {"temp": 1.0, "top_k": 5}, {"temp": 0.3, "top_k": 39},
    {"temp": 1.0, "min_p": 0.05}, {"temp": 1.5, "min_p": 0.3}, {"temp": 1.0, "min_p": 1.0},
    {"temp": 0.8, "top_p": 0.9, "top_k": 5}, {"temp": 0.8, "top_p": 0.5, "top_k": 20},
    {"temp": 1.2, "top_p": 0.95, "min_p": 0.1}, {"temp": 0.6, "min_p": 0.02, "top_k": 3},
    {"temp": 0.7, "top_p": 0.8, "min_p": 0.05, "top_k": 10},
]

PENALTIES = [
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}, {"repetition_penalty": 1.0}, {"repetition_penalty": 0.0},
    {"repetition_penalty": 1.3, "repetition_context_size": 4}, {"repetition_penalty": 1.3, "repetition_context_size": 0},
    {"presence_penalty": 0.7}, {"presence_penalty": -0.5}, {"presence_penalty": 0.7, "presence_context_size": 3},
    {"frequency_penalty": 0.4}, {"frequency_penalty": -0.3}, {"frequency_penalty": 0.4, "frequency_context_size": 5},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"logit_bias": {"3": 2.5, "7": -100.0}},
    {"logit_bias": {"3": 2.5, "7": -4.0}, "repetition_penalty": 1.5, "presence_penalty": 0.3, "frequency_penalty": 0.1},
]


def vectors():
    """Ordinary, nearly certain, flat, and coarse logits; the last has many equal ones, at the cut too."""
    rng = np.random.default_rng(7)
    ordinary = rng.normal(0, 2, VOCABULARY)
    certain = rng.normal(0, 1, VOCABULARY)
    certain[11] = 18.0
    flat = rng.normal(0, 0.05, VOCABULARY)
    coarse = np.round(rng.normal(0, 2, VOCABULARY))
    return {name: values.astype(np.float32) for name, values in
            [("ordinary", ordinary), ("certain", certain), ("flat", flat), ("coarse", coarse)]}


def contexts():
    """Tokens so far, prompt included: none, one, a short one with repeats, one longer than the default window of 20."""
    rng = np.random.default_rng(8)
    return {"empty": [], "one": [3], "short": [3, 7, 3, 3, 12, 7], "long": rng.integers(0, VOCABULARY, 50).tolist()}


def filtered(logits, settings):
    """The ids that can still be drawn and their probabilities, in order of id."""
    drawn_from = []

    def keep(masked, temp):
        drawn_from.extend([masked, mx.softmax(masked * (1.0 / temp), axis=-1)])
        return mx.argmax(masked, axis=-1)

    draw, sample_utils.categorical_sampling = sample_utils.categorical_sampling, keep
    try:
        x = mx.array(logits)[None]
        sample_utils.make_sampler(**settings)(x - mx.logsumexp(x, axis=-1, keepdims=True))
    finally:
        sample_utils.categorical_sampling = draw
    masked, probabilities = (np.array(rows[0]) for rows in drawn_from)
    kept = np.flatnonzero(np.isfinite(masked))
    return kept.tolist(), [float(f"{p:.9g}") for p in probabilities[kept]]


def penalized(logits, context, settings):
    settings = dict(settings)
    if "logit_bias" in settings:
        settings["logit_bias"] = {int(k): v for k, v in settings["logit_bias"].items()}
    out = mx.array(logits)[None]
    for process in sample_utils.make_logits_processors(**settings):
        out = process(mx.array(context, dtype=mx.uint32), out)
    return [float(f"{x:.9g}") for x in np.array(out[0])]


def write(path):
    table, tokens = vectors(), contexts()
    filters, penalties = [], []
    for name, logits in table.items():
        for settings in FILTERS:
            # Which of several equal logits survive top_k is arbitrary, so it says nothing about another sampler.
            if name == "coarse" and "top_k" in settings:
                continue
            ids, probabilities = filtered(logits, settings)
            filters.append({"logits": name, "settings": settings, "kept_ids": ids, "probabilities": probabilities})
    for context in tokens:
        for settings in PENALTIES:
            penalties.append({"logits": "ordinary", "context": context, "settings": settings,
                              "result": penalized(table["ordinary"], tokens[context], settings)})

    def rows(items):
        return "[\n    " + ",\n    ".join(json.dumps(item) for item in items) + "\n  ]"

    logits = ",\n    ".join(f'"{k}": {json.dumps([float(f"{x:.9g}") for x in v])}' for k, v in table.items())
    path.write_text(f'{{\n  "mlx_lm": "{version("mlx-lm")}",\n  "logits": {{\n    {logits}\n  }},\n'
                    f'  "contexts": {json.dumps(tokens)},\n  "filters": {rows(filters)},\n  "penalties": {rows(penalties)}\n}}\n')
    print(f"{path.name}: {len(filters)} filter cases, {len(penalties)} penalty cases")
