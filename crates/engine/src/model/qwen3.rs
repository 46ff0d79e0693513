//! Qwen3, dense: every head of queries and keys is normed before the rotation, and head_dim is given explicitly.

use super::{
    Config, LoadError,
    attention::Mask,
    linear::Bias,
    plan::{Mlp, Plan, QueryKeyNorm},
    rope::RopePairs,
};

pub(super) fn plan(config: &Config) -> Result<Plan, LoadError> {
    let required = |key: &str| LoadError::config(key, "is required for qwen3");
    Ok(Plan {
        head_dim: config.head_dim.ok_or_else(|| required("head_dim"))?,
        key_value_heads: config.key_value_heads.ok_or_else(|| required("num_key_value_heads"))?,
        input_bias: Bias::None,
        output_bias: Bias::None,
        query_key_norm: QueryKeyNorm::PerHead,
        mlp: Mlp::Dense(Bias::None),
        head: config.head.ok_or_else(|| required("tie_word_embeddings"))?,
        rope_base: config.rope_base.ok_or_else(|| required("rope_theta"))?,
        rope_pairs: RopePairs::Halves,
        masks: vec![Mask::Causal; config.layers],
    })
}
