"""How fast mlx-lm is with a model folder: the figure that a benchmark sets beside the engine's.

Usage: python speed.py MODEL [--prompt TEXT | --prompt-tokens N | --prompt-ids FILE] [--tokens N] [--runs N]
                       [--dtype stored|float32|bfloat16] [--prefill-step-size N] [--device cpu|gpu]
Batch 1, greedy, exactly N tokens (end-of-turn tokens don't stop it). One JSON object on stdout; rates are medians of the
runs, after one run that isn't counted. `--dtype float32` casts scales and biases too, as the engine does on a CPU.
"""

import argparse
import json
import os
import pathlib
import statistics
import time
from importlib.metadata import version

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model, load_tokenizer


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="one user message, rendered by the chat template with thinking off")
    prompt.add_argument("--prompt-tokens", type=int, help="that many random ids")
    prompt.add_argument("--prompt-ids", type=pathlib.Path, help="a JSON array of ids")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="stored", choices=["stored", "float32", "bfloat16"])
    parser.add_argument("--prefill-step-size", type=int, default=2048)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    return parser.parse_args()


def prompt_ids(args, vocabulary):
    if args.prompt_ids:
        return json.loads(args.prompt_ids.read_text())
    if args.prompt:
        tokenizer = load_tokenizer(args.model)
        return tokenizer.apply_chat_template([{"role": "user", "content": args.prompt}], add_generation_prompt=True,
                                             enable_thinking=False)
    return np.random.default_rng(0).integers(0, vocabulary, args.prompt_tokens or 256).tolist()


def measure(model, prompt, args):
    """Seconds to the first token, seconds for the rest, and the ids."""
    ids, start, first = [], time.perf_counter(), None
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=args.tokens, prefill_step_size=args.prefill_step_size):
        ids.append(int(token))
        first = first or time.perf_counter()
    return first - start, time.perf_counter() - first, ids


def main():
    args = arguments()
    mx.set_default_device(getattr(mx, args.device))
    start = time.perf_counter()
    model, config = load_model(args.model)
    if args.dtype != "stored":
        model.set_dtype(getattr(mx, args.dtype))
        mx.eval(model.parameters())
    load_seconds = time.perf_counter() - start
    prompt = prompt_ids(args, config["vocab_size"])

    measure(model, prompt, args)
    runs = [measure(model, prompt, args) for _ in range(args.runs)]
    decode = [(args.tokens - 1) / rest for _, rest, _ in runs]
    prefill = [len(prompt) / first for first, _, _ in runs]
    print(json.dumps({
        "engine": "mlx-lm", "mlx_lm": version("mlx-lm"), "mlx": version("mlx"), "device": args.device,
        "dtype": args.dtype, "cores": os.cpu_count(), "model": args.model.resolve().name,
        "prompt_tokens": len(prompt), "generated_tokens": args.tokens, "prefill_step_size": args.prefill_step_size,
        "runs": args.runs, "load_seconds": round(load_seconds, 4),
        "time_to_first_token_seconds": round(statistics.median(first for first, _, _ in runs), 5),
        "prefill_tokens_per_second": round(statistics.median(prefill), 1),
        "decode_tokens_per_second": round(statistics.median(decode), 1),
        "decode_tokens_per_second_range": [round(min(decode), 1), round(max(decode), 1)],
        "prompt_ids": prompt, "generated_ids": runs[0][2],
    }))


if __name__ == "__main__":
    main()
