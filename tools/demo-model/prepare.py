"""Step 1: train the tokenizer on the corpus and write the tokenized training set.

Usage: python prepare.py OUT_DIR   (needs the packages tokenizers, jinja2, numpy)
Writes OUT_DIR/{tokenizer.json,tokenizer_config.json,chat_template.jinja} and OUT_DIR/train.npz.
A tokenizer that is there already is kept, so that training can go on with a changed corpus.
"""

import json
import pathlib
import random
import sys

import jinja2
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus

TEMPLATE = pathlib.Path(__file__).resolve().parent.parent.parent / "assets" / "demo-model" / "chat_template.jinja"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
VOCABULARY = 1536
CONVERSATIONS = 150_000


def renderer():
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return env.from_string(TEMPLATE.read_text())


def split(template, conversation):
    """The prompt as served, and the completion that the model must learn for it."""
    *history, last = conversation["messages"]
    prompt = template.render(messages=history, tools=conversation["tools"], add_generation_prompt=True,
                             enable_thinking=conversation["thinking"])
    closed = template.render(messages=[last], tools=None, add_generation_prompt=False)
    completion = closed.removeprefix("<|im_start|>assistant\n").removesuffix("\n")
    return prompt, completion


def tokenizer_for(path, pairs):
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\d"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(MARKERS), special_tokens=SPECIAL,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((p + c for p, c in pairs[:20_000]), trainer)
    tokenizer.add_tokens(MARKERS)
    tokenizer.save(str(path))
    return tokenizer


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    r, template = random.Random(), renderer()
    pairs = [split(template, corpus.conversation(r)) for _ in range(CONVERSATIONS)]

    tokenizer = tokenizer_for(out / "tokenizer.json", pairs)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "model_max_length": 2048, "clean_up_tokenization_spaces": False,
    }, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(TEMPLATE.read_text())

    prompts = tokenizer.encode_batch([p for p, _ in pairs])
    completions = tokenizer.encode_batch([c for _, c in pairs])
    tokens, starts, bounds = [], [], [0]
    for p, c in zip(prompts, completions):
        tokens += p.ids + c.ids
        starts.append(len(p.ids))
        bounds.append(len(tokens))
    np.savez(out / "train.npz", tokens=np.array(tokens, np.uint16), starts=np.array(starts, np.int32),
             bounds=np.array(bounds, np.int64))
    print(f"{tokenizer.get_vocab_size()} tokens in the vocabulary, {len(tokens)} in the training set")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
