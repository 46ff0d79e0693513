//! Llama 2 and 3.x, and Mistral. A `sliding_window` alone means nothing to the reference implementation: only layers that
//! `layer_types` calls sliding have one.

use super::{Config, LoadError, decoder::Plan};

const DEFAULT_ROPE_BASE: f32 = 10_000.0;

pub(super) fn plan(config: &Config) -> Result<Plan, LoadError> {
    Ok(Plan {
        head_dim: config.head_dim_or_derived()?,
        key_value_heads: config.key_value_heads.unwrap_or(config.heads),
        input_bias: config.attention_bias,
        output_bias: config.attention_bias,
        feed_forward_bias: config.feed_forward_bias,
        head_norms: false,
        tied: config.tied.unwrap_or(true),
        rope_base: config.rope_base.unwrap_or(DEFAULT_ROPE_BASE),
        rope_traditional: config.rope_traditional,
        windows: windows(config)?,
    })
}

fn windows(config: &Config) -> Result<Vec<Option<i32>>, LoadError> {
    let Some(types) = &config.layer_types else { return Ok(vec![None; config.layers]) };
    if types.len() != config.layers {
        let problem = format!("has {} entries for {} layers", types.len(), config.layers);
        return Err(LoadError::config("layer_types", problem));
    }
    let window = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => match config.sliding_window {
            Some(window) => Ok(Some(window)),
            None => Err(LoadError::config("sliding_window", "is required for sliding_attention layers")),
        },
        other => Err(LoadError::config("layer_types", format!("has the unknown type {other:?}"))),
    };
    types.iter().map(window).collect()
}
