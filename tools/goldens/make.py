"""Writes the engine's goldens: tiny random models, and what mlx-lm answers with them.

Usage: python make.py [engine [NAME…] | sampling | demo | templates]     (everything without an argument)
Needs the packages of requirements.txt; see README.md.
"""

import json
import pathlib
import shutil
import sys
import tempfile
from importlib.metadata import version

import mlx.core as mx
import numpy as np

import reference
from cases import CASES, GREEDY_TOKENS

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent.parent / "tests" / "goldens" / "engine"
# First choices closer than this to the second, relative to the largest |logit|, could flip by rounding alone.
LEAST_LEAD = 1e-3
# Where tensors are stored in bf16, the run in that type must begin with as many of the f32 run's ids.
LEAST_AGREEMENT = 16
LEAST_DISTINCT = 20
# A misreading must move some logit by this share of the largest: ten times what the tests allow for rounding.
LEAST_REJECTION = 1e-2


def compact(value):
    """JSON with one top-level key a line, so that a diff of goldens is readable."""
    lines = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rounded(logits):
    """Nine digits carry every f32 exactly."""
    return [float(f"{x:.9g}") for x in logits]


def repeats(ids):
    """Whether the second half is a short loop: a loop would hide a fault of late positions."""
    tail = ids[len(ids) // 2:]
    return any(tail[period:] == tail[:-period] for period in range(1, len(tail) // 2 + 1))


def attempt(case, seed, folder):
    """The golden of one seed, or why the seed is no good."""
    reference.write_model(case, seed, folder)
    prompt = np.random.default_rng(10_000 + seed).integers(0, case.config["vocab_size"], case.prompt_tokens).tolist()
    model = reference.load(folder, mx.float32, case.reference_config)
    logits = reference.last_logits(model, prompt)
    ids, lead = reference.greedy(model, prompt, GREEDY_TOKENS)
    lead /= float(np.abs(logits).max())
    if lead < LEAST_LEAD:
        return None, f"lead {lead:.1e}"
    if len(set(ids)) < LEAST_DISTINCT or repeats(ids):
        return None, "repeats itself"
    golden = {"why": case.why, "mlx_lm": version("mlx-lm"), "mlx": version("mlx"), "seed": seed, "dtype": "float32",
              "stored_dtype": case.dtype, "least_lead": float(f"{lead:.3g}"), "prompt_ids": prompt,
              "last_logits": rounded(logits), "greedy_ids": ids}
    if case.reference_config:
        golden["reference_config"] = case.reference_config
    if case.dtype != "float32":
        model = reference.load(folder, config=case.reference_config)
        stored_ids, _ = reference.greedy(model, prompt, GREEDY_TOKENS)
        if stored_ids[:LEAST_AGREEMENT] != ids[:LEAST_AGREEMENT]:
            return None, f"{case.dtype} and float32 part too early"
        golden["stored_dtype_greedy_ids"] = stored_ids
        golden["stored_dtype_last_logits"] = rounded(reference.last_logits(model, prompt))
    for wrong in case.reject:
        other = reference.last_logits(reference.load(folder, mx.float32, case.reference_config | wrong), prompt)
        moved = float(np.abs(other - logits).max() / np.abs(logits).max())
        if moved < LEAST_REJECTION:
            return None, f"{wrong} moves the logits by {moved:.1e} only"
    return golden, None


def engine(names):
    for number, case in enumerate(CASES):
        if not names or case.name in names:
            with tempfile.TemporaryDirectory() as scratch:
                one(case, range(1000 * number, 1000 * number + 400), pathlib.Path(scratch) / case.name)


def one(case, seeds, scratch):
    """Only a usable golden replaces the one that is there."""
    for seed in seeds:
        golden, problem = attempt(case, seed, scratch)
        if golden:
            break
        print(f"{case.name}: seed {seed}: {problem}", file=sys.stderr)
    else:
        sys.exit(f"{case.name}: no seed gives a usable golden")
    (scratch / "golden.json").write_text(compact(golden))
    shutil.rmtree(OUT / case.name, ignore_errors=True)
    folder = shutil.copytree(scratch, OUT / case.name)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{case.name}: seed {seed}, least lead {golden['least_lead']}, {len(set(golden['greedy_ids']))} distinct ids, "
          f"{size // 1024} KiB", flush=True)


def main(what=None, *names):
    with reference.on_cpu():
        if what in (None, "engine"):
            engine(names)
        if what in (None, "sampling"):
            import sampling
            sampling.write(OUT / "sampling.json")
        if what in (None, "demo"):
            import demo
            demo.write(OUT / "demo")
    if what in (None, "templates"):
        import templates
        templates.write()


if __name__ == "__main__":
    if sys.argv[1:2] not in ([], ["engine"], ["sampling"], ["demo"], ["templates"]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
