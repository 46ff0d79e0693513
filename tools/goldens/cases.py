"""The tiny models whose behaviour is recorded: one per way in which a checkpoint can differ.

Every case names a model folder. `reject` lists readings of the same folder that an engine could get wrong; the
golden is only kept if each of them would move the logits, so that a replay of the golden can go red.
"""

from dataclasses import dataclass, field

GREEDY_TOKENS = 64


@dataclass(frozen=True)
class Case:
    name: str
    why: str
    prompt_tokens: int
    config: dict
    dtype: str = "float32"
    # None, or the `quantization` entry of config.json, per-path entries included.
    quantization: dict | None = None
    # Bits of paths that config.json says nothing about although they differ from its default.
    unnamed_bits: dict = field(default_factory=dict)
    shards: int = 1
    # Tensors that old checkpoints carry and that a loader must drop.
    stale: tuple = ()
    # Read by the reference instead of the folder's own keys, where the reference misreads them.
    reference_config: dict = field(default_factory=dict)
    reject: tuple = ()


def sizes(**more):
    return {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 256, "max_position_embeddings": 2048,
            "hidden_act": "silu", **more}


def qwen3(**more):
    return sizes(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32, rope_theta=1000000.0,
                 attention_bias=False, **more)


def qwen2(**more):
    return sizes(architectures=["Qwen2ForCausalLM"], model_type="qwen2", rope_theta=1000000.0,
                 use_sliding_window=False, sliding_window=16, max_window_layers=2, **more)


def llama(**more):
    return sizes(architectures=["LlamaForCausalLM"], model_type="llama", **{"rope_theta": 500000.0, **more})


def mistral(**more):
    return sizes(architectures=["MistralForCausalLM"], model_type="mistral", rope_theta=10000.0, **more)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
AFFINE_32, AFFINE_64 = {"group_size": 32, "bits": 4}, {"group_size": 64, "bits": 4}
WITHOUT_SCALING = {"rope_scaling": None}

CASES = [
    Case("qwen3-f32-tied", "the plain case: tied head, norms on q and k, head_dim * heads differs from hidden_size", 23,
         qwen3(tie_word_embeddings=True, rope_scaling=None), reject=({"rope_theta": 10000.0}, {"rms_norm_eps": 1e-2})),
    Case("qwen3-f32-untied-yarn", "own head; yarn with its default mscale, across a block of the KV cache", 240,
         qwen3(tie_word_embeddings=False, rope_scaling={"rope_type": "yarn", **YARN}),
         reject=(WITHOUT_SCALING, {"rope_scaling": {"rope_type": "yarn", "mscale_all_dim": 1.0, **YARN}})),
    Case("qwen3-bf16-nested-rope", "bf16 tensors; rope_theta only inside rope_parameters", 40,
         {k: v for k, v in qwen3(tie_word_embeddings=True, dtype="bfloat16",
                                 rope_parameters={"rope_type": "default", "rope_theta": 5000.0}).items()
          if k != "rope_theta"}, dtype="bfloat16", reject=({"rope_theta": 10000.0}, {"rope_theta": 1000000.0})),
    Case("qwen3-q4-tied", "4 bits with f32 scales; the tied head is a quantized matmul; a long prompt in chunks", 600,
         qwen3(tie_word_embeddings=True), quantization=AFFINE_64),
    Case("qwen3-q4-bf16-untied", "4 bits in groups of 32 with bf16 scales, as converters write them", 40,
         qwen3(tie_word_embeddings=False), dtype="bfloat16", quantization={**AFFINE_32, "mode": "affine"}),
    Case("qwen2-f32-tied", "biases on q, k and v but not on o; window keys that mean nothing; a prompt of one token", 1,
         qwen2(tie_word_embeddings=True)),
    Case("qwen2-f32-yarn", "yarn named by the older key `type`, with all its parameters", 150,
         qwen2(tie_word_embeddings=False, rope_scaling={"type": "yarn", "beta_fast": 16, "beta_slow": 2, "mscale": 0.8,
                                                        "mscale_all_dim": 0.4, **YARN}),
         reject=(WITHOUT_SCALING, {"rope_scaling": {"type": "yarn", **YARN}})),
    Case("qwen2-q4-mixed", "per-path entries: a dict for 8 and 6 bits, `false` for tensors left dense", 60,
         qwen2(tie_word_embeddings=False),
         quantization={**AFFINE_64, "model.embed_tokens": {"group_size": 32, "bits": 8},
                       "lm_head": {"group_size": 64, "bits": 6}, "model.layers.0.self_attn.q_proj": False,
                       "model.layers.1.mlp.down_proj": {"group_size": 128, "bits": 8, "mode": "affine"},
                       "model.layers.1.self_attn.o_proj": False}),
    Case("llama-f32-llama3-sharded", "llama3 bands; two shards with an index; a long prompt in chunks", 600,
         llama(tie_word_embeddings=False, rope_scaling=LLAMA3), shards=2,
         reject=(WITHOUT_SCALING, {"rope_scaling": {"type": "linear", "factor": 8.0}})),
    Case("llama-f32-linear-bias", "no tie_word_embeddings key means tied; biases on every projection; a stale "
         "lm_head and inv_freq; prompt plus answer just past a block of the KV cache", 256,
         llama(rope_scaling={"type": "linear", "factor": 4.0}, attention_bias=True, mlp_bias=True,
               rope_theta=10000.0, rms_norm_eps=1e-5),
         stale=("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"),
         reject=(WITHOUT_SCALING, {"rope_scaling": {"type": "linear", "factor": 0.25}})),
    Case("llama-q4-llama3-tied", "llama3 bands on a 4-bit model with three layers", 96,
         llama(tie_word_embeddings=True, rope_scaling={**LLAMA3, "factor": 32.0}, head_dim=16) | {"num_hidden_layers": 3},
         quantization=AFFINE_32, reject=(WITHOUT_SCALING,)),
    Case("llama-q4-nested-inferred", "rope settings only inside rope_parameters; 8-bit tensors that config.json "
         "doesn't name, so that only their shapes tell", 30,
         {k: v for k, v in llama(tie_word_embeddings=False,
                                 rope_parameters={**LLAMA3, "rope_theta": 20000.0}).items() if k != "rope_theta"},
         quantization=AFFINE_32, unnamed_bits={"lm_head": 8, "model.layers.0.mlp.down_proj": 8},
         reference_config={"rope_theta": 20000.0, "rope_scaling": LLAMA3},
         reject=({"rope_theta": 10000.0}, WITHOUT_SCALING)),
    Case("mistral-f32-untied", "explicit head_dim; a sliding_window that the reference doesn't apply", 40,
         mistral(tie_word_embeddings=False, head_dim=32, sliding_window=16),
         reject=({"layer_types": ["sliding_attention", "full_attention"]},)),
    Case("mistral-q4-bf16", "the usual converted Mistral: 4 bits, groups of 64, bf16, own head", 33,
         mistral(tie_word_embeddings=False, sliding_window=None, rope_traditional=False), dtype="bfloat16",
         quantization=AFFINE_64, reject=({"rope_traditional": True},)),
]
