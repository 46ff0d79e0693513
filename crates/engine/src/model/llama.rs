//! Llama 2 and 3.x, and Mistral. A `sliding_window` alone means nothing to the reference implementation: only layers that
//! `layer_types` calls sliding have one.

use super::{
    Config, LoadError,
    attention::Mask,
    plan::{Head, Mlp, Plan, QueryKeyNorm},
};

const DEFAULT_ROPE_BASE: f32 = 10_000.0;

pub(super) fn plan(config: &Config) -> Result<Plan, LoadError> {
    Ok(Plan {
        head_dim: config.head_dim_or_derived()?,
        key_value_heads: config.key_value_heads.unwrap_or(config.heads),
        input_bias: config.attention_bias,
        output_bias: config.attention_bias,
        query_key_norm: QueryKeyNorm::None,
        mlp: Mlp::Dense(config.feed_forward_bias),
        head: config.head.unwrap_or(Head::Tied),
        rope_base: config.rope_base.unwrap_or(DEFAULT_ROPE_BASE),
        rope_pairs: config.rope_pairs,
        masks: masks(config)?,
    })
}

fn masks(config: &Config) -> Result<Vec<Mask>, LoadError> {
    let Some(types) = &config.layer_types else { return Ok(vec![Mask::Causal; config.layers]) };
    if types.len() != config.layers {
        let problem = format!("has {} entries for {} layers", types.len(), config.layers);
        return Err(LoadError::config("layer_types", problem));
    }
    let mask = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(Mask::Causal),
        "sliding_attention" => match config.sliding_window {
            Some(window) => Ok(Mask::SlidingWindow(window)),
            None => Err(LoadError::config("sliding_window", "is required for sliding_attention layers")),
        },
        other => Err(LoadError::config("layer_types", format!("has the unknown type {other:?}"))),
    };
    types.iter().map(mask).collect()
}
