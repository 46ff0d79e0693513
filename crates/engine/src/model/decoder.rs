//! The decoder that all supported architectures share: embedding, layers of attention and feed-forward with a norm before
//! each, a last norm, logits. What differs between architectures is in a [`Plan`].

use std::rc::Rc;

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::indexing::{Ellipsis, NewAxis, TryIndexOp},
};

use super::{
    Config, KeyValueCache, LoadError,
    attention::{Attention, FeedForward, HeadNorms, Mask},
    linear::{Bias, Embedding, Linear},
    norm::Norm,
    plan::{Head, Mlp, Plan, QueryKeyNorm},
    rope::Rope,
    weights::Weights,
};

/// A model that computes logits.
#[derive(Debug)]
pub(crate) struct Decoder {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None` when the embedding serves.
    head: Option<Linear>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl Decoder {
    /// Takes the tensors that config and plan ask for. They stay lazy.
    pub(super) fn build(config: &Config, plan: &Plan, weights: &mut Weights) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        if plan.head_dim % 2 != 0 || plan.head_dim > 1 << 14 {
            return Err(LoadError::config("head_dim", "must be an even number below 16384"));
        }
        if plan.head == Head::Tied {
            weights.drop_where(|name| name.starts_with("lm_head."));
        }
        let embedding = weights.embedding("model.embed_tokens", (config.vocabulary, hidden), plan.head)?;
        let rope = Rope::new(plan.head_dim, plan.rope_base, plan.rope_pairs, &config.rope_scaling);
        let mut assembly = Assembly { config, plan, rope: Rc::new(rope), weights };
        let mut layers = Vec::new();
        for (index, mask) in plan.masks.iter().enumerate() {
            layers.push(assembly.layer(index, *mask)?);
        }
        let norm = assembly.norm("model.norm", hidden)?;
        let head = match plan.head {
            Head::Tied => None,
            Head::Separate => Some(weights.linear("lm_head", (hidden, config.vocabulary), Bias::None)?),
        };
        Ok(Self { embedding, layers, norm, head })
    }

    /// An empty cache for one sequence.
    pub(crate) fn new_cache(&self) -> Vec<KeyValueCache> {
        self.layers.iter().map(|_| KeyValueCache::default()).collect()
    }

    /// Extends the cache by tokens without computing logits.
    pub(crate) fn prefill(&self, ids: &Array, cache: &mut [KeyValueCache]) -> Result<(), Exception> {
        self.hidden(ids, cache).map(drop)
    }

    /// Extends the cache by tokens, and gives the logits after the last of them, of shape [1, vocabulary], as floats of
    /// 32 bits.
    pub(crate) fn logits(&self, ids: &Array, cache: &mut [KeyValueCache]) -> Result<Array, Exception> {
        let hidden = self.hidden(ids, cache)?;
        let last = if hidden.dim(1) == 1 { hidden } else { hidden.try_index((Ellipsis, -1.., ..))? };
        let last = self.norm.forward(&last)?;
        let logits = match &self.head {
            Some(head) => head.forward(&last)?,
            None => self.embedding.project(&last)?,
        };
        let logits = logits.reshape(&[1, -1])?;
        if logits.dtype() == Dtype::Float32 { Ok(logits) } else { logits.as_dtype(Dtype::Float32) }
    }

    fn hidden(&self, ids: &Array, cache: &mut [KeyValueCache]) -> Result<Array, Exception> {
        let mut x = self.embedding.look_up(&ids.try_index((NewAxis, ..))?)?;
        for (layer, cache) in self.layers.iter().zip(cache) {
            let normed = layer.attention_norm.forward(&x)?;
            let attended = x.add(layer.attention.forward(&normed, cache)?)?;
            let normed = layer.feed_forward_norm.forward(&attended)?;
            x = attended.add(layer.feed_forward.forward(&normed)?)?;
        }
        Ok(x)
    }

    /// Every array of the model.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let layers = self.layers.iter().flat_map(|layer| {
            let norms = [&layer.attention_norm.weight, &layer.feed_forward_norm.weight];
            norms.into_iter().chain(layer.attention.arrays()).chain(layer.feed_forward.arrays())
        });
        let head = self.head.iter().flat_map(Linear::arrays);
        self.embedding.arrays().into_iter().chain(layers).chain([&self.norm.weight]).chain(head)
    }
}

/// What the parts of a decoder are made from.
struct Assembly<'a> {
    config: &'a Config,
    plan: &'a Plan,
    rope: Rc<Rope>,
    weights: &'a mut Weights,
}

impl Assembly<'_> {
    fn layer(&mut self, index: usize, mask: Mask) -> Result<Layer, LoadError> {
        let path = format!("model.layers.{index}");
        Ok(Layer {
            attention: self.attention(&format!("{path}.self_attn"), mask)?,
            feed_forward: self.feed_forward(&format!("{path}.mlp"))?,
            attention_norm: self.norm(&format!("{path}.input_layernorm"), self.config.hidden_size)?,
            feed_forward_norm: self.norm(&format!("{path}.post_attention_layernorm"), self.config.hidden_size)?,
        })
    }

    fn attention(&mut self, path: &str, mask: Mask) -> Result<Attention, LoadError> {
        let (config, plan) = (self.config, self.plan);
        let hidden = config.hidden_size;
        let wide = width(config.heads, plan.head_dim)?;
        let narrow = width(plan.key_value_heads, plan.head_dim)?;
        let head_norms = match plan.query_key_norm {
            QueryKeyNorm::None => None,
            QueryKeyNorm::PerHead => Some(HeadNorms {
                query: self.norm(&format!("{path}.q_norm"), plan.head_dim)?,
                key: self.norm(&format!("{path}.k_norm"), plan.head_dim)?,
            }),
        };
        let mut projection = |name: &str, shape, bias| self.weights.linear(&format!("{path}.{name}"), shape, bias);
        Ok(Attention {
            query: projection("q_proj", (hidden, wide), plan.input_bias)?,
            key: projection("k_proj", (hidden, narrow), plan.input_bias)?,
            value: projection("v_proj", (hidden, narrow), plan.input_bias)?,
            output: projection("o_proj", (wide, hidden), plan.output_bias)?,
            head_norms,
            heads: config.heads,
            key_value_heads: plan.key_value_heads,
            head_dim: plan.head_dim,
            rope: Rc::clone(&self.rope),
            mask,
        })
    }

    fn feed_forward(&mut self, path: &str) -> Result<FeedForward, LoadError> {
        let Mlp::Dense(bias) = self.plan.mlp;
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let mut projection = |name: &str, shape| self.weights.linear(&format!("{path}.{name}"), shape, bias);
        Ok(FeedForward {
            gate: projection("gate_proj", (hidden, inner))?,
            up: projection("up_proj", (hidden, inner))?,
            down: projection("down_proj", (inner, hidden))?,
        })
    }

    fn norm(&mut self, path: &str, size: i32) -> Result<Norm, LoadError> {
        let weight = self.weights.float(&format!("{path}.weight"), &[size])?;
        Ok(Norm { weight, epsilon: self.config.norm_epsilon })
    }
}

fn width(heads: i32, head_dim: i32) -> Result<i32, LoadError> {
    heads.checked_mul(head_dim).ok_or_else(|| LoadError::config("num_attention_heads", "times head_dim is too large"))
}
