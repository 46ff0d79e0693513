"""Makes the models of these benchmarks: Qwen3's shape with random weights, 46 M parameters, whose every token is a word.

Usage: python model.py FOLDER, with the packages of tools/goldens/requirements.txt. FOLDER/f32 has it as float32, FOLDER/q4
with 4 bits in groups of 64, by mlx-lm's own conversion. Answers never end early: the head's rows of all tokens that aren't
words are zero, and among 8,000 random logits one is positive.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 12, 512, 8, 4, 64, 1536, 8192
MARKS = ["<|end|>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}{% endfor %}{{ '<|assistant|>' }}"


def weights():
    random = np.random.default_rng(8)

    def matrix(rows, columns):
        return random.normal(0, 1.5 / columns**0.5, (rows, columns)).astype(np.float32)

    def ones(size):
        return np.ones(size, np.float32)

    head = matrix(VOCABULARY, HIDDEN)
    head[: len(MARKS)] = 0
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN) * 20, "lm_head.weight": head,
               "model.norm.weight": ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes = {"self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
                  "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
                  "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
                  "mlp.down_proj": (HIDDEN, INTERMEDIATE)}
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = matrix(*shape)
        for name, size in [("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN),
                           ("self_attn.q_norm", HEAD_DIM), ("self_attn.k_norm", HEAD_DIM)]:
            tensors[f"{prefix}{name}.weight"] = ones(size)
    return tensors


def tokenizer():
    added = [{"id": i, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, mark in enumerate(MARKS)]
    vocabulary = {mark: i for i, mark in enumerate(MARKS)}
    vocabulary |= {f"▁w{i}": i for i in range(len(MARKS), VOCABULARY)}
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": spaces, "post_processor": None, "decoder": spaces,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}


def write(folder):
    folder.mkdir(parents=True)
    save_file(weights(), folder / "model.safetensors", metadata={"format": "mlx"})
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": HIDDEN,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
              "head_dim": HEAD_DIM, "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6,
              "rope_theta": 1e6, "max_position_embeddings": 8192, "tie_word_embeddings": False, "hidden_act": "silu",
              "attention_bias": False, "eos_token_id": 0, "torch_dtype": "float32"}
    files = {"config.json": config, "tokenizer.json": tokenizer(),
             "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>",
                                       "unk_token": "<unk>", "chat_template": TEMPLATE}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def make(folder):
    folder = pathlib.Path(folder)
    if not (folder / "f32").exists():
        write(folder / "f32.new")
        (folder / "f32.new").rename(folder / "f32")
    if not (folder / "q4").exists():
        subprocess.run([sys.executable, "-m", "mlx_lm", "convert", "--hf-path", folder / "f32", "--mlx-path",
                        folder / "q4.new", "-q", "--q-bits", "4", "--q-group-size", "64", "--dtype", "float32"], check=True)
        (folder / "q4.new").rename(folder / "q4")


if __name__ == "__main__":
    make(sys.argv[1])
