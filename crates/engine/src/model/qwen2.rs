//! Qwen2 and Qwen2.5: biases on queries, keys and values but not on the output. Their window settings mean nothing to the
//! reference implementation, nor to us.

use super::{Config, LoadError, decoder::Plan};

const DEFAULT_ROPE_BASE: f32 = 1_000_000.0;

pub(super) fn plan(config: &Config) -> Result<Plan, LoadError> {
    if config.hidden_size % config.heads != 0 {
        return Err(LoadError::config("hidden_size", "must be a multiple of num_attention_heads"));
    }
    Ok(Plan {
        head_dim: config.hidden_size / config.heads,
        key_value_heads: config.key_value_heads.unwrap_or(config.heads),
        input_bias: true,
        output_bias: false,
        feed_forward_bias: false,
        head_norms: false,
        tied: config.tied.unwrap_or(true),
        rope_base: config.rope_base.unwrap_or(DEFAULT_ROPE_BASE),
        rope_traditional: config.rope_traditional,
        windows: vec![None; config.layers],
    })
}
