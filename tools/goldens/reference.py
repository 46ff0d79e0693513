"""Writes a random model for a case and runs mlx-lm on it."""

import contextlib
import copy
import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model


def write_model(case, seed, folder):
    """One MLX model folder with random weights that give sharp, varied answers."""
    config = {**case.config, **case.reference_config}
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    rng = np.random.default_rng(seed)
    shapes = sorted((name, value.shape) for name, value in tree_flatten(model.parameters()))
    weights = [(name, mx.array(random_tensor(rng, name, shape)).astype(getattr(mx, case.dtype))) for name, shape in shapes]
    model.update(tree_unflatten(weights))

    written = dict(case.config)
    if case.quantization is not None:
        default = {k: v for k, v in case.quantization.items() if k in ("group_size", "bits")}

        def settings(path, module):
            if not hasattr(module, "to_quantized"):
                return False
            if path in case.unnamed_bits:
                return {**default, "bits": case.unnamed_bits[path]}
            return copy.copy(case.quantization.get(path, default))

        nn.quantize(model, class_predicate=settings)
        # Converters write both keys; the reference reads the first and ignores the second beside it.
        written["quantization"] = written["quantization_config"] = case.quantization

    tensors = dict(sorted(tree_flatten(model.parameters())))
    for name in case.stale:
        shape = (config["vocab_size"], config["hidden_size"]) if name == "lm_head.weight" else (8,)
        tensors[name] = mx.array(random_tensor(rng, name, shape))

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    save(tensors, folder, case.shards)


def random_tensor(rng, name, shape):
    """Projections back into the residual stream are strong, so that a tied head doesn't just repeat its input."""
    values = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * values
    if name.endswith(".bias"):
        return 0.3 * values
    if name == "model.embed_tokens.weight":
        return 0.5 * values
    gain = 4.0 if "o_proj" in name or "down_proj" in name else 3.0 if name == "lm_head.weight" else 1.4
    return gain / np.sqrt(shape[-1]) * values


def save(tensors, folder, shards):
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
        return
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        weight_map |= {name: file for name in part}
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part}, metadata={"format": "mlx"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load(folder, dtype=None, config=None):
    """`dtype` casts every float tensor, scales and biases of quantized layers included."""
    model, _ = load_model(folder, model_config=config)
    if dtype is not None:
        model.set_dtype(dtype)
        mx.eval(model.parameters())
    return model


def last_logits(model, prompt):
    """The raw logits after the prompt, computed as generation does it: all but the last token first."""
    cache = make_prompt_cache(model)
    if len(prompt) > 1:
        model(mx.array(prompt[:-1])[None], cache=cache)
        mx.eval([c.state for c in cache])
    return np.array(model(mx.array(prompt[-1:])[None], cache=cache)[0, -1].astype(mx.float32))


def greedy(model, prompt, count):
    """The greedy ids, and the smallest lead of a first choice over the second (in logits)."""
    ids, leads = [], []
    for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=count):
        second, first = np.sort(np.array(logprobs.astype(mx.float32)))[-2:]
        ids.append(int(token))
        leads.append(float(first - second))
    return ids, min(leads)


@contextlib.contextmanager
def on_cpu():
    """The goldens are the CPU's: another device rounds differently."""
    mx.set_default_device(mx.cpu)
    yield
