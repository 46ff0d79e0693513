//! Qwen2 and Qwen2.5: biases on queries, keys and values but not on the output. Their window settings mean nothing to the
//! reference implementation, nor to us.

use super::{
    Config, LoadError,
    attention::Mask,
    linear::Bias,
    plan::{Head, Mlp, Plan, QueryKeyNorm},
};

const DEFAULT_ROPE_BASE: f32 = 1_000_000.0;

pub(super) fn plan(config: &Config) -> Result<Plan, LoadError> {
    if config.hidden_size % config.heads != 0 {
        return Err(LoadError::config("hidden_size", "must be a multiple of num_attention_heads"));
    }
    Ok(Plan {
        head_dim: config.hidden_size / config.heads,
        key_value_heads: config.key_value_heads.unwrap_or(config.heads),
        input_bias: Bias::PerOutput,
        output_bias: Bias::None,
        query_key_norm: QueryKeyNorm::None,
        mlp: Mlp::Dense(Bias::None),
        head: config.head.unwrap_or(Head::Tied),
        rope_base: config.rope_base.unwrap_or(DEFAULT_ROPE_BASE),
        rope_pairs: config.rope_pairs,
        masks: vec![Mask::Causal; config.layers],
    })
}
