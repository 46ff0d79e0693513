//! The decoder that all supported architectures share: embedding, layers of attention and feed-forward with a norm before
//! each, a last norm, logits. What differs between architectures is in a [`Plan`].

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::{self, indexing::TryIndexOp},
};

use super::{
    Config, KeyValueStore, Layout, LoadError,
    attention::{Attention, FeedForward, Forward, HeadNorms, Mask},
    kernels::Kernels,
    linear::{Bias, Embedding, Linear, Stacked},
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
    rope: Rope,
    kernels: Kernels,
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
    pub(super) fn build(
        config: &Config,
        plan: &Plan,
        weights: &mut Weights,
        kernels: Kernels,
    ) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        if plan.head_dim % 2 != 0 || plan.head_dim > 1 << 14 {
            return Err(LoadError::config("head_dim", "must be an even number below 16384"));
        }
        if plan.head == Head::Tied {
            weights.drop_where(|name| name.starts_with("lm_head."));
        }
        let embedding = weights.embedding("model.embed_tokens", (config.vocabulary, hidden), plan.head)?;
        let rope = Rope::new(plan.head_dim, plan.rope_base, plan.rope_pairs, &config.rope_scaling, kernels);
        let mut assembly = Assembly { config, plan, weights, kernels };
        let mut layers = Vec::new();
        for (index, mask) in plan.masks.iter().enumerate() {
            layers.push(assembly.layer(index, *mask)?);
        }
        let norm = assembly.norm("model.norm", hidden)?;
        let head = match plan.head {
            Head::Tied => None,
            Head::Separate => Some(weights.linear("lm_head", (hidden, config.vocabulary), Bias::None)?),
        };
        Ok(Self { embedding, layers, norm, head, rope, kernels })
    }

    /// A store for its sequences.
    pub(crate) fn new_store(&self) -> KeyValueStore {
        KeyValueStore::new(self.layers.len(), self.kernels)
    }

    /// Whether its sequences may begin with spans that they share: where attention is composed, and sees all that comes before.
    pub(crate) fn shares(&self) -> bool {
        let sees_all = |layer: &Layer| matches!(layer.attention.mask, Mask::Causal);
        self.kernels == Kernels::Composed && self.layers.iter().all(sees_all)
    }

    /// How it computes.
    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Extends sequences by tokens, whose ids of shape [tokens] are in the order of the layout, and gives the logits after
    /// those of them that asked for them, of shape [rows, vocabulary], as floats of 32 bits; `None` if none did. Nothing is
    /// computed yet: that takes an evaluation of the logits and of what was [written](KeyValueStore::written).
    pub(crate) fn forward(
        &self,
        ids: &Array,
        layout: &mut Layout,
        store: &mut KeyValueStore,
    ) -> Result<Option<Array>, Exception> {
        let rotation = self.rope.at(&layout.positions)?;
        let mut forward = Forward { store, layout, rope: &self.rope, rotation };
        let mut x = self.embedding.look_up(ids)?;
        for (index, layer) in self.layers.iter().enumerate() {
            // Of the last layer nothing is needed of tokens without logits but their keys and values.
            let rows_only = index + 1 == self.layers.len();
            let normed = layer.attention_norm.forward(&x)?;
            let Some(found) = layer.attention.forward(index, &normed, &mut forward, rows_only)? else { break };
            if found.dim(0) < x.dim(0) {
                x = x.try_index(..found.dim(0))?;
            }
            let attended = x.add(found)?;
            let normed = layer.feed_forward_norm.forward(&attended)?;
            x = attended.add(layer.feed_forward.forward(&normed)?)?;
        }
        let Forward { store, layout, .. } = forward;
        store.advance(layout);
        if layout.rows == 0 {
            return Ok(None);
        }
        let last = self.norm.forward(&x)?;
        let logits = match &self.head {
            Some(head) => head.forward(&last)?,
            None => self.embedding.project(&last)?,
        };
        Ok(Some(if logits.dtype() == Dtype::Float32 { logits } else { logits.as_dtype(Dtype::Float32)? }))
    }

    /// Bytes of a number of its activations, which are of its norms' type.
    pub(super) fn number_bytes(&self) -> u64 {
        self.norm.weight.item_size() as u64
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
    weights: &'a mut Weights,
    kernels: Kernels,
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
            QueryKeyNorm::PerHead => {
                let query = self.norm(&format!("{path}.q_norm"), plan.head_dim)?.weight;
                let key = self.norm(&format!("{path}.k_norm"), plan.head_dim)?.weight;
                let each = |weight: &Array, heads| ops::broadcast_to(weight, &[heads, plan.head_dim]);
                let weights = [each(&query, config.heads)?, each(&key, plan.key_value_heads)?];
                Some(HeadNorms { weights: ops::concatenate(&weights, 0)?, epsilon: config.norm_epsilon })
            }
        };
        let mut projection = |name: &str, shape, bias| self.weights.linear(&format!("{path}.{name}"), shape, bias);
        let input = vec![
            projection("q_proj", (hidden, wide), plan.input_bias)?,
            projection("k_proj", (hidden, narrow), plan.input_bias)?,
            projection("v_proj", (hidden, narrow), plan.input_bias)?,
        ];
        Ok(Attention {
            input: Stacked::new(input)?,
            output: projection("o_proj", (wide, hidden), plan.output_bias)?,
            head_norms,
            heads: config.heads,
            key_value_heads: plan.key_value_heads,
            head_dim: plan.head_dim,
            mask,
        })
    }

    fn feed_forward(&mut self, path: &str) -> Result<FeedForward, LoadError> {
        let Mlp::Dense(bias) = self.plan.mlp;
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let mut projection = |name: &str, shape| self.weights.linear(&format!("{path}.{name}"), shape, bias);
        let input = vec![projection("gate_proj", (hidden, inner))?, projection("up_proj", (hidden, inner))?];
        Ok(FeedForward {
            input: Stacked::new(input)?,
            down: projection("down_proj", (inner, hidden))?,
            kernels: self.kernels,
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
